"""Moving and converting what is inside of nested collections."""

from __future__ import annotations

import copy
import dataclasses
import sys
from abc import ABC
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fabric_lite.utilities.types import _DEVICE

# Copies to the host must be complete before the values are read; on MPS a non-blocking copy races with the kernels.
_BLOCKING_DEVICE_TYPES = ("cpu", "mps")

# Sequences without tensors in them, some of which cannot be rebuilt from a list of their elements.
_OPAQUE_SEQUENCES = (str, bytes, bytearray, memoryview, range)


_PLAIN = frozenset((bool, float, int, str, type(None)))


class _TransferableDataType(ABC):  # noqa: B024 (only the hook counts)
    """Whatever has a method ``to``: tensors, modules, and users' own batches."""

    @classmethod
    def __subclasshook__(cls, subclass: type) -> bool:
        return callable(getattr(subclass, "to", None))


class _Special(ABC):  # noqa: B024
    """What the general walk over collections would not rebuild as we want it."""

    @classmethod
    def __subclasshook__(cls, subclass: type) -> bool:
        return dataclasses.is_dataclass(subclass) or issubclass(subclass, _OPAQUE_SEQUENCES)


def move_data_to_device(batch: Any, device: _DEVICE) -> Any:
    """Move everything in a batch that can be moved to a device.

    Objects with a method ``to`` are moved by it, collections (also named tuples, dataclasses, …) are rebuilt around
    their moved members, anything else is passed on as it is. The collections that are passed in stay as they were.

    Args:
        batch: A tensor, or any nesting of collections of tensors and other things.
        device: Where to move it.

    Returns:
        The same structure, on the device.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    non_blocking = device.type not in _BLOCKING_DEVICE_TYPES
    kind = type(batch)
    # Nearly all batches are one of these four; the general walk costs many times as much.
    if kind is Tensor:
        return batch.to(device, non_blocking=non_blocking)
    if kind is tuple or kind is list:
        if all(type(x) is Tensor for x in batch):
            return kind([x.to(device, non_blocking=non_blocking) for x in batch])
    elif kind is dict and all(type(x) is Tensor for x in batch.values()):
        return {k: x.to(device, non_blocking=non_blocking) for k, x in batch.items()}
    return _apply(batch, (_TransferableDataType,), lambda data: _move(data, device, non_blocking))


def apply_to_tensors(data: Any, function: Callable[[Tensor], Any]) -> Any:
    """Rebuild any nesting of collections with a function applied to its tensors.

    Args:
        data: A tensor, or any nesting of collections of tensors and other things.
        function: The function.

    Returns:
        The same structure, with what the function returned in the place of the tensors.
    """
    kind = type(data)
    # What nearly all arguments and outputs of modules are made of; the general walk costs many times as much.
    if kind is tuple or kind is list:
        return kind([apply_to_tensors(member, function) for member in data])
    if kind is dict:
        return {key: apply_to_tensors(member, function) for key, member in data.items()}
    if isinstance(data, Tensor):
        return function(data)
    return data if kind in _PLAIN else _apply(data, (Tensor,), function)


def convert_to_tensors(data: Any, device: _DEVICE) -> Any:
    """Turn the numbers and arrays in a collection into tensors, and move all tensors to a device.

    A bool becomes uint8 (NCCL does not reduce bools), an int int32, a float float32; an array keeps its dtype.

    Args:
        data: Any nesting of collections of numbers, NumPy arrays, tensors and other things.
        device: Where the tensors shall be.

    Returns:
        The same structure with tensors in it.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    non_blocking = device.type not in _BLOCKING_DEVICE_TYPES
    # There are no arrays where nobody has imported NumPy.
    arrays = (sys.modules["numpy"].ndarray,) if "numpy" in sys.modules else ()

    def convert(value: Any) -> Any:
        if isinstance(value, _TransferableDataType):
            return _move(value, device, non_blocking)
        if isinstance(value, bool):
            return torch.tensor(value, dtype=torch.uint8, device=device)
        if isinstance(value, int):
            return torch.tensor(value, dtype=torch.int32, device=device)
        if isinstance(value, float):
            return torch.tensor(value, dtype=torch.float32, device=device)
        # A copy: a collective that works in place must not write into the caller's array.
        return torch.tensor(value, device=device)

    return _apply(data, (_TransferableDataType, bool, int, float, *arrays), convert)


def convert_tensors_to_scalars(data: Any) -> Any:
    """Turn the tensors in a collection into Python numbers.

    Args:
        data: Any nesting of collections of tensors of one element and other things, usually metrics by name.

    Returns:
        The same structure with numbers in it.

    Raises:
        ValueError: If a tensor has more than one element, or none.
    """
    return _to_scalars(data, "")


def _to_scalars(data: Any, name: str) -> Any:
    if type(data) is dict:  # the usual case, and the one where the error can say which metric it is
        return {k: _to_scalars(v, f"{name}.{k}" if name else str(k)) for k, v in data.items()}
    if isinstance(data, (int, float)):
        return data

    def to_scalar(value: Tensor) -> int | float | bool:
        if value.numel() != 1:
            metric = f"metric {name!r}" if name else "tensor"
            raise ValueError(
                f"The {metric} has {value.numel()} elements (shape {tuple(value.shape)}) and cannot become one number."
                " Reduce it first, for example with `.mean()`."
            )
        return value.item()

    return _apply(data, (Tensor,), to_scalar)


def _move(data: Any, device: torch.device, non_blocking: bool) -> Any:
    """Move one thing that has a method ``to``."""
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=non_blocking)
    moved = data.to(device)
    return data if moved is None else moved  # a `to` that works in place and forgets to return self


def _apply(data: Any, leaf_types: tuple[type, ...], function: Callable[[Any], Any]) -> Any:
    """Rebuild any nesting of collections with a function applied to those members that are of one of the leaf types."""
    from lightning_utilities.core.apply_func import apply_to_collection  # slow to import

    def visit(value: Any) -> Any:
        if isinstance(value, leaf_types):
            return function(value)
        if isinstance(value, _OPAQUE_SEQUENCES):
            return value
        if isinstance(value, _Special):
            return _rebuild_dataclass(value, visit)
        return apply_to_collection(value, (*leaf_types, _Special), visit)

    return visit(data)


def _rebuild_dataclass(data: Any, function: Callable[[Any], Any]) -> Any:
    """A shallow copy of a dataclass instance with a function applied to its fields."""
    result = copy.copy(data)
    for field in dataclasses.fields(data):
        if not hasattr(data, field.name):  # declared with `init=False` and not set yet
            continue
        value = function(getattr(data, field.name))
        try:
            setattr(result, field.name, value)
        except dataclasses.FrozenInstanceError:
            object.__setattr__(result, field.name, value)  # the copy is ours, nobody has seen it yet
    for name in getattr(result, "__dict__", {}).keys() & _cached_properties(type(data)):
        del result.__dict__[name]  # computed from the old fields
    return result


def _cached_properties(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, cached_property)}
