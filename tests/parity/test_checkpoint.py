"""Checkpoints: the same files, each library loads the other's, and `load` returns and fills in the same."""

from __future__ import annotations

import collections
import pickle
from collections import OrderedDict, UserList, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import lightning.fabric as theirs
import lightning.fabric.plugins as their_plugins
import pytest
import torch
from torch import nn

import fabric_lite as ours
import fabric_lite.plugins as our_plugins
from fabric_lite.checkpoint import UnsafeCheckpointError

LIBRARIES = (theirs, ours)
PAIRS = [(theirs, theirs), (theirs, ours), (ours, theirs), (ours, ours)]
Frozen = Callable[[Any], Any]


class Counter:
    """A stateful object of the user's own."""

    def __init__(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


def trained(
    library: ModuleType, seed: int = 1, steps: int = 2, precision: str = "32-true"
) -> tuple[Any, dict[str, Any]]:
    """A Fabric and a state with one object of each kind."""
    library.seed_everything(seed, verbose=False)
    fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    counter = Counter()
    for _ in range(steps):
        optimizer.zero_grad()
        fabric.backward(model(torch.randn(3, 4)).square().mean())
        optimizer.step()
        scheduler.step()
        counter.n += 1
    return fabric, {
        "model": model,
        "optimizer": optimizer,
        "bare": nn.Linear(1, 1),
        "scheduler": scheduler,
        "counter": counter,
        "epoch": 10 + steps,
        "nested": {"best": torch.tensor([0.5]), "history": [1, 2.5, "text", None, (True,)]},
    }


def contents(state: dict[str, Any]) -> dict[str, Any]:
    """What is in a state, with the objects replaced by what they say of themselves."""
    return {key: value.state_dict() if hasattr(value, "state_dict") else value for key, value in state.items()}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_the_same_file(precision: str, tmp_path: Path, frozen: Frozen) -> None:
    files = []
    for library in LIBRARIES:
        fabric, state = trained(library, precision=precision)
        path = tmp_path / library.__name__ / "deep" / "state.ckpt"  # a folder that is not there yet
        fabric.save(path, state)
        files.append(torch.load(path, weights_only=True))
        assert [each.name for each in path.parent.iterdir()] == ["state.ckpt"]
        assert frozen(files[-1]) == frozen(contents(state))
    assert list(files[0]) == list(files[1])
    assert frozen(files[0]) == frozen(files[1])


@pytest.mark.parametrize("writer, reader", PAIRS)
def test_each_goes_on_from_the_others_file(
    writer: ModuleType, reader: ModuleType, tmp_path: Path, frozen: Frozen
) -> None:
    fabric, state = trained(writer)
    fabric.save(tmp_path / "state.ckpt", state)
    fabric, fresh = trained(reader, seed=2, steps=1)
    given = dict(fresh)
    remainder = fabric.load(tmp_path / "state.ckpt", fresh)
    assert remainder == {}
    assert frozen(contents(fresh)) == frozen(contents(state))
    assert [key for key in fresh if fresh[key] is not given[key]] == ["epoch", "nested"]


@pytest.mark.parametrize("writer, reader", PAIRS)
def test_without_a_state_the_whole_file_comes_back(
    writer: ModuleType, reader: ModuleType, tmp_path: Path, frozen: Frozen
) -> None:
    fabric, state = trained(writer)
    fabric.save(str(tmp_path / "state.ckpt"), state)
    other = reader.Fabric(accelerator="cpu", devices=1)
    for nothing in (None, {}):
        assert frozen(other.load(str(tmp_path / "state.ckpt"), nothing)) == frozen(contents(state))


def test_what_no_object_took_comes_back(tmp_path: Path, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric, state = trained(library)
        fabric.save(tmp_path / library.__name__, state)
        part = {"model": state["model"], "epoch": None, "counter": state["counter"]}
        remainder = fabric.load(tmp_path / library.__name__, part)
        results.append([list(remainder), remainder, part["epoch"]])
    assert frozen(results[0]) == frozen(results[1])
    assert results[1][0] == ["optimizer", "bare", "scheduler", "nested"]


def attempt(function: Callable[[], Any]) -> Any:
    """What a function returns, or the type of what it raises."""
    try:
        return function()
    except Exception as error:
        return type(error).__name__


WANTED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another name": lambda state: {"missing": 1, "epoch": 0},
    "another name of a module": lambda state: {"other": nn.Linear(1, 1), "epoch": 0},
    "fewer layers": lambda state: {"model": nn.Sequential(nn.Linear(4, 4)), "epoch": 0},
    "more layers": lambda state: {"bare": nn.Sequential(nn.Linear(1, 1)), "epoch": 0},
    "other shapes": lambda state: {"bare": nn.Linear(2, 2), "epoch": 0},
    "an optimizer of other parameters": lambda state: {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
    "nothing missing": lambda state: {"bare": nn.Linear(1, 1), "epoch": 0},
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wanted", WANTED)
def test_strict_or_not(wanted: str, strict: bool, tmp_path: Path, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric, state = trained(library)
        fabric.save(tmp_path / library.__name__, state)
        library.seed_everything(8, verbose=False)
        part = WANTED[wanted](state)
        path = tmp_path / library.__name__
        remainder = attempt(lambda fabric=fabric, part=part, path=path: fabric.load(path, part, strict=strict))
        results.append([remainder, contents(part) if isinstance(remainder, dict) else None])
    assert frozen(results[0]) == frozen(results[1])


FILTERS: dict[str, dict[str, Callable[[str, Any], bool]]] = {
    "no biases": {"model": lambda key, value: "bias" not in key},
    "nothing": {"model": lambda key, value: False},
    "everything": {"model": lambda key, value: True, "optimizer": lambda key, value: True},
    "by value": {"model": lambda key, value: value.ndim > 1},
    "an optimizer": {"optimizer": lambda key, value: key == "state"},
    "a stateful object": {"counter": lambda key, value: value > 5},
    "a dictionary": {"nested": lambda key, value: key == "best"},
    "a number": {"epoch": lambda key, value: False},
    "none": {},
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(name: str, tmp_path: Path, frozen: Frozen) -> None:
    files = []
    for library in LIBRARIES:
        fabric, state = trained(library)
        fabric.save(tmp_path / library.__name__, state, filter=FILTERS[name])
        files.append(torch.load(tmp_path / library.__name__))
    assert frozen(files[0]) == frozen(files[1])


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("keys", ["all", "fewer"])
def test_a_raw_file_of_a_module(keys: str, strict: bool, wrapped: bool, tmp_path: Path, frozen: Frozen) -> None:
    saved = nn.Linear(2, 2).state_dict()
    if keys == "fewer":
        del saved["bias"]
    torch.save(saved, tmp_path / "raw.pt")
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        model = fabric.setup(nn.Linear(2, 2)) if wrapped else nn.Linear(2, 2)
        before = frozen(model.state_dict())
        result = attempt(lambda fabric=fabric, model=model: fabric.load_raw(tmp_path / "raw.pt", model, strict=strict))
        if result is not None and library is ours:
            assert frozen(model.state_dict()) == before  # theirs has loaded what fits
        results.append([result] + ([] if result else [dict(model.state_dict())]))
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_raw_file_of_an_optimizer(wrapped: bool, tmp_path: Path, frozen: Frozen) -> None:
    _, state = trained(theirs)
    torch.save(state["optimizer"].state_dict(), tmp_path / "raw.pt")
    results = []
    for library in LIBRARIES:
        fabric, fresh = trained(library, seed=2, steps=0)
        optimizer = fresh["optimizer"] if wrapped else fresh["optimizer"].optimizer
        results.append([fabric.load_raw(tmp_path / "raw.pt", optimizer), optimizer.state_dict()])
    assert frozen(results[0]) == frozen(results[1])
    assert frozen(results[1][1]) == frozen(state["optimizer"].state_dict())


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_a_file_with_an_object_in_it(weights_only: bool | None, tmp_path: Path) -> None:
    """Lightning leaves None to torch, whose answer is True, too."""
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        path = tmp_path / library.__name__
        fabric.save(path, {"half": [UserList()], "epoch": 3})
        loaded = attempt(lambda fabric=fabric, path=path: fabric.load(path, weights_only=weights_only))
        results.append(loaded if isinstance(loaded, str) else type(loaded["half"][0]).__name__)
    # ours is an UnpicklingError, too
    assert results == (["UserList"] * 2 if weights_only is False else ["UnpicklingError", "UnsafeCheckpointError"])
    assert issubclass(UnsafeCheckpointError, pickle.UnpicklingError)


def test_saving_over_an_older_file(tmp_path: Path, frozen: Frozen) -> None:
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        path = tmp_path / library.__name__
        fabric.save(path, {"epoch": 1, "old": torch.ones(5)})
        fabric.save(path, {"epoch": 2})
        assert fabric.load(path) == {"epoch": 2}


def test_a_url(frozen: Frozen) -> None:
    loaded = []
    for library, other in PAIRS:
        fabric, state = trained(library)
        fabric.save("memory://parity/state.ckpt", state)
        loaded.append(other.Fabric(accelerator="cpu", devices=1).load("memory://parity/state.ckpt"))
    assert all(frozen(each) == frozen(loaded[0]) for each in loaded)


@pytest.mark.parametrize("writer, reader", PAIRS)
def test_the_scaler_goes_along(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    plugins = {theirs: their_plugins, ours: our_plugins}

    def half(library: ModuleType, scale: float) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return library.Fabric(plugins=plugins[library].MixedPrecision("16-mixed", device="cpu", scaler=scaler))

    first, second = half(writer, 8.0), half(reader, 1.0)
    first.save(tmp_path / "state.ckpt", {"precision": first._precision})
    second.load(tmp_path / "state.ckpt", {"precision": second._precision})
    assert second._precision.state_dict() == first._precision.state_dict()
    assert second._precision.state_dict()["scale"] == 8.0


def test_a_checkpoint_io_of_ones_own(tmp_path: Path, frozen: Frozen) -> None:
    """It is asked with the same arguments."""
    results = []
    for library, plugins in zip(LIBRARIES, (their_plugins, our_plugins), strict=True):
        calls: list[Any] = []

        class Memory(plugins.CheckpointIO):  # type: ignore[name-defined, misc]
            def save_checkpoint(self, *args: Any, calls: list[Any] = calls, **kwargs: Any) -> None:
                calls.append(("save", args, kwargs))

            def load_checkpoint(self, *args: Any, calls: list[Any] = calls, **kwargs: Any) -> Any:
                calls.append(("load", args, kwargs))
                return {"epoch": 4, "more": 1}

            def remove_checkpoint(self, *args: Any) -> None:
                raise AssertionError

        fabric = library.Fabric(accelerator="cpu", devices=1, plugins=Memory())
        fabric.save("anywhere", {"epoch": 3, "counter": Counter()})
        state = {"epoch": 0}
        results.append([calls, fabric.load("anywhere", state), state, fabric.load("anywhere", weights_only=False)])
    assert frozen(results[0]) == frozen(results[1])


class Point(NamedTuple):
    x: Any
    y: int


CONTAINERS: dict[str, Any] = {
    "OrderedDict": OrderedDict(b=1, a=2),
    "defaultdict": defaultdict(list, a=[1]),
    "Counter": collections.Counter("aab"),
    "namedtuple": Point(1, 2),
    "tuple": (1, [2, {3: 4}]),
    "set": {1, 2},
    "Size": torch.Size([1, 2]),
    "bytes": b"abc",
    "dtype": torch.float16,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_keep_their_types(name: str, tmp_path: Path) -> None:
    saved = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        fabric.save(tmp_path / "state.ckpt", {"top": CONTAINERS[name], "deep": {"er": [CONTAINERS[name]]}})
        saved.append(torch.load(tmp_path / "state.ckpt", weights_only=False))
    assert saved[0] == saved[1]
    assert type(saved[1]["top"]) is type(saved[0]["top"])
    assert type(saved[1]["deep"]["er"][0]) is type(saved[0]["deep"]["er"][0])
