"""A copy of what is to be saved, which does not change any more when training goes on."""

from __future__ import annotations

import copy
import ctypes
import mmap
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_ALIGNMENT = 64


class Memory:
    """Memory for the copies of tensors, kept for the next ones: to get it takes longer than to copy."""

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None

    def __reduce__(self) -> Any:  # another process gets its own
        return Memory, ()

    def take(self, size: int) -> mmap.mmap:
        """Get some that no tensor uses.

        Args:
            size: How many bytes, at least.
        """
        kept = self._kept
        if kept is None or len(kept) < size or sys.getrefcount(kept) > 3:  # here, in `self`, and of the call itself
            self._kept = kept = None
            self._kept = kept = _allocate(size)
        return kept


def snapshot(value: Any, memory: Memory | None = None) -> Any:
    """Copy a state: tensors into the memory of the CPU, all else as `copy.deepcopy` does.

    Tensors that share memory do so in the copy, too, so that the file which is made of it is the same.

    Args:
        value: Any nesting of tensors and other values.
        memory: Where the copies of tensors go.

    Returns:
        The copy.
    """
    tensors = list({id(tensor): tensor for tensor in _tensors(value)}.values())
    storages: dict[Any, Tensor] = {_key(tensor): _bytes(tensor) for tensor in tensors if _is_plain(tensor)}
    with torch.no_grad():
        copied = dict(zip(storages, _copy_all(list(storages.values()), memory or Memory()), strict=True))
        memo: dict[int, Any] = {id(t): _rebuild(t, copied[_key(t)]) if _is_plain(t) else _copy(t) for t in tensors}
    return copy.deepcopy(value, memo)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in dictionaries, lists, tuples and sets."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but a view of bytes in memory."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _key(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    return tensor.device, storage.data_ptr(), storage.nbytes()


def _bytes(tensor: Tensor) -> Tensor:
    """All bytes of the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _copy_all(parts: list[Tensor], memory: Memory) -> list[Tensor]:
    """Copy bytes."""
    starts, end = [], 0
    for part in parts:
        starts.append(end)
        end += -(-part.numel() // _ALIGNMENT) * _ALIGNMENT
    if not end:
        return [torch.empty(0, dtype=torch.uint8) for _ in parts]
    taken = memory.take(end)
    copies = []
    for part, start in zip(parts, starts, strict=True):
        size = part.numel()
        if not size:
            copies.append(torch.empty(0, dtype=torch.uint8))
            continue
        target = torch.frombuffer(taken, dtype=torch.uint8, count=size, offset=start)
        if part.device.type == "cpu":
            # torch has all of its threads wait for each other at each tensor, ten times as long on a busy machine
            ctypes.memmove(target.data_ptr(), part.data_ptr(), size)
        else:
            target.copy_(part)
        copies.append(target)
    return copies


def _allocate(size: int) -> mmap.mmap:
    """Get memory, in large pages if there are any."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _rebuild(tensor: Tensor, copied: Tensor) -> Tensor:
    """The same view of the copied bytes."""
    storage = copied.untyped_storage()
    result = torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    return _like(tensor, result)


def _copy(tensor: Tensor) -> Tensor:
    """A copy of a tensor of any other kind."""
    return tensor if tensor.is_meta else _like(tensor, tensor.detach().to("cpu", copy=True))


def _like(tensor: Tensor, result: Tensor) -> Tensor:
    """The copy as what the tensor was, with what had been attached to it."""
    if isinstance(tensor, nn.Parameter):
        result = nn.Parameter(result, tensor.requires_grad)
    elif tensor.requires_grad:
        result.requires_grad_()
    if attached := vars(tensor):
        vars(result).update(copy.deepcopy(attached))
    return result
