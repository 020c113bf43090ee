"""What the strategies share that spread one module over several processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fabric_lite.strategies.capabilities import _BackwardSyncControl
from fabric_lite.strategies.mesh import Topology
from fabric_lite.strategies.sharded_checkpointing import _ShardedCheckpointing, _spread_as
from fabric_lite.strategies.sharded_gradients import clip_norm, clip_value
from fabric_lite.utilities.contexts import entered_together
from fabric_lite.utilities.distributed import _is_dtensor
from fabric_lite.utilities.init import _has_meta_device_parameters_or_buffers, _materialize_distributed_module

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.utils.weak import WeakIdKeyDictionary

# The methods that LightningModules have in the place of a forward.
_STEP_METHODS = ("training_step", "validation_step", "test_step", "predict_step")


class _ShardedStrategy(_ShardedCheckpointing):
    """Spreads one module over the processes of a mesh. The module stays the object that it is."""

    _device_mesh: DeviceMesh | None = None
    _replaced: WeakIdKeyDictionary | None = None
    _sync_module_states: bool = True

    # -- processes -----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def topology(self) -> Topology:
        """The processes of the run as a grid."""

    @property
    def device_mesh(self) -> DeviceMesh:
        """The processes, connected along each axis of the topology.

        Raises:
            RuntimeError: Before `Fabric.launch`.
        """
        if self._device_mesh is None:
            raise RuntimeError(
                f"`{type(self).__name__}.device_mesh` is there when the processes are connected. Call"
                " `fabric.launch()` first."
            )
        return self._device_mesh

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return self.topology.sampler_kwargs(self.global_rank)

    @override
    def _configure_launcher(self) -> None:
        from fabric_lite.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

        self._launcher = _SubprocessScriptLauncher(self._environment, self.num_processes, self.num_nodes)

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        topology = self.topology  # checked before anything waits
        self._setup_distributed()
        if self._device_mesh is None:
            self._device_mesh = topology.make_mesh(self.root_device.type)

    # -- modules and optimizers ----------------------------------------------------------------------------------

    @override
    def setup_module(self, module: nn.Module) -> nn.Module:
        before = dict(module.named_parameters())
        is_empty = _has_meta_device_parameters_or_buffers(module)
        self._agree(module)
        sharded = self._shard(module)
        if is_empty:
            _materialize_distributed_module(sharded, self._memory)
            self._agree(sharded)
        for name in _STEP_METHODS:
            if callable(getattr(sharded, name, None)):
                self.register_forward_method(sharded, name)
        self._note_replaced(before, dict(sharded.named_parameters(remove_duplicate=False)))
        return sharded

    @abstractmethod
    def _shard(self, module: nn.Module) -> nn.Module:
        """Spread the parameters of a module over the processes."""

    @property
    def _memory(self) -> torch.device:
        """Where the parameters are when nothing is computed."""
        return self.root_device

    def _note_replaced(self, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter]) -> None:
        """Remember what became of parameters, for optimizers that were made before."""
        from torch.utils.weak import WeakIdKeyDictionary

        if self._replaced is None:
            self._replaced = WeakIdKeyDictionary()
        for name, parameter in before.items():
            if after.get(name) is not parameter:
                self._replaced[parameter] = after.get(name)

    @override
    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        replaced = self._replaced if self._replaced is not None else {}
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                new = replaced.get(parameter, parameter)
                if new is None:
                    raise ValueError(
                        f"`{type(optimizer).__name__}` holds a parameter that is no longer there under its name since"
                        " the module was sharded. Write `model = fabric.setup_module(model)`, then make the optimizer"
                        " from `model.parameters()`, then `fabric.setup_optimizers(optimizer)`."
                    )
                if new is not parameter:
                    group["params"][index] = new  # in this list: some optimizers keep it elsewhere, too
                    slots = optimizer.state.pop(parameter, None)
                    if slots is not None:
                        optimizer.state[new] = {name: _spread_as(value, new) for name, value in slots.items()}
        return optimizer

    @override
    def module_to_device(self, module: nn.Module) -> None:
        # A module moves when it is sharded, part by part: as a whole it may be too large for the device.
        _move_where_nothing_is_sharded(module, self.root_device)

    @override
    def module_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        contexts: list[AbstractContextManager[Any]] = [self.precision.module_init_context()]
        if empty_init:  # memory and values come in `setup_module`
            contexts.append(torch.device("meta"))
        return entered_together(*contexts, self.module_sharded_context())

    @override
    def register_forward_method(self, module: nn.Module, name: str) -> None:
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        if isinstance(module, FSDPModule):
            register_fsdp_forward_method(module, name)

    def _agree(self, module: nn.Module) -> None:
        """Give the tensors of a module that are not sharded (yet) the values that they have in the first process."""
        if not self._sync_module_states:
            return
        for tensor in chain(module.parameters(), module.buffers()):
            if tensor.is_meta or _is_dtensor(tensor):
                continue
            here = tensor.detach().to(self.root_device).contiguous()
            torch.distributed.broadcast(here, 0)
            tensor.detach().copy_(here)

    # -- training ------------------------------------------------------------------------------------------------

    @override
    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        self.precision.unscale_gradients(optimizer)
        return clip_norm(self.precision.main_params(optimizer), max_norm, norm_type, error_if_nonfinite)

    @override
    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float | int) -> None:
        self.precision.unscale_gradients(optimizer)
        clip_value(self.precision.main_params(optimizer), clip_val)


def _move_where_nothing_is_sharded(module: nn.Module, device: torch.device) -> None:
    """Move the parts of a module that have no parameters, metrics for example."""
    if next(module.parameters(), None) is None:
        if not _has_meta_device_parameters_or_buffers(module):
            module.to(device)
        return
    for child in module.children():
        _move_where_nothing_is_sharded(child, device)


class _ShardedBackwardSyncControl(_BackwardSyncControl):
    @override
    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        return _without_sync(module) if enabled else entered_together()


@contextmanager
def _without_sync(module: nn.Module) -> Iterator[None]:
    """Under it, each process adds up gradients of its own. Parts that are not sharded over data have none to send."""
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_requires_gradient_sync(True, recurse=False)
