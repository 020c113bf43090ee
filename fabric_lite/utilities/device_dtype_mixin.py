"""A module that knows its device and dtype."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn import Module
from typing_extensions import Self


class _DeviceDtypeModuleMixin(Module):
    """Keeps `device` and `dtype` in step with the methods that move or cast a module."""

    __jit_unused_properties__: ClassVar[list[str]] = ["device", "dtype"]

    _dtype: torch.dtype
    _device: torch.device

    def __init__(self) -> None:
        super().__init__()
        # Past `Module.__setattr__`, and without `torch.get_default_device()`: both are slow, and each wrapper pays.
        vars(self).update(_dtype=torch.get_default_dtype(), _device=torch.empty(0).device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to which this module was cast last."""
        return self._dtype

    @dtype.setter
    def dtype(self, new_dtype: torch.dtype) -> None:
        raise RuntimeError(
            f"The dtype of {type(self).__name__} follows its parameters and cannot be assigned."
            f" Write `module.to({new_dtype})`."
        )

    @property
    def device(self) -> torch.device:
        """The device to which this module was moved last, for CUDA always with an index."""
        if self._device == torch.device("cuda"):
            return torch.device("cuda", torch.cuda.current_device())
        return self._device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """See `torch.nn.Module.to`."""
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
        _update_properties(self, device=device, dtype=dtype)
        return super().to(*args, **kwargs)

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> Self:
        """See `torch.nn.Module.to_empty`."""
        if device is not None:
            _update_properties(self, device=torch.device(device))
        return super().to_empty(device=device, recurse=recurse)

    def cuda(self, device: torch.device | int | None = None) -> Self:
        """See `torch.nn.Module.cuda`."""
        index = torch.cuda.current_device() if device is None else device
        target = torch.device("cuda", index) if isinstance(index, int) else torch.device(index)
        _update_properties(self, device=target)
        return super().cuda(device=target)

    def cpu(self) -> Self:
        """See `torch.nn.Module.cpu`."""
        _update_properties(self, device=torch.device("cpu"))
        return super().cpu()

    def type(self, dst_type: torch.dtype | str) -> Self:
        """See `torch.nn.Module.type`."""
        # The names of the old tensor types ("torch.HalfTensor") are understood by tensors alone.
        dtype = dst_type if isinstance(dst_type, torch.dtype) else torch.empty(0).type(dst_type).dtype
        _update_properties(self, dtype=dtype)
        return super().type(dst_type)

    def float(self) -> Self:
        """See `torch.nn.Module.float`."""
        _update_properties(self, dtype=torch.float32)
        return super().float()

    def double(self) -> Self:
        """See `torch.nn.Module.double`."""
        _update_properties(self, dtype=torch.float64)
        return super().double()

    def half(self) -> Self:
        """See `torch.nn.Module.half`."""
        _update_properties(self, dtype=torch.float16)
        return super().half()

    def bfloat16(self) -> Self:
        """See `torch.nn.Module.bfloat16`."""
        _update_properties(self, dtype=torch.bfloat16)
        return super().bfloat16()


def _update_properties(root: Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Note a new device or dtype on all modules under `root` that keep one, without moving anything.

    A model may lie on several devices (some parameters on meta), so its modules must not be moved to update the note.
    """
    for module in (root, *root.modules()):  # a wrapper is none of its own modules
        if isinstance(module, _DeviceDtypeModuleMixin):
            if device is not None:
                module._device = device
            if dtype is not None:
                module._dtype = dtype
