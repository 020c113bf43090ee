"""The part of `Fabric` that wraps modules, optimizers and dataloaders, and holds the callbacks that are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from fabric_lite.connector import Plan
from fabric_lite.data import prepare_dataloader
from fabric_lite.fabric.training import _Training
from fabric_lite.hooks import Callbacks
from fabric_lite.utilities.compiled import unwrap_compiled
from fabric_lite.utilities.device_dtype_mixin import _update_properties
from fabric_lite.utilities.init import _has_meta_device_parameters_or_buffers
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.warnings import PossibleUserWarning
from fabric_lite.wrappers import _FabricDataLoader, _FabricModule, _FabricOptimizer


class _Setup(_Training):
    """Sets up what a training loop uses.

    Args:
        plan: What the run consists of.
        callbacks: The callbacks.
    """

    def __init__(self, plan: Plan, callbacks: Callbacks) -> None:
        self._hooks = callbacks
        super().__init__(plan)

    def call(self, hook_name: str, /, *args: Any, **kwargs: Any) -> None:
        """Call a method by its name on each callback that has one, in order.

        Args:
            hook_name: Name of the method: any name.
            *args: Passed to each as they are.
            **kwargs: Of these, each gets those that its signature takes.
        """
        hooks = self._hooks
        compiled = hooks.latest.get(hook_name)
        if compiled is None or not compiled(hooks, args, kwargs):
            hooks.call_new_shape(hook_name, args, kwargs)

    @property
    def callbacks(self) -> Callbacks:
        """The callbacks, to look through and to change."""
        return self._hooks

    def setup(
        self,
        module: nn.Module,
        *optimizers: Optimizer,
        scheduler: LRScheduler | None = None,
        move_to_device: bool = True,
        _reapply_compile: bool = True,
    ) -> Any:
        """Wrap a module, and its optimizers, for this run.

        Args:
            module: The module.
            *optimizers: Its optimizers, if any.
            scheduler: A learning rate scheduler, which comes back as it is.
            move_to_device: Whether the module moves to the device of this process.
            _reapply_compile: Whether `torch.compile`, if the module was compiled, is taken off and put back on over
                what the strategy makes of it, with the same settings.

        Returns:
            The module alone, or a tuple of the module, the optimizers and, if there is one, the scheduler.

        Raises:
            ValueError: If one of them was set up before.
            TypeError: If one of them is of another kind.
            RuntimeError: If an optimizer has parameters without memory: set the module up first, then.
        """
        self._validate_module(module, "setup")
        self._validate_optimizers(optimizers, "setup")
        wrapped, bare, scheduler = self._wrap_module(
            module, list(optimizers), scheduler, move_to_device, _reapply_compile
        )
        wrapped_optimizers = [_FabricOptimizer(o, self._strategy, self._hooks) for o in bare]
        self._introduce(wrapped, wrapped_optimizers)
        if not optimizers:
            return wrapped
        return (wrapped, *wrapped_optimizers) if scheduler is None else (wrapped, *wrapped_optimizers, scheduler)

    def setup_module(
        self, module: nn.Module, move_to_device: bool = True, _reapply_compile: bool = True
    ) -> _FabricModule:
        """Wrap a module for this run.

        Args:
            module: The module.
            move_to_device: Whether it moves to the device of this process.
            _reapply_compile: Whether `torch.compile` is taken off and put back on, as in `setup`.

        Returns:
            The wrapped module.

        Raises:
            ValueError: If it was set up before.
            TypeError: If it is not a module.
        """
        self._validate_module(module, "setup_module")
        wrapped, _, _ = self._wrap_module(module, [], None, move_to_device, _reapply_compile)
        self._introduce(wrapped, None)
        return wrapped

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Wrap optimizers for this run.

        Args:
            *optimizers: One or more.

        Returns:
            The wrapped optimizer, or a tuple of them.

        Raises:
            ValueError: If there is none, or one was set up before.
            TypeError: If one of them is not an optimizer.
            RuntimeError: If one has parameters without memory.
        """
        self._validate_launched()
        if not optimizers:
            raise ValueError("`fabric.setup_optimizers()` got no optimizer. Pass at least one.")
        self._validate_optimizers(optimizers, "setup_optimizers")
        bare = [self._strategy.setup_optimizer(optimizer) for optimizer in optimizers]
        wrapped = tuple(_FabricOptimizer(o, self._strategy, self._hooks) for o in bare)
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def setup_dataloaders(
        self, *dataloaders: DataLoader[Any], use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Wrap dataloaders for this run. The ones that are passed stay as they are.

        Args:
            *dataloaders: One or more.
            use_distributed_sampler: Whether each process gets its share of the samples.
            move_to_device: Whether batches move to the device of this process.

        Returns:
            The wrapped dataloader, or a list of them.

        Raises:
            ValueError: If there is none, or one was set up before.
            TypeError: If one of them is not a `DataLoader`.
        """
        self._validate_launched()
        if not dataloaders:
            raise ValueError("`fabric.setup_dataloaders()` got no dataloader. Pass at least one.")
        for dataloader in dataloaders:
            if isinstance(dataloader, _FabricDataLoader):
                raise ValueError(
                    "`fabric.setup_dataloaders(...)` got a dataloader that it returned before. Pass each once."
                )
            if not isinstance(dataloader, DataLoader):
                raise TypeError(
                    f"`fabric.setup_dataloaders(...)` got {dataloader!r}. It takes `torch.utils.data.DataLoader`s; move"
                    " the data of anything else with `fabric.to_device(batch)`."
                )
        wrapped = [
            self._setup_dataloader(
                dataloader, use_distributed_sampler=use_distributed_sampler, move_to_device=move_to_device
            )
            for dataloader in dataloaders
        ]
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def _setup_dataloader(
        self, dataloader: DataLoader[Any], use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> _FabricDataLoader:
        """Wrap one dataloader."""
        kwargs = self._strategy.distributed_sampler_kwargs if use_distributed_sampler else None
        prepared = prepare_dataloader(dataloader, kwargs, rank=self.global_rank)
        prepared = self._strategy.process_dataloader(prepared)
        return _FabricDataLoader(prepared, device=self.device if move_to_device else None)

    def _wrap_module(
        self,
        module: nn.Module,
        optimizers: list[Optimizer],
        scheduler: LRScheduler | None,
        move_to_device: bool,
        reapply_compile: bool,
    ) -> tuple[_FabricModule, list[Optimizer], LRScheduler | None]:
        compiled = module
        original, recompile = unwrap_compiled(module) if reapply_compile else (module, None)
        module = original
        if move_to_device:
            _warn_of_several_devices(module)
            if _has_meta_device_parameters_or_buffers(module):  # may fail: then nothing has changed
                module = self.to_device(module)
        module = self._precision.convert_module(module)
        if move_to_device:
            module = self.to_device(module)
        if optimizers:
            forward_module, optimizers, scheduler = self._strategy.setup_module_and_optimizers(
                module, optimizers, scheduler
            )
        else:
            forward_module = self._strategy.setup_module(module)
        if recompile is not None:
            forward_module = compiled if forward_module is original else recompile(forward_module)
        wrapped = _FabricModule(forward_module, self._strategy, original_module=original)
        first = next(wrapped.parameters(), None)
        device = self.device if move_to_device or first is None else first.device
        _update_properties(wrapped, device=device)
        return wrapped, optimizers, scheduler

    def _introduce(self, wrapped: _FabricModule, optimizers: list[_FabricOptimizer] | None) -> None:
        """Tell a module that asks for it who runs it, and the callbacks that it is there."""
        original: Any = wrapped.module
        if hasattr(original, "_fabric"):  # lightning's LightningModule: its `self.log` and `self.logger` need it
            original._fabric = self
            if optimizers is not None:
                original._fabric_optimizers = optimizers
        self.call("on_after_setup", fabric=self, module=wrapped)

    def _validate_module(self, module: object, method: str) -> None:
        self._validate_launched()
        if isinstance(unwrap_compiled(module)[0], _FabricModule):
            raise ValueError(f"`fabric.{method}(...)` got a module that was set up before. Pass each module once.")
        if not isinstance(module, nn.Module):
            raise TypeError(f"`fabric.{method}(...)` takes a `torch.nn.Module` first, but got {module!r}.")

    def _validate_optimizers(self, optimizers: Sequence[object], method: str) -> None:
        for optimizer in optimizers:
            if isinstance(optimizer, _FabricOptimizer):
                raise ValueError(
                    f"`fabric.{method}(...)` got an optimizer that was set up before. Pass each optimizer once."
                )
            if not isinstance(optimizer, Optimizer):
                raise TypeError(f"`fabric.{method}(...)` takes `torch.optim.Optimizer`s, but got {optimizer!r}.")
            if _has_meta_device_parameters_or_buffers(optimizer):
                raise RuntimeError(
                    f"`{type(optimizer).__name__}` holds parameters on the meta device, which setting up the module"
                    " replaces. Write `model = fabric.setup_module(model)`, then make the optimizer from"
                    " `model.parameters()`, then `fabric.setup_optimizers(optimizer)`."
                )


def _warn_of_several_devices(module: nn.Module) -> None:
    """Say so if a module that is about to move as a whole has been spread over devices by hand."""
    devices = {name: parameter.device for name, parameter in module.named_parameters()}
    first = next(iter(devices), "")
    if others := [name for name, device in devices.items() if device != devices[first]]:
        rank_zero_warn(
            f"The module that is set up has parameters on several devices: {first!r} on {devices[first]},"
            f" {others[0]!r} on {devices[others[0]]}, {len(others)} of {len(devices)} elsewhere than the first. All of"
            " them move to one. To keep them apart, pass `move_to_device=False`.",
            category=PossibleUserWarning,
        )
