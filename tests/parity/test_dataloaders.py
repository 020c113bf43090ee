"""The same batches, in the same order and of the same types."""

from __future__ import annotations

import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

import fabric_lite as ours

LIBRARIES = (theirs, ours)
Frozen = Callable[[Any], Any]
Pair = namedtuple("Pair", "x y")


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, index**2])


class Noise(Numbers):
    """Draws from all three generators, where it is run."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(7))


class Epochs(Sampler[int]):
    """Shuffles by the number of the epoch, and notes what it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(random.Random(self.told[-1] if self.told else -1).sample(range(10), 10))

    def __len__(self) -> int:
        return 10


class Halves(BatchSampler):
    """A batch sampler with a constructor of its own."""

    def __init__(self, data: Any) -> None:
        super().__init__(RandomSampler(data), batch_size=5, drop_last=False)


class Loader(DataLoader[Any]):
    """A loader with a constructor of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(Numbers(), batch_size=number)
        self.number = number


@dataclass
class Sample:
    x: Tensor
    name: str


class Image:
    """Knows how to move itself."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def to(self, device: Any, **options: Any) -> Image:
        return Image(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other.device == self.device

    __hash__ = None  # type: ignore[assignment]


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(Numbers(), batch_size=3),
    "one by one": lambda: DataLoader(Numbers(), batch_size=None),
    "without the rest": lambda: DataLoader(Numbers(), batch_size=3, drop_last=True),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=2, shuffle=True),
    "shuffled by a generator": lambda: DataLoader(
        Numbers(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "drawn": lambda: DataLoader(Numbers(), sampler=RandomSampler(Numbers(), replacement=True, num_samples=6)),
    "by epoch": lambda: DataLoader(Numbers(), sampler=Epochs()),
    "batches of a sampler": lambda: DataLoader(Numbers(), batch_sampler=BatchSampler(Epochs(), 4, drop_last=True)),
    "batches of another kind": lambda: DataLoader(Numbers(), batch_sampler=Halves(Numbers())),
    "lists as batches": lambda: DataLoader(Numbers(), batch_sampler=[[1, 2], [5], [0, 9, 4]]),
    "a stream": lambda: DataLoader(Stream(), batch_size=3),
    "a list": lambda: DataLoader([{"a": 1.5, "b": "x"}, {"a": 2.5, "b": "y"}], batch_size=2),  # type: ignore[arg-type]
    "tensors": lambda: DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=4, shuffle=True),
    "collated otherwise": lambda: DataLoader(Numbers(), batch_size=4, collate_fn=tuple),
    "a loader of one's own": lambda: Loader(4),
    "empty": lambda: DataLoader([]),
}


def batches(library: ModuleType, make: Callable[[], Any], epochs: int = 2, **options: Any) -> list[Any]:
    library.seed_everything(4, verbose=False, workers=True)
    loader = library.Fabric(accelerator="cpu", devices=1).setup_dataloaders(make(), **options)
    return [list(loader) for _ in range(epochs)]


@pytest.mark.parametrize("options", [{}, {"use_distributed_sampler": False}, {"move_to_device": False}])
@pytest.mark.parametrize("name", LOADERS)
def test_the_same_batches_in_the_same_order(name: str, options: dict[str, bool], frozen: Frozen) -> None:
    their, our = (batches(library, LOADERS[name], **options) for library in LIBRARIES)
    assert frozen(our) == frozen(their)


@pytest.mark.parametrize("name", LOADERS)
def test_it_looks_like_the_loader_that_was_passed(name: str) -> None:
    results = []
    for library in LIBRARIES:
        loader = LOADERS[name]()
        wrapped = library.Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader)
        names = "batch_size drop_last num_workers pin_memory timeout prefetch_factor persistent_workers".split()
        seen = [getattr(wrapped, name) for name in names]
        seen += [wrapped.dataset is loader.dataset, wrapped.sampler is loader.sampler, wrapped.device]
        seen += [wrapped.batch_sampler is loader.batch_sampler, wrapped.collate_fn is loader.collate_fn]
        seen += [
            length(wrapped),
            type(wrapped).__name__,
            type(wrapped._dataloader).__name__,
            hasattr(wrapped, "number"),
        ]
        results.append(seen)
    assert results[0] == results[1]


def length(loader: Any) -> int | str:
    try:
        return len(loader)
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_are_seeded_alike(shuffle: bool, persistent: bool, frozen: Frozen) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(Noise(), batch_size=3, num_workers=2, shuffle=shuffle, persistent_workers=persistent)

    their, our = (batches(library, make) for library in LIBRARIES)
    assert frozen(our) == frozen(their)
    drawn = [value for batch in our[0] for value in batch[:, 0].tolist()]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("seeded", [True, False])
def test_an_initialization_of_workers_is_added_where_there_is_none(seeded: bool) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False, workers=seeded)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        plain = fabric.setup_dataloaders(DataLoader(Numbers()))
        own = fabric.setup_dataloaders(DataLoader(Numbers(), worker_init_fn=print))
        results.append([plain.worker_init_fn is not None, own.worker_init_fn is print])
    assert results[0] == results[1] == [seeded, True]


@pytest.mark.parametrize("nested", [False, True])
def test_a_sampler_is_told_the_epoch(nested: bool) -> None:
    results = []
    for library in LIBRARIES:
        sampler = Epochs()
        options: Any = {"batch_sampler": BatchSampler(sampler, 2, drop_last=False)} if nested else {"sampler": sampler}
        loader = library.Fabric(accelerator="cpu", devices=1).setup_dataloaders(DataLoader(Numbers(), **options))
        for _ in range(3):
            list(loader)
        next(iter(loader))
        results.append(sampler.told)
    assert results[0] == results[1] == [0, 1, 2, 3]


BATCHES: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.ones(2),
    "list": lambda: [torch.ones(1), 2, "x", None],
    "tuple": lambda: (torch.ones(1), (torch.zeros(1),)),
    "named tuple": lambda: Pair(torch.ones(1), "y"),
    "dict": lambda: {"a": torch.ones(1), "b": {"c": [torch.ones(2)]}},
    "ordered dict": lambda: OrderedDict(b=torch.ones(1), a=1),
    "object with a `to`": lambda: [Image(), {"x": Image()}],
    "array": lambda: [3.5, np.float32(2), {1, 2}, b"x"],
    "packed sequence": lambda: torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)]),
}


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("name", BATCHES)
def test_moved_batches_are_of_the_same_types(name: str, move: bool, frozen: Frozen) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader([0], batch_size=None, collate_fn=lambda _: BATCHES[name]())  # type: ignore[arg-type]

    their, our = (batches(library, make, 1, move_to_device=move)[0][0] for library in LIBRARIES)
    assert type(our) is type(their)
    assert frozen(our) == frozen(their)


def test_dataclasses_are_moved() -> None:
    sample = Sample(torch.ones(1), "a")
    for library in LIBRARIES:
        loader = DataLoader([sample], batch_size=None)  # type: ignore[arg-type]
        batch = next(iter(library.Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader)))
        assert isinstance(batch, Sample)
        assert batch.x.equal(sample.x)


def test_several_at_once() -> None:
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        several = fabric.setup_dataloaders(DataLoader(Numbers()), DataLoader(Stream()))
        assert isinstance(several, list)
        assert [library.is_wrapped(each) for each in several] == [True, True]
        assert library.is_wrapped(fabric._setup_dataloader(DataLoader(Numbers())))
        assert not isinstance(several[0], DataLoader)
