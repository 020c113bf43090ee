"""What can be learned from a data loader, and a dictionary with attribute access."""

from __future__ import annotations

import os
from collections.abc import Sized
from typing import Any, TypeGuard

from torch.utils.data import IterableDataset

from fabric_lite.utilities.rank_zero import rank_zero_warn


def has_iterable_dataset(dataloader: object) -> bool:
    """Whether an object has a `dataset` that is a `torch.utils.data.IterableDataset`."""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def sized_len(dataloader: object) -> int | None:
    """The length of an object, or None if it has none."""
    if not isinstance(dataloader, Sized):
        return None
    try:
        return len(dataloader)
    except (TypeError, NotImplementedError):  # so does a loader tell that its dataset has no length
        return None


def has_len(dataloader: object) -> TypeGuard[Sized]:
    """Whether an object has a length; warns if it is zero, or unreliable."""
    length = sized_len(dataloader)
    if length is None:
        return False
    name = type(dataloader).__name__
    if length == 0:
        rank_zero_warn(f"The length of `{name}` is 0. Is this what you meant?")
    if has_iterable_dataset(dataloader):
        rank_zero_warn(
            f"The `IterableDataset` of `{name}` defines `__len__`. With several workers this length is wrong, unless"
            " each worker yields its own share of the data only (see `torch.utils.data.get_worker_info`)."
        )
    return True


def _samplers_of(dataloader: object, *more: str) -> list[Any]:
    """All samplers that a loader's iteration goes through, each once, the outer ones first.

    Args:
        dataloader: The loader.
        *more: Names of further attributes in which a sampler may have another one.
    """
    found: dict[int, Any] = {}  # by identity, as samplers may be unhashable

    def collect(owner: object) -> None:
        for name in ("sampler", "batch_sampler", *more):
            sampler = getattr(owner, name, None)
            if sampler is not None and id(sampler) not in found:
                found[id(sampler)] = sampler
                collect(sampler)

    collect(dataloader)
    return list(found.values())


def _set_sampler_epoch(dataloader: object, epoch: int) -> None:
    """Call `set_epoch` on all samplers that a loader's iteration goes through, and on an `IterableDataset`."""
    parts = _samplers_of(dataloader)
    if has_iterable_dataset(dataloader):
        parts.append(dataloader.dataset)  # type: ignore[attr-defined]
    for obj in parts:
        set_epoch = getattr(obj, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def suggested_max_num_workers(local_world_size: int) -> int:
    """An upper bound for the `num_workers` of a data loader.

    Args:
        local_world_size: The number of processes on this machine that each have a loader.

    Returns:
        Each process's share of the CPU cores without the one for itself, and at least 1.

    Raises:
        ValueError: If there is less than one process.
    """
    if local_world_size < 1:
        raise ValueError(
            f"`local_world_size` must be at least 1, got {local_world_size}."
            " Pass the number of processes on this machine, for example `fabric.world_size // fabric.num_nodes`."
        )
    return max(1, _num_cpus_available() // local_world_size - 1)


def _num_cpus_available() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class AttributeDict(dict[str, Any]):
    """A dictionary whose entries are attributes, too.

    Example:
        >>> state = AttributeDict(model="a model", step=0)
        >>> state.step += 1
        >>> state["step"]
        1
    """

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {key!r}.") from None

    def __setattr__(self, key: str, val: Any) -> None:
        self[key] = val

    def __delattr__(self, item: str) -> None:
        del self[item]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)  # in this form, it can be loaded with `weights_only`

    def __repr__(self) -> str:
        width = max((len(str(key)) for key in self), default=0) + 3
        labels = {f'"{key}":': value for key, value in sorted(self.items(), key=lambda item: str(item[0]))}
        return "\n".join(f"{label:<{width}} {value}" for label, value in labels.items())
