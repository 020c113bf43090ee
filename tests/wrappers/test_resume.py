"""A dataloader goes on in the middle of an epoch, in another process, with the batches that it would have yielded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from fabric_lite import Fabric
from fabric_lite.data import prepare_dataloader
from fabric_lite.utilities.seed import RNGState

Run = tuple[list[Any], dict[str, Any] | None]
SAMPLES = 11


class Numbers(Dataset):
    """Counts what is loaded; each sample has a random part, as augmentations have."""

    loaded = 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, float]:
        self.loaded += 1
        return index, torch.rand(()).item()


class Eager(Sampler):
    """Draws its order from Python's generator as soon as it is iterated over."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(SAMPLES), SAMPLES))


class Stateful(Sampler):
    """Has a state that it changes in each epoch."""

    turn = 0

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        self.turn += 3
        return ((index + self.turn) % SAMPLES for index in range(SAMPLES))

    def state_dict(self) -> dict[str, int]:
        return {"turn": self.turn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.turn = state["turn"]


class Batches(Sampler):
    """A batch sampler of one's own, with batches of different sizes, whose constructor takes what no other takes."""

    def __init__(self, *, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = iter(torch.randperm(SAMPLES).tolist())
        return ([next(order) for _ in range(size)] for size in self.sizes)


class Stream(IterableDataset):
    """Random numbers, drawn as they come."""

    def __iter__(self) -> Iterator[float]:
        return (torch.rand(()).item() for _ in range(SAMPLES))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(Numbers(), 4),
    "shuffled": lambda: DataLoader(Numbers(), 4, shuffle=True),
    "without the last": lambda: DataLoader(Numbers(), 4, shuffle=True, drop_last=True),
    "its own generator": lambda: DataLoader(Numbers(), 4, shuffle=True, generator=generator()),
    "its sampler's generator": lambda: DataLoader(
        Numbers(), 4, sampler=RandomSampler(Numbers(), generator=generator())
    ),
    "with replacement": lambda: DataLoader(Numbers(), 4, sampler=RandomSampler(Numbers(), True, 7)),
    "weights": lambda: DataLoader(Numbers(), 4, sampler=WeightedRandomSampler(torch.arange(SAMPLES) + 1.0, 9)),
    "shares": lambda: DataLoader(Numbers(), 2, sampler=DistributedSampler(Numbers(), 2, 1, seed=4)),
    "Python's generator": lambda: DataLoader(Numbers(), 4, sampler=Eager()),
    "weights and a generator": lambda: DataLoader(
        Numbers(), 4, sampler=WeightedRandomSampler(torch.arange(SAMPLES) + 1.0, 9, generator=generator())
    ),
    "a stateful sampler": lambda: DataLoader(Numbers(), 4, sampler=Stateful()),
    "batches of one's own": lambda: DataLoader(Numbers(), batch_sampler=Batches(sizes=(3, 1, 5))),
    "a batch sampler": lambda: DataLoader(Numbers(), batch_sampler=BatchSampler(Eager(), 3, False)),
    "no batches": lambda: DataLoader(Numbers(), batch_size=None, shuffle=True),
    "a stream": lambda: DataLoader(Stream(), 4),  # type: ignore[arg-type]
}


def plain(batch: Any) -> Any:
    parts = batch if isinstance(batch, (list, tuple)) else [batch]
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in parts]


def train(make: Callable[[], DataLoader[Any]], stop: int | None = None, saved: Any = None, replay: bool = False) -> Run:
    """Three epochs, in which a model draws random numbers, too; saves after some batches, or goes on from there."""
    torch.manual_seed(3 if saved is None else 99)
    random.seed(3 if saved is None else 99)
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(make())
    loader.replay = replay
    rng, begun, batches = RNGState(), 0, []
    if saved is not None:
        begun = saved["epoch"]
        rng.load_state_dict(saved["rng"])
        loader.load_state_dict(saved["loader"])
    for epoch in range(begun, 3):
        for batch in loader:
            batches.append((plain(batch), torch.rand(()).item(), random.random()))
            if len(batches) == stop:
                return batches, {"epoch": epoch, "rng": rng.state_dict(), "loader": loader.state_dict()}
    return batches, None


@pytest.mark.parametrize("name", LOADERS)
def test_it_goes_on_after_any_batch(name: str, tmp_path: Any) -> None:
    whole, _ = train(LOADERS[name])
    assert len({str(batch) for batch in whole}) == len(whole)
    for stop in range(1, len(whole) + 1):
        first, saved = train(LOADERS[name], stop)
        torch.save(saved, tmp_path / "saved")
        rest, _ = train(LOADERS[name], saved=torch.load(tmp_path / "saved", weights_only=True))
        assert first + rest == whole, f"after {stop} batches"


@pytest.mark.parametrize("name", sorted({*LOADERS} - {"shares", "a stream"}))
def test_the_share_of_one_of_two_processes_goes_on(name: str) -> None:
    def make() -> DataLoader[Any]:
        return prepare_dataloader(LOADERS[name](), {"num_replicas": 2, "rank": 1}, rank=1)

    whole, _ = train(make)
    for stop in range(1, len(whole) + 1):
        first, saved = train(make, stop)
        rest, _ = train(make, saved=saved)
        assert first + rest == whole, f"after {stop} batches"


@pytest.mark.parametrize("persistent", [False, True])
def test_it_goes_on_with_workers(persistent: bool) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(range(SAMPLES), 4, shuffle=True, num_workers=2, persistent_workers=persistent)  # type: ignore[arg-type]

    whole, _ = train(make)
    for stop in (1, 3, 5, 6, 8):
        first, saved = train(make, stop)
        rest, _ = train(make, saved=saved)
        assert first + rest == whole, f"after {stop} batches"


def test_workers_that_draw_numbers_need_a_replay() -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(Numbers(), 4, shuffle=True, num_workers=2)

    whole, _ = train(make)
    first, saved = train(make, 2)
    assert first + train(make, saved=saved)[0] != whole
    assert first + train(make, saved=saved, replay=True)[0] == whole


def test_skipped_batches_are_not_loaded() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(DataLoader(Numbers(), 4))
    batches = iter(loader)
    next(batches)
    next(batches)
    resumed = fabric.setup_dataloaders(DataLoader(Numbers(), 4))
    resumed.load_state_dict(loader.state_dict())
    assert [plain(batch)[0] for batch in resumed] == [[8, 9, 10]]
    assert resumed.dataset.loaded == 3
    assert [plain(batch)[0] for batch in resumed] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_it_can_be_saved_again_after_it_was_resumed() -> None:
    make = LOADERS["shuffled"]
    whole, _ = train(make)
    first, saved = train(make, 1)
    second, again = train(make, 1, saved)
    assert first + second + train(make, saved=again)[0] == whole
    untouched = Fabric(accelerator="cpu", devices=1).setup_dataloaders(make())
    untouched.load_state_dict(saved["loader"])  # type: ignore[index]
    assert untouched.state_dict()["position"] == 1


def test_leaving_an_epoch_begins_the_next_one() -> None:
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(DataLoader(Numbers(), 4))
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 0)
    for _ in loader:
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 1)
        break
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)


def test_the_state_of_something_else_is_refused() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(DataLoader(Numbers(), 4))
    with pytest.raises(
        ValueError, match=r"The state with 'weight', 'bias' is not one of a `DataLoader`, which has 'ep"
    ):
        loader.load_state_dict(torch.nn.Linear(1, 1).state_dict())
    other = fabric.setup_dataloaders(DataLoader(Numbers(), 4, generator=generator()))
    with pytest.raises(ValueError, match=r"is for 1 random generators, but this `DataLoader` has 0. Make it as it was"):
        loader.load_state_dict(other.state_dict())


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_stateful_dataloader_is_used_as_it_is() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> DataLoader[Any]:
        loader: DataLoader[Any] = stateful.StatefulDataLoader(list(range(SAMPLES)), 4, shuffle=True)
        return loader

    whole, _ = train(make)
    for stop in range(1, len(whole) + 1):
        first, saved = train(make, stop)
        assert "own" in saved["loader"]  # type: ignore[index]
        assert first + train(make, saved=saved)[0] == whole


def trace(make: Callable[[], DataLoader[Any]], limit: int, save_at: int | None = None, saved: Any = None) -> Run:
    """Epochs that are left after `limit` batches; saves at a moment: before them, after a batch, and after an epoch."""
    torch.manual_seed(3 if saved is None else 99)
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(make())
    rng, drawn, moments, state = RNGState(), [], 0, None

    def moment() -> None:
        nonlocal moments, state
        if moments == save_at:
            state = {"loader": loader.state_dict(), "rng": rng.state_dict(), "epoch": epoch, "drawn": len(drawn)}
        moments += 1

    epoch, position = 0, 0
    if saved is not None:
        loader.load_state_dict(saved["loader"])
        rng.load_state_dict(saved["rng"])
        epoch, position = saved["epoch"], loader.state_dict()["position"]
    moment()
    while epoch < 3:
        for number, batch in enumerate(loader, start=position + 1):
            drawn.append((plain(batch), torch.rand(()).item()))
            if number >= limit:
                break
            moment()
        epoch, position = epoch + 1, 0
        moment()
    return drawn, state


def stateful(**options: Any) -> DataLoader[Any]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(options.pop("data", None) or Numbers(), 4, shuffle=True, **options)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("limit", [99, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(range(SAMPLES), 4, shuffle=True, num_workers=1, persistent_workers=True),
        lambda: stateful(),
        lambda: stateful(generator=generator()),
        lambda: stateful(data=range(SAMPLES), num_workers=1),
        lambda: stateful(data=range(SAMPLES), num_workers=1, persistent_workers=True),
    ],
    ids=["persistent workers", "stateful", "stateful, generator", "stateful, worker", "stateful, persistent worker"],
)
def test_it_goes_on_from_any_moment(make: Callable[[], DataLoader[Any]], limit: int) -> None:
    pytest.importorskip("torchdata.stateful_dataloader")
    whole, _ = trace(make, limit)
    for moment in range(6):
        drawn, saved = trace(make, limit, save_at=moment)
        assert drawn == whole, f"saving at moment {moment} has changed what is drawn"
        assert saved is not None
        assert trace(make, limit, saved=saved)[0] == whole[saved["drawn"] :], f"from moment {moment}"
