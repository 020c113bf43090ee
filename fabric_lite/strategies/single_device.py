"""One process on one device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fabric_lite.accelerators import Accelerator
from fabric_lite.plugins.io import CheckpointIO
from fabric_lite.plugins.precision import Precision
from fabric_lite.strategies.strategy import Strategy, TBroadcast
from fabric_lite.utilities.init import _has_meta_device_parameters_or_buffers, _materialize_meta_tensors
from fabric_lite.utilities.types import _DEVICE


class SingleDeviceStrategy(Strategy):
    """Runs on one device; what speaks to other processes does nothing.

    Args:
        device: The device.
        accelerator: The hardware; `Fabric` chooses if there is none.
        checkpoint_io: How checkpoints are kept.
        precision: How numbers are represented.
    """

    def __init__(
        self,
        device: _DEVICE = "cpu",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision)
        self._root_device = torch.device(device)

    @property
    @override
    def root_device(self) -> torch.device:
        return self._root_device

    @property
    @override
    def is_global_zero(self) -> bool:
        return True

    @property
    @override
    def requires_launch(self) -> bool:
        return False

    @override
    def module_to_device(self, module: nn.Module) -> None:
        if _has_meta_device_parameters_or_buffers(module):
            _materialize_meta_tensors(module, self.root_device)
        module.to(self.root_device)

    @override
    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        return nullcontext()

    @override
    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    @override
    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        return tensor

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        pass

    @override
    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        return obj
