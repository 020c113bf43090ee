"""What the precisions share: conversion of tensors, and contexts that set the default data type."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fabric_lite.utilities.apply_func import apply_to_tensors


def _convert_fp_tensor(tensor: Tensor, dst_type: str | torch.dtype) -> Tensor:
    """Convert a floating point tensor; leave integers and booleans alone."""
    return tensor.to(dst_type) if torch.is_floating_point(tensor) else tensor


def _convert_fp_tensors(data: Any, dtype: torch.dtype) -> Any:
    """Convert the floating point tensors in any nesting of containers."""
    return apply_to_tensors(data, lambda tensor: _convert_fp_tensor(tensor, dtype))


class _DtypeContextManager:
    """Under it, new floating point tensors get this data type. It can be entered again, also while it is active."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._previous: list[torch.dtype] = []

    def __enter__(self) -> None:
        self._previous.append(torch.get_default_dtype())
        torch.set_default_dtype(self._dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self._previous.pop())


class _ClassReplacementContextManager:
    """Under it, classes are replaced by others where they are looked up: ``{"torch.nn.Linear": OtherLinear}``."""

    def __init__(self, mapping: Mapping[str, type]) -> None:
        self._replacements: list[tuple[ModuleType, str, type, type]] = []
        for path, replacement in mapping.items():
            module_name, name = path.rsplit(".", 1)
            module = import_module(module_name)
            self._replacements.append((module, name, getattr(module, name), replacement))

    def __enter__(self) -> None:
        for module, name, _, replacement in self._replacements:
            setattr(module, name, replacement)

    def __exit__(self, *_: object) -> None:
        for module, name, original, _replacement in self._replacements:
            setattr(module, name, original)
