"""A dataloader that was set up yields its batches on the device, and is the user's dataloader in all else."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler

from fabric_lite import Fabric, is_wrapped
from fabric_lite.wrappers import _FabricDataLoader

META = torch.device("meta")


class Own(DataLoader[Any]):
    """A user's loader."""

    kind = "own"

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name


class Counting(Sampler[int]):
    """Remembers the epochs that it was told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))

    def __len__(self) -> int:
        return 4

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Movable:
    """Has a `to` of its own, and is no tensor."""

    def __init__(self, device: Any = "nowhere") -> None:
        self.device = device
        self.hidden = torch.ones(1)

    def to(self, device: Any) -> Movable:
        return Movable(device)


@dataclass
class Batch:
    x: Tensor
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FrozenBatch:
    x: Tensor
    inner: Batch


class NamedBatch(NamedTuple):
    x: Tensor
    y: Any


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def pair(**kwargs: Any) -> tuple[Any, Own]:
    own = Own(list(range(4)), batch_size=2, **kwargs)
    return fabric().setup_dataloaders(own), own


def first(make: Callable[[], Any], device: torch.device | None = META) -> Any:
    """The first batch of a loader whose dataset holds what is made."""
    (batch,) = _FabricDataLoader(DataLoader([0], batch_size=None, collate_fn=lambda _: make()), device=device)
    return batch


# -- attributes ------------------------------------------------------------------------------------------------------


def test_attributes_are_read_from_the_loader() -> None:
    loader, own = pair(num_workers=0, drop_last=True)
    assert len(loader) == len(own) == 2
    for name in ("dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "collate_fn", "kind", "num_workers"):
        assert getattr(loader, name) is getattr(own, name)
    assert is_wrapped(loader)
    assert loader.device == torch.device("cpu")


def test_attributes_are_written_to_the_loader() -> None:
    loader, own = pair()
    loader.new, loader.name, loader.timeout = 3, "name", 1.5
    assert (own.new, own.name, own.timeout) == (3, "name", 1.5)  # type: ignore[attr-defined]
    own.new = 4  # type: ignore[attr-defined]
    assert loader.new == 4
    with pytest.raises(ValueError, match="batch_size attribute should not be set after Own is initialized"):
        loader.batch_size = 3


def test_attributes_are_deleted_from_the_loader() -> None:
    loader, own = pair()
    own.new = 1  # type: ignore[attr-defined]
    del loader.new
    assert not hasattr(own, "new")
    assert not hasattr(loader, "new")


def test_a_missing_attribute_is_missing_from_the_users_class() -> None:
    loader, _ = pair()
    assert not hasattr(loader, "missing")
    with pytest.raises(AttributeError, match="'Own' object has no attribute 'missing'"):
        _ = loader.missing
    with pytest.raises(AttributeError, match=r"'Own' object has no attribute 'missing'|^missing$"):
        del loader.missing


def test_the_length_is_that_of_the_loader() -> None:
    loader = fabric().setup_dataloaders(DataLoader(Stream()))
    with pytest.raises(TypeError, match=r"'Stream' has no len\(\)"):
        len(loader)
    assert [int(x) for x in loader] == [0, 1, 2]


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_copies_are_loaders(copier: Callable[[Any], Any]) -> None:
    loader, _ = pair()
    assert [x.tolist() for x in loader] == [[0, 1], [2, 3]]
    copied = copier(loader)
    assert is_wrapped(copied)
    assert copied.device == loader.device
    assert [x.tolist() for x in copied] == [[0, 1], [2, 3]]
    assert copied._num_iter_calls == 2
    assert loader._num_iter_calls == 1


# -- the users own loader --------------------------------------------------------------------------------------------


def test_on_one_process_the_loader_and_its_sampler_are_the_users() -> None:
    for kwargs in ({}, {"shuffle": True}, {"sampler": Counting()}, {"num_workers": 2}):
        own = Own(list(range(4)), **kwargs)  # type: ignore[arg-type]
        before = dict(vars(own))
        loader = fabric().setup_dataloaders(own)
        assert loader._dataloader is own
        assert loader.sampler is before["sampler"]
        assert vars(own) == before
        assert type(own) is Own


def test_the_epoch_is_told_to_the_sampler_and_the_dataset() -> None:
    sampler = Counting()
    loader = fabric().setup_dataloaders(DataLoader(list(range(4)), sampler=sampler))
    assert len(list(loader)) == 4
    iter(loader)  # not begun: it counts from the first batch on
    assert next(iter(loader)) == 0
    assert sampler.epochs == [0, 1]


def test_shuffling_is_that_of_the_user() -> None:
    orders = []
    for set_up in (False, True):
        loader: Any = DataLoader(
            range(20), sampler=RandomSampler(range(20), generator=torch.Generator().manual_seed(3))
        )  # type: ignore[arg-type]
        loader = fabric().setup_dataloaders(loader) if set_up else loader
        orders.append([[int(x) for x in loader] for _ in range(2)])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_several_loaders_come_back_in_order() -> None:
    given = [DataLoader([n]) for n in range(3)]
    loaders = fabric().setup_dataloaders(*given)
    assert isinstance(loaders, list)
    assert [loader._dataloader for loader in loaders] == given


def test_nested_and_abandoned_iterations() -> None:
    loader = fabric().setup_dataloaders(DataLoader([1, 2]))
    assert [(int(a), int(b)) for a in loader for b in loader] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for _ in loader:
        break
    assert len(list(loader)) == 2


# -- where batches go ------------------------------------------------------------------------------------------------


NESTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda: torch.ones(2), lambda b: b),
    "list": (lambda: [1, torch.ones(2)], lambda b: b[1]),
    "tuple": (lambda: (torch.ones(2), "text"), lambda b: b[0]),
    "dict": (lambda: {"x": torch.ones(2), "n": None}, lambda b: b["x"]),
    "ordered dict": (lambda: OrderedDict(x=torch.ones(2)), lambda b: b["x"]),
    "default dict": (lambda: defaultdict(list, x=torch.ones(2)), lambda b: b["x"]),
    "user dict": (lambda: UserDict(x=torch.ones(2)), lambda b: b["x"]),
    "named tuple": (lambda: NamedBatch(torch.ones(2), 3), lambda b: b.x),
    "dataclass": (lambda: Batch(torch.ones(2), ["a"]), lambda b: b.x),
    "frozen dataclass": (lambda: FrozenBatch(torch.ones(2), Batch(torch.ones(1))), lambda b: b.inner.x),
    "deep": (
        lambda: [{"a": (NamedBatch(torch.ones(2), [Batch(torch.ones(2))]),)}],
        lambda b: b[0]["a"][0].y[0].x,
    ),
    "packed sequence": (lambda: nn.utils.rnn.pack_sequence([torch.ones(2)]), lambda b: b.data),
}


@pytest.mark.parametrize("kind", NESTINGS)
def test_batches_move_whatever_they_are(kind: str) -> None:
    make, tensor_of = NESTINGS[kind]
    held = make()
    batch = first(lambda: held)
    assert type(batch) is type(held)
    assert tensor_of(batch).is_meta
    assert not tensor_of(held).is_meta  # what the dataset may hold on to stays as it was


@pytest.mark.parametrize("kind", NESTINGS)
def test_batches_stay_where_nobody_moves_them(kind: str) -> None:
    held = NESTINGS[kind][0]()
    assert first(lambda: held, device=None) is held


def test_a_method_to_is_respected() -> None:
    batch = first(lambda: [Movable(), {"x": Movable()}])
    assert batch[0].device == batch[1]["x"].device == META
    assert not batch[0].hidden.is_meta


@pytest.mark.parametrize("value", [3, 2.5, "text", b"bytes", None, True, {1, 2}, range(3)])
def test_what_cannot_move_comes_as_it_is(value: Any) -> None:
    assert first(lambda: value) == value
    assert type(first(lambda: value)) is type(value)


def test_the_device_of_fabric_and_leaving_it_out() -> None:
    assert fabric().setup_dataloaders(DataLoader([1])).device == torch.device("cpu")
    loader = fabric().setup_dataloaders(DataLoader([1]), move_to_device=False)
    assert loader.device is None
    assert list(loader) == [1]


# -- workers ---------------------------------------------------------------------------------------------------------


def test_the_seeds_of_workers_are_set_on_a_copy() -> None:
    Fabric.seed_everything(3, workers=True, verbose=False)
    sampler = Counting()
    own = Own(list(range(4)), sampler=sampler)
    before = dict(vars(own))
    loader = fabric().setup_dataloaders(own)
    assert vars(own) == before
    assert own.worker_init_fn is None
    assert loader.worker_init_fn.keywords == {"rank": 0}
    assert type(loader._dataloader) is Own
    assert loader.sampler is sampler
    assert list(loader) == [0, 1, 2, 3]


def test_a_worker_function_of_the_user_stays() -> None:
    Fabric.seed_everything(3, workers=True, verbose=False)
    own = DataLoader([1], worker_init_fn=print)
    loader = fabric().setup_dataloaders(own)
    assert loader._dataloader is own
    assert loader.worker_init_fn is print


def test_without_seeded_workers_there_is_no_copy() -> None:
    Fabric.seed_everything(3, workers=False, verbose=False)
    own = DataLoader([1])
    assert fabric().setup_dataloaders(own)._dataloader is own


def test_persistent_workers_belong_to_one_loader() -> None:
    Fabric.seed_everything(3, workers=True, verbose=False)
    own: DataLoader[Any] = DataLoader(range(4), num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
    assert len(list(own)) == 4
    workers = own._iterator
    assert workers is not None
    loader = fabric().setup_dataloaders(own)
    assert loader._dataloader is not own
    assert loader._iterator is None
    assert len(list(loader)) == 4
    assert own._iterator is workers
    assert loader._iterator is not workers
    for each in (workers, loader._iterator):
        each._shutdown_workers()
