"""How modules, optimizers and data are spread over devices and processes: the seam."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from fabric_lite.accelerators import Accelerator
from fabric_lite.checkpoint.state import _apply_filter, _validate_keys_for_strict_loading
from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.plugins.io import CheckpointIO
from fabric_lite.plugins.precision import Precision
from fabric_lite.plugins.precision.by_name import precision_by_name
from fabric_lite.plugins.precision.precision import _PRECISION_INPUT_STR
from fabric_lite.strategies.capabilities import _BackwardSyncControl, _Sharded
from fabric_lite.strategies.checkpointing import _Checkpointing
from fabric_lite.strategies.communication import TBroadcast, TReduce
from fabric_lite.strategies.launchers.launcher import _Launcher
from fabric_lite.strategies.registry import _StrategyRegistry
from fabric_lite.utilities.apply_func import move_data_to_device
from fabric_lite.utilities.contexts import entered_together
from fabric_lite.utilities.init import _EmptyInit
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.types import Optimizable
from fabric_lite.utilities.warnings import PossibleUserWarning

# Names that are looked for here, where Lightning Fabric has them.
__all__ = [
    "Strategy",
    "TBroadcast",
    "TReduce",
    "_BackwardSyncControl",
    "_Sharded",
    "_apply_filter",
    "_validate_keys_for_strict_loading",
]


class Strategy(_Checkpointing):
    """Spreads the work over devices and processes. `Fabric` asks it for everything that depends on how.

    Args:
        accelerator: The hardware; `Fabric` chooses if there is none.
        checkpoint_io: How checkpoints are kept.
        precision: How numbers are represented.

    Attributes:
        has_plain_precision: Whether the precision changes nothing, so that each step can go past it.
    """

    has_plain_precision: bool = False
    _precision: Precision | None

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(checkpoint_io)
        self._accelerator = accelerator
        self._precision = None
        self.precision = precision
        self._launcher: _Launcher | None = None
        self._backward_sync_control: _BackwardSyncControl | None = None

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """The device of this process."""

    @property
    def requires_launch(self) -> bool:
        """Whether `Fabric.launch` has to be called before anything is set up."""
        return True

    @property
    def requires_fabric_backward(self) -> bool:
        """Whether ``loss.backward()`` would leave out something that ``fabric.backward(loss)`` does."""
        return type(self).backward is not Strategy.backward or self.precision.requires_fabric_backward

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Arguments of `torch.utils.data.DistributedSampler`; None if each process sees all of the data."""
        return None

    @property
    def launcher(self) -> _Launcher | None:
        """Starts the other processes; None if there are none to start."""
        return self._launcher

    @property
    def accelerator(self) -> Accelerator | None:
        """The hardware."""
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    @property
    def precision(self) -> Precision:
        """How numbers are represented."""
        if self._precision is None:
            self._precision = Precision()
        return self._precision

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        self._precision = precision
        self.has_plain_precision = precision is None or type(precision) is Precision

    def make_precision(self, name: _PRECISION_INPUT_STR, device_type: str) -> Precision:
        """Make the plugin for a precision that the user has asked for by name.

        Args:
            name: Of the precision, in full.
            device_type: Where the numbers are: ``"cpu"``, ``"cuda"``, ...

        Returns:
            The plugin.
        """
        return precision_by_name(name, device_type)

    @classmethod
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        """Add this class to a registry under its names.

        Args:
            strategy_registry: The registry.
        """

    # -- processes -----------------------------------------------------------------------------------------------

    def connect(
        self, parallel_devices: Sequence[torch.device], cluster_environment: ClusterEnvironment, num_nodes: int
    ) -> None:
        """Take note of where this run takes place. Called once, before anything else.

        Args:
            parallel_devices: The devices of the processes on this machine.
            cluster_environment: Where the processes find each other.
            num_nodes: Number of machines.
        """

    def setup_environment(self) -> None:
        """Make this process ready: its device, its connection to the others. Called once in each process."""
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)

    def teardown(self) -> None:
        """Give back what is held beyond the run."""
        self.precision.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()
        self.checkpoint_io.teardown()

    # -- modules, optimizers, data -------------------------------------------------------------------------------

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: LRScheduler | None = None
    ) -> tuple[nn.Module, list[Optimizer], LRScheduler | None]:
        """Wrap a module and its optimizers together.

        Args:
            module: The module.
            optimizers: Its optimizers.
            scheduler: A scheduler of one of them.

        Returns:
            The same, wrapped.
        """
        return self.setup_module(module), [self.setup_optimizer(optimizer) for optimizer in optimizers], scheduler

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Wrap a module.

        Args:
            module: The module.

        Returns:
            What its forward is called on.
        """
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Wrap an optimizer.

        Args:
            optimizer: The optimizer.

        Returns:
            What its step is called on.
        """
        return optimizer

    def register_forward_method(self, module: nn.Module, name: str) -> None:
        """Take note that a method of a module, which was set up, is called in the place of its forward.

        Args:
            module: The module as the user passed it.
            name: Name of the method.
        """

    def process_dataloader(self, dataloader: DataLoader[Any]) -> DataLoader[Any]:
        """Wrap a dataloader.

        Args:
            dataloader: The dataloader.

        Returns:
            What is iterated over.
        """
        return dataloader

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Under it, new tensors are made on the device and in the data type of this run."""
        return entered_together(self.root_device, self.precision.tensor_init_context())

    def module_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Under it, new modules are made on the device and in the data type of this run.

        Args:
            empty_init: Whether to leave their memory as it is, since a checkpoint will fill it. None: as the strategy
                likes.
        """
        return entered_together(
            self.root_device, _EmptyInit(enabled=bool(empty_init)), self.precision.module_init_context()
        )

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """What `Fabric.sharded_model` enters."""
        return nullcontext()

    @abstractmethod
    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device of this process.

        Args:
            module: The module.
        """

    def batch_to_device(self, batch: Any, device: torch.device | None = None) -> Any:
        """Move a batch.

        Args:
            batch: Any nesting of tensors.
            device: Where to; by default the device of this process.

        Returns:
            The batch there.
        """
        return move_data_to_device(batch, device or self.root_device)

    # -- training ------------------------------------------------------------------------------------------------

    def backward(self, tensor: Tensor, module: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients.

        Args:
            tensor: The loss.
            module: The module that it came from, if the user named it.
            *args: Passed to `torch.Tensor.backward`.
            **kwargs: Passed to `torch.Tensor.backward`.
        """
        if self.has_plain_precision:
            tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            return
        precision = self.precision
        precision.pre_backward(tensor, module)
        precision.backward(tensor, module, *args, **kwargs)
        precision.post_backward(tensor, module)

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """Let an optimizer update the parameters.

        Args:
            optimizer: The optimizer.
            **kwargs: Passed to its ``step``.

        Returns:
            What its ``step`` returned.
        """
        return (
            optimizer.step(**kwargs) if self.has_plain_precision else self.precision.optimizer_step(optimizer, **kwargs)
        )

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Under it, gradients are not synchronized in the backward.

        Args:
            module: The module, as `setup_module` returned it.
            enabled: Whether to leave the synchronization out.
        """
        if self._backward_sync_control is None:
            rank_zero_warn(
                f"`{type(self).__name__}` always synchronizes gradients, so `fabric.no_backward_sync()` saves nothing."
                " Remove it, or choose a strategy that can leave it out.",
                category=PossibleUserWarning,
            )
            return nullcontext()
        return self._backward_sync_control.no_backward_sync(module, enabled)

    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Scale the gradients down to a norm.

        Args:
            module: The module.
            optimizer: The optimizer of the parameters.
            max_norm: The largest norm of all gradients together.
            norm_type: Which norm.
            error_if_nonfinite: Whether a norm that is not finite is an error.

        Returns:
            The norm before, a scalar.
        """
        self.precision.unscale_gradients(optimizer)
        return nn.utils.clip_grad_norm_(
            self.precision.main_params(optimizer),
            max_norm=max_norm,
            norm_type=norm_type,
            error_if_nonfinite=error_if_nonfinite,
        )

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float | int) -> None:
        """Cut each element of the gradients off.

        Args:
            module: The module.
            optimizer: The optimizer of the parameters.
            clip_val: The largest absolute value.
        """
        self.precision.unscale_gradients(optimizer)
        nn.utils.clip_grad_value_(self.precision.main_params(optimizer), clip_value=clip_val)
