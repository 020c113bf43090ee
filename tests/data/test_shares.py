"""Each process sees its share of the samples, of any loader, which stays as it was."""

from __future__ import annotations

import math
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from fabric_lite import Fabric

Shares = Callable[..., list[Any]]
Samples = Callable[[Any], list[int]]


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Backwards(Sampler[int]):
    """Knows nothing of processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size - 1, -1, -1))

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Random(Sampler[int]):
    """A random order by one of the global generators."""

    def __init__(self, size: int, draws: str) -> None:
        self.size, self.draws = size, draws

    def __iter__(self) -> Iterator[int]:
        if self.draws == "torch":
            return iter(torch.randperm(self.size).tolist())
        if self.draws == "numpy":
            return iter(np.random.permutation(self.size).tolist())
        return iter(random.sample(range(self.size), self.size))

    def __len__(self) -> int:
        return self.size


class Around(Sampler[int]):
    """Goes around another sampler."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


# -- the rule --------------------------------------------------------------------------------------------------------

SIZES = st.integers(1, 40)
WORLDS = st.integers(2, 5)
BATCHES = st.integers(1, 6)


@given(size=SIZES, world=WORLDS, batch=BATCHES, drop=st.booleans(), shuffle=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_each_process_gets_what_a_distributed_sampler_would_give_it(
    shares: Shares, size: int, world: int, batch: int, drop: bool, shuffle: bool, seed: int
) -> None:
    Fabric.seed_everything(seed, workers=False, verbose=False)
    data = Numbers(size)
    own = DataLoader(data, batch_size=batch, drop_last=drop, shuffle=shuffle)
    for rank, loader in enumerate(shares(own, world)):
        sampler = DistributedSampler(data, world, rank, shuffle=shuffle, seed=seed)
        plain = DataLoader(data, batch_size=batch, drop_last=drop, sampler=sampler)
        assert len(loader) == len(plain)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            assert [x.tolist() for x in loader] == [x.tolist() for x in plain]


@given(size=SIZES, world=WORLDS, batch=BATCHES, drop=st.booleans(), shuffle=st.booleans())
@settings(max_examples=60)
def test_shares_are_disjoint_and_complete(
    shares: Shares, samples: Samples, size: int, world: int, batch: int, drop: bool, shuffle: bool
) -> None:
    own = DataLoader(Numbers(size), batch_size=batch, drop_last=drop, shuffle=shuffle)
    loaders = shares(own, world)
    for _ in range(2):
        each = [samples(loader) for loader in loaders]
        assert len({len(share) for share in each}) == 1  # nobody waits for a batch that does not come
        seen = Counter(x for share in each for x in share)
        if not drop:
            assert set(seen) == set(range(size))
            assert sum(seen.values()) == world * math.ceil(size / world)
        if size % world == 0:
            assert max(seen.values(), default=1) == 1


@given(size=st.integers(2, 30), world=WORLDS, batch=BATCHES, drop=st.booleans())
@settings(max_examples=30)
def test_the_order_of_a_sampler_is_dealt_out_in_turn(
    shares: Shares, samples: Samples, size: int, world: int, batch: int, drop: bool
) -> None:
    order = list(range(size))[::-1]
    own = DataLoader(Numbers(size), batch_size=batch, drop_last=drop, sampler=Backwards(size))
    padded = order + order * world
    for rank, loader in enumerate(shares(own, world)):
        expected = padded[rank : world * math.ceil(size / world) : world]
        assert samples(loader) == (expected[: len(expected) // batch * batch] if drop else expected)


@given(
    size=st.integers(2, 30), world=WORLDS, draws=st.sampled_from(["torch", "numpy", "python"]), epoch=st.integers(0, 3)
)
@settings(max_examples=30)
def test_a_random_sampler_draws_alike_in_all_processes(
    shares: Shares, samples: Samples, size: int, world: int, draws: str, epoch: int
) -> None:
    """Whatever the generators of the processes say, the shares are those of one order."""
    each = []
    for loader in shares(DataLoader(Numbers(size), sampler=Random(size, draws)), world):
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
        for _ in range(epoch):
            samples(loader)
        each.append(list(loader.sampler))
        assert torch.equal(torch.get_rng_state(), states[0]) or epoch
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index, union-attr]
        torch.rand(1), random.random(), np.random.rand()  # the processes have nothing in common
    assert {x for share in each for x in share} == set(range(size))
    assert sum(map(len, each)) == world * math.ceil(size / world)


# -- seeds and epochs ------------------------------------------------------------------------------------------------


def test_the_seed_decides(shares: Shares, samples: Samples) -> None:
    orders = []
    for seed in (1, 1, 2):
        Fabric.seed_everything(seed, workers=False, verbose=False)
        orders.append([samples(loader) for loader in shares(DataLoader(Numbers(30), shuffle=True), 2)])
    assert orders[0] == orders[1] != orders[2]


def test_each_epoch_is_shuffled_anew_and_alike_on_all(shares: Shares, samples: Samples) -> None:
    loaders = shares(DataLoader(Numbers(30), shuffle=True), 2)
    epochs = [[samples(loader) for loader in loaders] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for each in epochs:
        assert sorted(each[0] + each[1]) == list(range(30))


def test_the_epoch_reaches_through_wrappers(shares: Shares, samples: Samples) -> None:
    inner = Backwards(4)
    loader, _ = shares(DataLoader(Numbers(4), batch_sampler=BatchSampler(Around(inner), 2, False)), 2)
    for _ in range(2):
        samples(loader)
    assert loader.batch_sampler.sampler.epoch == 1
    assert inner.epochs == [0, 1]


# -- what is not touched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"shuffle": True},
        {"sampler": Backwards(6)},
        {"batch_sampler": BatchSampler(Backwards(6), 2, False)},
        {"batch_size": None},
        {"num_workers": 2, "persistent_workers": True},
    ],
    ids=lambda given: "-".join(given) or "plain",
)
def test_the_users_loader_stays_as_it_was(shares: Shares, kwargs: dict[str, Any]) -> None:
    own = DataLoader(Numbers(6), **kwargs)
    before, batch_sampler = dict(vars(own)), dict(vars(own.batch_sampler or object))
    for loader in shares(own, 2):
        assert loader._dataloader is not own
        assert loader._iterator is None
    assert vars(own) == before
    assert dict(vars(own.batch_sampler or object)) == batch_sampler
    assert type(own) is DataLoader


def test_no_share_where_the_user_says_so(shares: Shares, samples: Samples) -> None:
    own = DataLoader(Numbers(4))
    for loader in shares(own, 2, use_distributed_sampler=False):
        assert loader._dataloader is own
        assert samples(loader) == [0, 1, 2, 3]


def test_the_users_loader_still_yields_all(shares: Shares, samples: Samples) -> None:
    own = DataLoader(Numbers(5))
    assert [samples(loader) for loader in shares(own, 2)] == [[0, 2, 4], [1, 3, 0]]
    assert samples(own) == [0, 1, 2, 3, 4]


# -- subclasses of the loader ----------------------------------------------------------------------------------------


class RequiredArguments(DataLoader[Any]):
    def __init__(self, path: str, size: int, *, flavour: str) -> None:
        super().__init__(Numbers(size), batch_size=2)
        self.flavour = flavour


class OtherNames(DataLoader[Any]):
    def __init__(self, things: Any, how_many: int) -> None:
        super().__init__(things, how_many)


class Counted(DataLoader[Any]):
    """Does something around each batch."""

    batches = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.batches += 1
            yield batch


class Strict(DataLoader[Any]):
    def __init__(self) -> None:
        super().__init__(Numbers(6), batch_size=2)
        self.made = True

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("made"):
            raise AttributeError(f"{name} is set on a loader that is not to change")
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    "own",
    [
        RequiredArguments("path", 6, flavour="salty"),
        OtherNames(Numbers(6), 2),
        Counted(Numbers(6), batch_size=2),
        Strict(),
    ],
    ids=lambda own: type(own).__name__,
)
def test_a_subclass_with_any_constructor(shares: Shares, own: DataLoader[Any]) -> None:
    loaders = shares(own, 2)
    assert [type(loader._dataloader) for loader in loaders] == [type(own)] * 2
    assert [[x.tolist() for x in loader] for loader in loaders] == [[[0, 2], [4]], [[1, 3], [5]]]
    assert getattr(loaders[0], "flavour", "salty") == "salty"
    assert getattr(loaders[0], "batches", 2) == 2
    assert getattr(own, "batches", 0) == 0


def test_a_share_can_be_pickled(shares: Shares, samples: Samples) -> None:
    for loader in shares(DataLoader(Numbers(6), shuffle=True), 2):
        assert samples(pickle.loads(pickle.dumps(loader))) == samples(loader)


def test_one_process_keeps_the_sampler_of_the_user(shares: Shares, samples: Samples) -> None:
    for own in (DataLoader(Numbers(6), shuffle=True), DataLoader(Numbers(6), sampler=Backwards(6))):
        (loader,) = shares(own, 1)
        assert loader._dataloader is own


def test_without_batches(shares: Shares, samples: Samples) -> None:
    assert [samples(loader) for loader in shares(DataLoader(Numbers(4), batch_size=None), 2)] == [[0, 2], [1, 3]]


# -- streams ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset[int]):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class ShardedStream(Stream):
    """Takes care of the processes itself."""

    num_replicas, rank = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.num_replicas, self.rank = 2, 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, 4, self.num_replicas))


@pytest.mark.filterwarnings("ignore:.*Stream")
def test_a_stream_comes_as_it_is(shares: Shares) -> None:
    own = DataLoader(Stream(), batch_size=2)
    before = dict(vars(own))
    for loader in shares(own, 2):
        assert loader._dataloader is own
        assert [x.tolist() for x in loader] == [[0, 1], [2, 3]]
    assert vars(own) == before
    assert own.dataset.epochs == [0, 0]  # type: ignore[attr-defined]


def test_a_stream_that_all_processes_would_read_whole_is_one_warning(shares: Shares) -> None:
    own = DataLoader(Stream())
    with pytest.warns(UserWarning, match="`Stream`") as caught:
        shares(own, 2)
    assert len(caught) == 1  # of the first process alone, and once


def test_no_warning_where_a_stream_is_read_once(shares: Shares) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shares(DataLoader(Stream()), 1)
        shares(DataLoader(Stream()), 2, use_distributed_sampler=False)
        shares(DataLoader(ShardedStream()), 2)
