"""What tells that a tensor was changed in place."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def tensor_versions(value: Any) -> Iterator[tuple[str, Hashable, int]]:
    """The version counters of the tensors in a value: those of a module, of an optimizer, or the tensor itself.

    Args:
        value: Anything that is no container.

    Yields:
        The path from the value to the tensor ("" for the value itself), a key that tensors sharing memory have in
        common, and the version counter, which torch counts up at each change in place.
    """
    if isinstance(value, Tensor):
        yield from _version("", value)
    elif isinstance(value, nn.Module):
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield from _version(name, tensor)
    elif isinstance(value, torch.optim.Optimizer):
        for index, group in enumerate(value.param_groups):
            for place, parameter in enumerate(group["params"]):
                yield from _version(f"param_groups.{index}.params.{place}", parameter)


def _version(path: str, tensor: Tensor) -> Iterator[tuple[str, Hashable, int]]:
    if tensor.is_inference():  # has no counter
        return
    try:
        key: Hashable = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one storage
        key = id(tensor)
    yield path, key, tensor._version
