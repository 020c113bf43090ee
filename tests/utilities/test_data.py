from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, SequentialSampler

from fabric_lite.utilities.data import (
    AttributeDict,
    _num_cpus_available,
    _set_sampler_epoch,
    has_iterable_dataset,
    has_len,
    sized_len,
    suggested_max_num_workers,
)
from fabric_lite.utilities.distributed import DistributedSamplerWrapper


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class SizedStream(Stream):
    def __len__(self) -> int:
        return 3


class Sampler:
    """Unhashable, and counts."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, sampler: Any = None) -> None:
        self.epochs: list[int] = []
        if sampler is not None:
            self.sampler = sampler

    def __eq__(self, other: object) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter([0, 1])

    def __len__(self) -> int:
        return 2

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_recognises_iterable_datasets() -> None:
    assert has_iterable_dataset(DataLoader(Stream()))
    assert not has_iterable_dataset(DataLoader(Numbers()))
    assert not has_iterable_dataset([1, 2])


def test_lengths() -> None:
    class NoLength:
        def __len__(self) -> int:
            raise NotImplementedError

    assert sized_len([1, 2]) == 2
    assert sized_len(DataLoader(Numbers(), batch_size=4)) == 2
    for obj in (iter([]), DataLoader(Stream()), NoLength()):
        assert sized_len(obj) is None
        assert not has_len(obj)
    assert has_len(DataLoader(Numbers()))


def test_warns_about_doubtful_lengths() -> None:
    with pytest.warns(UserWarning, match=r"The length of `list` is 0\. Is this what you meant\?"):
        assert has_len([])
    with pytest.warns(UserWarning, match=r"`IterableDataset` of `DataLoader` defines `__len__`.*get_worker_info"):
        assert has_len(DataLoader(SizedStream()))


def test_set_epoch_reaches_samplers_however_deep() -> None:
    innermost = Sampler()
    batches = Sampler(Sampler(innermost))
    _set_sampler_epoch(DataLoader(Numbers(), batch_sampler=batches), 3)
    assert batches.epochs == batches.sampler.epochs == innermost.epochs == [3]


def test_set_epoch_reaches_each_sampler_once() -> None:
    sampler = Sampler()
    loader = DataLoader(Numbers(), sampler=sampler, batch_size=2)  # also in the batch sampler that the loader makes
    _set_sampler_epoch(loader, 1)
    assert sampler.epochs == [1]
    sampler.sampler = sampler
    _set_sampler_epoch(loader, 2)
    assert sampler.epochs == [1, 2]


def test_set_epoch_reaches_distributed_samplers_and_datasets() -> None:
    sampler = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    _set_sampler_epoch(DataLoader(Numbers(), batch_sampler=BatchSampler(sampler, 2, drop_last=False)), 4)
    assert sampler.epoch == 4
    inner = Sampler()
    _set_sampler_epoch(DataLoader(Numbers(), sampler=DistributedSamplerWrapper(inner, num_replicas=2, rank=0)), 5)
    assert inner.epochs == [5]
    stream = Stream()
    _set_sampler_epoch(DataLoader(stream), 6)
    assert stream.epochs == [6]


def test_set_epoch_is_optional() -> None:
    _set_sampler_epoch(DataLoader(Numbers(), sampler=SequentialSampler(Numbers())), 1)
    _set_sampler_epoch([1, 2], 1)
    sampler = Sampler()
    sampler.set_epoch = 3  # type: ignore[assignment,method-assign]
    _set_sampler_epoch(DataLoader(Numbers(), sampler=sampler), 1)


@pytest.mark.parametrize(("cpus", "processes", "expected"), [(8, 1, 7), (8, 2, 3), (8, 8, 1), (1, 1, 1), (2, 5, 1)])
def test_suggests_workers(cpus: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert suggested_max_num_workers(processes) == expected


def test_suggests_workers_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _num_cpus_available() == 1


def test_suggests_nothing_for_no_process() -> None:
    with pytest.raises(
        ValueError, match=r"`local_world_size` must be at least 1, got 0\. Pass the number of processes"
    ):
        suggested_max_num_workers(0)


def test_attribute_dict() -> None:
    state = AttributeDict(model=1, step=0)
    state.step += 1
    state.new = "x"
    del state.model
    assert state == {"step": 1, "new": "x"}
    assert state["step"] == state.step == 1
    assert isinstance(state, dict)
    with pytest.raises(AttributeError, match=r"'AttributeDict' object has no attribute 'model'"):
        _ = state.model
    with pytest.raises(KeyError, match="model"):
        del state.model


def test_attribute_dict_can_be_copied() -> None:
    state = AttributeDict(x=torch.ones(1))
    for other in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert type(other) is AttributeDict
        assert other.x == 1


def test_attribute_dict_as_text() -> None:
    assert repr(AttributeDict(step=1, model="m")) == '"model": m\n"step":  1'
    assert repr(AttributeDict({1: "a", "b": 2})) == '"1": a\n"b": 2'
    assert repr(AttributeDict()) == ""
