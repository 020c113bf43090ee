"""Which samples of a dataloader this process sees, without building the dataloader anew."""

from __future__ import annotations

import copy
import os
from functools import partial
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from fabric_lite.utilities.data import has_iterable_dataset
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.samplers import DistributedSamplerWrapper
from fabric_lite.utilities.seed import pl_worker_init_function

# What samplers and streams that give each process its share call the number of processes, and their own.
_SHARES = (("num_replicas", "rank"), ("world_size", "rank"), ("num_processes", "process_index"))


def prepare_dataloader(
    dataloader: DataLoader[Any], sampler_kwargs: dict[str, Any] | None, rank: int
) -> DataLoader[Any]:
    """Give a dataloader the sampler and the worker seeds of this process.

    Args:
        dataloader: Any `DataLoader`, of any subclass. It stays as it is.
        sampler_kwargs: Arguments of `DistributedSampler`; None to keep the sampler that it has, as one process does.
        rank: Index of this process among all.

    Returns:
        The same object if nothing is to change, else a shallow copy of it.
    """
    changes: dict[str, Any] = {}
    if sampler_kwargs is not None and sampler_kwargs.get("num_replicas") != 1:
        if not has_iterable_dataset(dataloader):
            changes.update(_shard(dataloader, sampler_kwargs))
        elif rank == 0:
            _warn_of_copies(dataloader.dataset)
    if dataloader.worker_init_fn is None and int(os.environ.get("PL_SEED_WORKERS", "0")):
        # Processes that get the same samples, as those of a tensor-parallel group, draw the same numbers for them.
        share = rank if sampler_kwargs is None else sampler_kwargs.get("rank", rank)
        changes["worker_init_fn"] = partial(pl_worker_init_function, rank=share)
    return _copy_with(dataloader, changes) if changes else dataloader


def _warn_of_copies(dataset: object) -> None:
    """Say so if each of several processes would read the whole of a stream."""
    if not _is_sharded(dataset):
        rank_zero_warn(
            f"Each process reads the whole of the stream `{type(dataset).__name__}`. Yield a share of it in each, by"
            " `fabric.global_rank` and `fabric.world_size`; attributes `num_replicas` and `rank` of the dataset say"
            " that it does."
        )


def _copy_with(obj: Any, changes: dict[str, Any]) -> Any:
    """A shallow copy with other attributes."""
    copied = copy.copy(obj)
    if isinstance(copied, DataLoader):
        changes = {**changes, "_iterator": None}  # persistent workers belong to the original
    for name, value in changes.items():
        object.__setattr__(copied, name, value)  # that of `DataLoader` refuses a new sampler
    return copied


def _shard(dataloader: DataLoader[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The attributes with which a dataloader serves this process its share of the samples."""
    sampler, batch_sampler = dataloader.sampler, dataloader.batch_sampler
    if batch_sampler is not None:
        own = getattr(batch_sampler, "sampler", None)
        sampler = batch_sampler if own is None else own  # without one, what is shared is the batches
    if _is_sharded(sampler) or _is_sharded(batch_sampler):
        return {}
    kwargs = {
        "shuffle": type(sampler) is RandomSampler,
        "seed": int(os.environ.get("PL_GLOBAL_SEED", "0")),
        **kwargs,
    }
    # Torch's own samplers give way to torch's own way to share; one with a rule of its own keeps it.
    is_random = type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    if is_random or type(sampler) is SequentialSampler:
        share: DistributedSampler[Any] = DistributedSampler(dataloader.dataset, **kwargs)
    else:
        share = DistributedSamplerWrapper(sampler, **kwargs)
    if batch_sampler is None:
        return {"sampler": share}
    if sampler is batch_sampler:
        return {"batch_sampler": share}
    changes: dict[str, Any] = {"batch_sampler": _copy_with(batch_sampler, {"sampler": share})}
    # With a batch sampler of the user's own, torch leaves a sequential sampler here that nobody asks.
    return {**changes, "sampler": share} if type(batch_sampler) is BatchSampler else changes


def _is_sharded(sampler: object) -> bool:
    """Whether a sampler, or one inside of it, already gives each process its share."""
    while sampler is not None:
        if any(all(hasattr(sampler, name) for name in names) for names in _SHARES):
            return True
        inner = getattr(sampler, "sampler", None)
        sampler = inner if inner is not None else getattr(sampler, "batch_sampler", None)
    return False
