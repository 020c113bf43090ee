"""How a strategy writes and reads checkpoints, unless it shards them: one file, by the first process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fabric_lite.checkpoint.folder import beside, found, prepare, replace
from fabric_lite.checkpoint.optimizers import (
    Names,
    for_optimizers,
    number_as_they_come,
    number_parameters,
    parameter_names,
)
from fabric_lite.checkpoint.sharded import reading
from fabric_lite.checkpoint.snapshot import Memory, snapshot
from fabric_lite.checkpoint.state import Filter, Pair, collect, load_objects, restore
from fabric_lite.plugins.io import CheckpointIO, TorchCheckpointIO
from fabric_lite.strategies.communication import _Communication
from fabric_lite.utilities.cloud_io import _local_path
from fabric_lite.utilities.load import _is_sharded_checkpoint, _load_distributed_checkpoint
from fabric_lite.utilities.types import _PATH, _Stateful


class _Checkpointing(_Communication):
    """Saves and loads the state of objects.

    Args:
        checkpoint_io: How checkpoints are kept.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None) -> None:
        self._checkpoint_io = checkpoint_io
        self._snapshot_memory = Memory()

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
            self._write_file(converted, path, storage_options)

    def _write_file(self, whole: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write one file. It takes the place of a sharded checkpoint when it is whole."""
        is_folder = _is_sharded_checkpoint(path)
        target = beside(Path(path), "tmp") if is_folder else path
        if is_folder:
            prepare(Path(path))
            Path(target).rmdir()
        self.checkpoint_io.save_checkpoint(checkpoint=whole, path=target, storage_options=storage_options)
        if is_folder:
            replace(Path(target), Path(path))

    def snapshot_checkpoint(
        self, path: _PATH, state: dict[str, nn.Module | Optimizer | Any], filter: Filter | None = None
    ) -> Callable[[], None] | None:
        """Take a copy of all that `save_checkpoint` would write. Called in all processes.

        Args:
            path: Where it will be written.
            state: Objects by name.
            filter: What of their state is saved.

        Returns:
            Writes the copy; it may be called in another thread, and speaks to no other process. None if this process
            has nothing to write.
        """
        if type(self).save_checkpoint is not _Checkpointing.save_checkpoint:
            # Someone else's strategy has a way of its own, which must be gone: it may speak to other processes.
            self.save_checkpoint(path, state, filter=filter)
            return None
        converted = collect(state, filter or {}, self.get_module_state_dict, self.get_optimizer_state)
        if not self.is_global_zero:
            return None
        copied = snapshot(converted, self._snapshot_memory)
        return partial(self._write_file, copied, path)

    def load_checkpoint(
        self,
        path: _PATH,
        state: nn.Module | _Stateful[Any] | dict[str, nn.Module | _Stateful[Any] | Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint and give objects their state back. Called in all processes.

        Args:
            path: Where it is: a file, or the folder of a sharded checkpoint.
            state: Objects by name; or one module or optimizer, if the file holds just its state. What has no
                ``load_state_dict`` is replaced in the dictionary.
            strict: Whether each name must be in the checkpoint, and the keys of modules must match.
            weights_only: Whether to refuse everything but tensors and plain values. None means True.

        Returns:
            What of the checkpoint no object took.
        """
        checkpoint: dict[str, Any] = self._read_checkpoint(path, weights_only)
        load_module = partial(self.load_module_state_dict, strict=strict)
        checkpoint = for_optimizers(checkpoint, state, partial(self._optimizer_state, names=parameter_names(state)))
        if isinstance(state, _Stateful):
            load_objects([Pair(state, checkpoint, f"`{type(state).__name__}`")], load_module)
            return {}
        if not state:
            return checkpoint
        return restore(checkpoint, state, strict, load_module)

    def _read_checkpoint(self, path: _PATH, weights_only: bool | None) -> dict[str, Any]:
        """What was saved, as it is in one file: a sharded checkpoint is read as a whole."""
        local = _local_path(path)
        if local is not None and (before := found(Path(local))) != Path(local):
            path = before
        if not _is_sharded_checkpoint(path):
            return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        with reading(path):
            whole: dict[str, Any] = number_as_they_come(_load_distributed_checkpoint(Path(path), weights_only))
        return whole

    def _optimizer_state(self, optimizer: Optimizer, saved: dict[str, Any], names: Names) -> dict[str, Any]:
        """What was saved of an optimizer, by one process or many, as its ``load_state_dict`` takes it."""
        return number_parameters(saved, optimizer, names)

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
