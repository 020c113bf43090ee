"""How a strategy writes and reads checkpoints, unless it shards them: one file, by the first process."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fabric_lite.checkpoint.state import Filter, collect, restore
from fabric_lite.plugins.io import CheckpointIO, TorchCheckpointIO
from fabric_lite.strategies.communication import _Communication
from fabric_lite.utilities.types import _PATH, _Stateful


class _Checkpointing(_Communication):
    """Saves and loads the state of objects.

    Args:
        checkpoint_io: How checkpoints are kept.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None) -> None:
        self._checkpoint_io = checkpoint_io

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """How checkpoints are kept."""
        if self._checkpoint_io is None:
            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    def save_checkpoint(
        self,
        path: _PATH,
        state: dict[str, nn.Module | Optimizer | Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Write a checkpoint. Called in all processes.

        Args:
            path: Where.
            state: Objects by name; those that have a ``state_dict`` are saved by it.
            storage_options: For the `CheckpointIO`.
            filter: For a name, a function ``(key, value) -> bool`` that says what of its state is saved.
        """
        converted = collect(state, filter or {}, self.get_module_state_dict, self.get_optimizer_state)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint=converted, path=path, storage_options=storage_options)

    def load_checkpoint(
        self,
        path: _PATH,
        state: nn.Module | _Stateful[Any] | dict[str, nn.Module | _Stateful[Any] | Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint and give objects their state back. Called in all processes.

        Args:
            path: Where it is.
            state: Objects by name; or one module or optimizer, if the file holds just its state. What has no
                ``load_state_dict`` is replaced in the dictionary.
            strict: Whether each name must be in the checkpoint, and the keys of modules must match.
            weights_only: Whether to refuse everything but tensors and plain values. None means True.

        Returns:
            What of the checkpoint no object took.
        """
        checkpoint = self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        if isinstance(state, nn.Module):
            self.load_module_state_dict(state, checkpoint, strict=strict)
            return {}
        if isinstance(state, _Stateful):
            state.load_state_dict(checkpoint)
            return {}
        if not state:
            return checkpoint
        return restore(checkpoint, state, strict, load_module=partial(self.load_module_state_dict, strict=strict))

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """The state of a module, as it is saved.

        Args:
            module: The module.
        """
        return module.state_dict()

    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Give a module its state back.

        Args:
            module: The module.
            state_dict: From `get_module_state_dict`.
            strict: Whether the keys must match.
        """
        module.load_state_dict(state_dict, strict=strict)

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, as it is saved.

        Args:
            optimizer: The optimizer. One that shards its state, such as torch's `ZeroRedundancyOptimizer`, collects it
                on the first process.
        """
        consolidate = getattr(optimizer, "consolidate_state_dict", None)
        if consolidate is None:
            return optimizer.state_dict()
        consolidate()
        return optimizer.state_dict() if self.is_global_zero else {}
