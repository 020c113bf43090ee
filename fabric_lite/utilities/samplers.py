"""Samplers of any kind, for several processes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DistributedSampler, Sampler

from fabric_lite.utilities.data import _set_sampler_epoch, sized_len
from fabric_lite.utilities.imports import _NUMPY_AVAILABLE
from fabric_lite.utilities.seed import _collect_rng_states, _set_rng_states


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """Makes any sampler one for several processes: each gets its share of the indices that the sampler yields.

    The order is that of the sampler. What it draws from the global generators of Python, NumPy and torch it draws alike
    in all processes, by `seed` and epoch, so that the shares belong to one order; one with a generator of its own has
    to be seeded alike. With `shuffle` (which is on by default, as in `DistributedSampler`) the order is shuffled once
    more.

    Args:
        sampler: A sampler or other iterable, with a length.
        *args: For `torch.utils.data.DistributedSampler`.
        **kwargs: For `torch.utils.data.DistributedSampler`.

    Raises:
        TypeError: If the sampler has no length.
    """

    def __init__(self, sampler: Sampler[Any] | Iterable[Any], *args: Any, **kwargs: Any) -> None:
        if sized_len(sampler) is None:
            raise TypeError(
                f"The sampler {type(sampler).__name__} has no length, so it cannot be split between processes. Give it"
                " a `__len__`, or split it yourself and write `setup_dataloaders(…, use_distributed_sampler=False)`."
            )
        super().__init__(sampler, *args, **kwargs)  # type: ignore[arg-type]  # of a dataset, only the length is used
        self._sampler: Any = sampler
        self._draws = 0  # in this epoch

    def __iter__(self) -> Iterator[Any]:
        with _seeded(f"{self.seed} {self.epoch} {self._draws}"):
            indices = list(islice(self._sampler, len(self._sampler)))
        self._draws += 1
        return (indices[i] for i in super().__iter__())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here and on the wrapped sampler and those inside of it that have the method.

        Args:
            epoch: The number of the epoch that follows.
        """
        super().set_epoch(epoch)
        self._draws = 0
        _set_sampler_epoch(SimpleNamespace(sampler=self._sampler), epoch)


@contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Under it, the global generators of the CPU begin at what a text says; after it, they are where they were."""
    states = _collect_rng_states(include_cuda=False)
    seed = random.Random(text).getrandbits(32)
    try:
        random.seed(seed)
        torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which seeds all devices
        if _NUMPY_AVAILABLE:
            import numpy as np

            np.random.seed(seed)
        yield
    finally:
        _set_rng_states(states)
