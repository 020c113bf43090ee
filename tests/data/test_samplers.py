"""Samplers and batch samplers of all kinds give each process its share, and none is sharded twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

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


# -- samplers of the user --------------------------------------------------------------------------------------------


class EveryOther(SequentialSampler):
    """An order of its own, in a subclass of one of torch's samplers."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, len(self.data_source), 2))

    def __len__(self) -> int:
        return len(self.data_source) // 2


def test_a_subclass_of_a_sampler_keeps_its_order(shares: Shares, samples: Samples) -> None:
    data = Numbers(8)
    loaders = shares(DataLoader(data, sampler=EveryOther(data)), 2)
    assert [samples(loader) for loader in loaders] == [[0, 4], [2, 6]]


@pytest.mark.parametrize(
    "make",
    [lambda: SubsetRandomSampler([1, 3, 5, 7]), lambda: WeightedRandomSampler([0, 1, 0, 1, 0, 1, 0, 1], 4)],
    ids=["subset", "weighted"],
)
def test_samplers_of_torch_keep_their_choice(shares: Shares, samples: Samples, make: Any) -> None:
    for loader in shares(DataLoader(Numbers(8), sampler=make()), 2):
        share = samples(loader)
        assert len(share) == 2
        assert set(share) <= {1, 3, 5, 7}


def test_a_sampler_without_a_length(shares: Shares) -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([0])

    with pytest.raises(TypeError, match=r"The sampler Endless has no length.* `setup_dataloaders"):
        shares(DataLoader(Numbers(8), sampler=Endless()), 2)


def test_random_samplers_with_a_number_of_their_own(shares: Shares, samples: Samples) -> None:
    """Torch draws as many samples as it was asked for, and the processes together do so, too."""
    own = DataLoader(Numbers(20), sampler=RandomSampler(Numbers(20), num_samples=6))
    assert [len(samples(loader)) for loader in shares(own, 2)] == [3, 3]


# -- samplers of batches ---------------------------------------------------------------------------------------------


class Buckets(BatchSampler):
    """Sorts within each batch; made with arguments of its own."""

    def __init__(self, order: Any, *, width: int) -> None:
        super().__init__(order, width, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield sorted(batch)


class PlainBuckets:
    """The same without a base class."""

    def __init__(self, order: Any) -> None:
        self.sampler = order

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        return iter([sorted(order[i : i + 2]) for i in range(0, len(order), 2)])

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / 2)


@pytest.mark.parametrize("make", [lambda order: Buckets(order, width=2), PlainBuckets], ids=["subclass", "own"])
def test_a_batch_sampler_of_the_users_own_makes_the_batches(shares: Shares, make: Any) -> None:
    own = DataLoader(Numbers(8), batch_sampler=make(Backwards(8)))
    loaders = shares(own, 2)
    assert [[x.tolist() for x in loader] for loader in loaders] == [[[5, 7], [1, 3]], [[4, 6], [0, 2]]]
    assert [type(loader.batch_sampler) for loader in loaders] == [type(own.batch_sampler)] * 2
    assert [len(loader) for loader in loaders] == [2, 2]
    assert [x.tolist() for x in own] == [[6, 7], [4, 5], [2, 3], [0, 1]]


@pytest.mark.parametrize("has_none", [False, True], ids=["no attribute", "None"])
def test_of_a_batch_sampler_without_a_sampler_each_process_gets_every_nth_batch(
    shares: Shares, samples: Samples, has_none: bool
) -> None:
    class Fixed:
        def __init__(self) -> None:
            self.epochs: list[int] = []
            if has_none:
                self.sampler = None

        def __iter__(self) -> Iterator[list[int]]:
            return iter([[0, 1], [2], [3]])

        def __len__(self) -> int:
            return 3

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    batches = Fixed()
    own = DataLoader(Numbers(4), batch_sampler=batches)  # type: ignore[arg-type]
    before = dict(vars(own))
    loaders = shares(own, 2)
    assert [[x.tolist() for x in loader] for loader in loaders] == [[[0, 1], [3]], [[2], [0, 1]]]
    assert [len(loader) for loader in loaders] == [2, 2]
    assert batches.epochs == [0, 0]
    assert vars(own) == before
    for loader in shares(own, 2, use_distributed_sampler=False):
        assert samples(loader) == [0, 1, 2, 3]


def test_a_batch_sampler_without_sampler_and_length(shares: Shares) -> None:
    class Endless:
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[0, 1], [2, 3]])

    with pytest.raises(TypeError, match=r"sampler Endless has no length.*Give it a.*use_distributed_sampler=False"):
        shares(DataLoader(Numbers(4), batch_sampler=Endless()), 2)  # type: ignore[arg-type]


# -- what shards already ---------------------------------------------------------------------------------------------


class OwnShare(Sampler[int]):
    """Gives each process its share, without being one of torch's."""

    def __init__(self, size: int, num_replicas: int, rank: int) -> None:
        self.size, self.num_replicas, self.rank = size, num_replicas, rank

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))


class PropertyShare(OwnShare):
    """The same, which asks somebody else for its rank each time."""

    num_replicas = property(lambda self: 2, lambda self, value: None)  # type: ignore[assignment]
    rank = property(lambda self: 1, lambda self, value: None)  # type: ignore[assignment]


class OtherNames(Sampler[int]):
    """As accelerate names them."""

    num_processes, process_index = 2, 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.process_index, 8, self.num_processes))

    def __len__(self) -> int:
        return 4


class SubclassShare(DistributedSampler[int]):
    pass


class BatchShare(BatchSampler):
    """Shards by whole batches."""

    def __init__(self, sampler: Any, num_replicas: int, rank: int) -> None:
        super().__init__(sampler, 2, drop_last=False)
        self.num_replicas, self.rank = num_replicas, rank

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(super().__iter__())[self.rank :: self.num_replicas])


class Shuffled(Sampler[int]):
    """Goes around another sampler."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


DATA = Numbers(8)
SHARDED: dict[str, dict[str, Any]] = {
    "torch": {"sampler": DistributedSampler(DATA, 2, 1, shuffle=False)},
    "subclass": {"sampler": SubclassShare(DATA, 2, 1, shuffle=False)},
    "own": {"sampler": OwnShare(8, 2, 1)},
    "by other names": {"sampler": OtherNames()},
    "own with properties": {"sampler": PropertyShare(8, 2, 1)},
    "inside of a batch sampler": {"batch_sampler": BatchSampler(OwnShare(8, 2, 1), 2, False)},
    "inside of two": {"sampler": Shuffled(Shuffled(OwnShare(8, 2, 1)))},
    "inside of one in a batch sampler": {"batch_sampler": BatchSampler(Shuffled(OwnShare(8, 2, 1)), 2, False)},
}


@pytest.mark.parametrize("what", SHARDED)
def test_what_shards_already_is_not_sharded_twice(shares: Shares, samples: Samples, what: str) -> None:
    own = DataLoader(DATA, **SHARDED[what])
    for loader in shares(own, 2):
        assert loader._dataloader is own
        assert samples(loader) == [1, 3, 5, 7]


def test_batches_that_are_sharded_already(shares: Shares, samples: Samples) -> None:
    own = DataLoader(DATA, batch_sampler=BatchShare(SequentialSampler(DATA), 2, 1))
    assert [samples(loader) for loader in shares(own, 2)] == [[2, 3, 6, 7]] * 2


def test_a_share_of_torch_is_told_the_epoch(shares: Shares, samples: Samples) -> None:
    sampler = DistributedSampler(DATA, 2, 0)
    (loader, _) = shares(DataLoader(DATA, sampler=sampler), 2)
    orders = [samples(loader) for _ in range(2)]
    assert orders[0] != orders[1]
    assert sampler.epoch == 1
