"""The part of `Fabric` that a training step goes through: devices, precision, gradients."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from fabric_lite.fabric.processes import _Processes
from fabric_lite.strategies.backward_gate import gate
from fabric_lite.utilities.apply_func import move_data_to_device
from fabric_lite.utilities.compiled import unwrap_compiled
from fabric_lite.utilities.contexts import entered_together
from fabric_lite.utilities.rank_zero import rank_zero_deprecation
from fabric_lite.wrappers import _FabricModule, _FabricOptimizer, _unwrap_objects


class _Training(_Processes):
    """Computes in the precision, and on the devices, of a plan."""

    def backward(self, tensor: Tensor, *args: Any, model: _FabricModule | None = None, **kwargs: Any) -> None:
        """Compute the gradients: what to call in the place of ``loss.backward()``.

        Args:
            tensor: The loss.
            *args: Passed to `torch.Tensor.backward`.
            model: The module that the loss came from, for strategies that want to know it.
            **kwargs: Passed to `torch.Tensor.backward`.
        """
        strategy = self._strategy
        module = None if model is None else _unwrap_objects(model)
        gate.opened += 1
        try:
            strategy.backward(tensor, module, *args, **kwargs)
        finally:
            gate.opened -= 1

    def clip_gradients(
        self,
        module: nn.Module | _FabricModule,
        optimizer: Optimizer | _FabricOptimizer,
        clip_val: float | int | None = None,
        max_norm: float | int | None = None,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Limit the gradients, between `backward` and the step of the optimizer.

        Args:
            module: The module.
            optimizer: The optimizer of its parameters.
            clip_val: The largest absolute value of an element.
            max_norm: The largest norm of all gradients together. Either this or ``clip_val``.
            norm_type: Which norm; ``float("inf")`` for the largest element.
            error_if_nonfinite: Whether a norm that is not finite is an error.

        Returns:
            With ``max_norm``, the norm before, a scalar tensor; else None.

        Raises:
            ValueError: If both or none of ``clip_val`` and ``max_norm`` are given.
        """
        if (clip_val is None) == (max_norm is None):
            raise ValueError(
                f"`fabric.clip_gradients(..., clip_val={clip_val!r}, max_norm={max_norm!r})`: pass one of them."
                " `clip_val` cuts each element off, `max_norm` scales all of them down."
            )
        bare, bare_optimizer = _unwrap_objects(module), _unwrap_objects(optimizer)
        if max_norm is None:
            self._strategy.clip_gradients_value(bare, bare_optimizer, clip_val=cast(float, clip_val))
            return None
        return self._strategy.clip_gradients_norm(
            bare, bare_optimizer, max_norm=max_norm, norm_type=norm_type, error_if_nonfinite=error_if_nonfinite
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Under it, operations outside of a module's forward run in the precision of this run, too."""
        return self._precision.forward_context()

    def to_device(self, obj: Any) -> Any:
        """Move something to the device of this process.

        Args:
            obj: A module, which moves in place, or any nesting of tensors and objects with a ``to`` of their own.

        Returns:
            The object there.
        """
        if isinstance(obj, nn.Module):
            self._accelerator.setup_device(self.device)
            self._strategy.module_to_device(obj)
            return obj
        return move_data_to_device(obj, device=self.device)

    def no_backward_sync(
        self, module: nn.Module | Iterable[nn.Module], enabled: bool = True
    ) -> AbstractContextManager[Any]:
        """Under it, gradients are accumulated on each process without being synchronized.

        Both the forward and `backward` belong under it.

        Args:
            module: A module that was set up, or several.
            enabled: Whether to leave the synchronization out, as in all but the last of the accumulated steps.

        Raises:
            TypeError: If a module was not set up.
        """
        several = isinstance(module, Iterable) and not isinstance(module, nn.Module)
        modules = list(cast(Iterable[nn.Module], module)) if several else [cast(nn.Module, module)]
        for wrapped in (unwrap_compiled(each)[0] for each in modules):
            if not isinstance(wrapped, _FabricModule):
                raise TypeError(
                    f"`fabric.no_backward_sync(...)` got a `{type(wrapped).__name__}` that was not set up. Write"
                    " `model = fabric.setup(model)` first, and pass that, or a list of such modules."
                )
        return entered_together(*(self._strategy.no_backward_sync(_unwrap_objects(each), enabled) for each in modules))

    def sharded_model(self) -> AbstractContextManager[Any]:
        """What `init_module` was called once."""
        rank_zero_deprecation("`fabric.sharded_model()` is deprecated. Write `fabric.init_module()`.", stacklevel=6)
        self._validate_launched()
        return self._strategy.module_sharded_context()

    def init_tensor(self) -> AbstractContextManager[Any]:
        """Under it, new tensors are made on the device and in the data type of this run."""
        return self._strategy.tensor_init_context()

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Under it, new modules are made on the device and in the data type of this run.

        Args:
            empty_init: Whether to leave their memory as it is, since a checkpoint will fill it. None: as the strategy
                likes.
        """
        self._validate_launched()
        return self._strategy.module_init_context(empty_init=empty_init)
