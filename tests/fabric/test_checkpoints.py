"""Saving and loading through a Fabric: what goes into a checkpoint, and into which objects it comes back."""

from __future__ import annotations

import os
import pickle
import secrets
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from fabric_lite import Fabric
from fabric_lite.checkpoint import UnsafeCheckpointError
from fabric_lite.utilities import AttributeDict


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


@dataclass
class Progress:
    """A stateful object that is neither a module nor an optimizer."""

    step: int = 0
    history: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.history = state["step"], state["history"]


class Counting:
    """A callback with state."""

    def __init__(self, n: int = 0) -> None:
        self.n = n

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


def trained(fabric: Fabric, steps: int = 2) -> tuple[Any, Any, StepLR]:
    torch.manual_seed(steps)
    net = nn.Linear(3, 2)
    bare = torch.optim.Adam(net.parameters(), lr=0.1)
    model, optimizer, scheduler = fabric.setup(net, bare, scheduler=StepLR(bare, 1))
    for _ in range(steps):
        optimizer.zero_grad()
        fabric.backward(model(torch.ones(1, 3)).sum())
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def same(first: Any, second: Any) -> bool:
    """Whether two nestings hold the same tensors and values."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def state_of(fabric: Fabric, steps: int) -> dict[str, Any]:
    model, optimizer, scheduler = trained(fabric, steps)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "progress": Progress(steps, [0.5] * steps),
        "step": steps,
        "nested": {"best": torch.tensor(0.1 * steps), "list": [1, {"a": steps}], "pair": (1, "x")},
        "nothing": None,
    }


class TestRoundTrip:
    def test_everything_comes_back_into_the_objects_it_came_from(self, fabric: Fabric, tmp_path: Path) -> None:
        saved, state = state_of(fabric, 3), state_of(fabric, 1)
        fabric.save(tmp_path / "a.ckpt", saved)
        objects = dict(state)
        remainder = fabric.load(tmp_path / "a.ckpt", state)
        assert remainder == {}
        for name in ("model", "optimizer", "scheduler", "progress"):
            assert state[name] is objects[name]
            assert same(state[name].state_dict(), saved[name].state_dict())
        assert same(state["nested"], saved["nested"])
        assert (state["step"], state["nothing"]) == (3, None)
        assert (objects["step"], objects["nested"]["list"][1]) == (1, {"a": 1})

    def test_the_wrapped_and_the_bare_save_the_same(self, fabric: Fabric, tmp_path: Path) -> None:
        model, optimizer, _ = trained(fabric)
        fabric.save(tmp_path / "wrapped", {"model": model, "optimizer": optimizer})
        fabric.save(tmp_path / "bare", {"model": model.module, "optimizer": optimizer.optimizer})
        assert same(fabric.load(tmp_path / "wrapped"), fabric.load(tmp_path / "bare"))
        assert list(torch.load(tmp_path / "wrapped", weights_only=True)["model"]) == ["weight", "bias"]

    def test_an_attribute_dict(self, fabric: Fabric, tmp_path: Path) -> None:
        model, _, _ = trained(fabric)
        fabric.save(tmp_path / "a", AttributeDict(model=model, step=7))
        state = AttributeDict(model=trained(fabric, 1)[0], step=0)
        fabric.load(tmp_path / "a", state)
        assert state.step == 7
        assert same(state.model.state_dict(), model.state_dict())
        assert type(state.model) is type(model)

    def test_the_callbacks(self, tmp_path: Path) -> None:
        fabric = Fabric(accelerator="cpu", callbacks=[Counting(1), Counting(2), object()])
        fabric.save(tmp_path / "a", {"callbacks": fabric.callbacks, "step": 1})
        other = Fabric(accelerator="cpu", callbacks=[Counting(), Counting()])
        state = {"callbacks": other.callbacks, "step": 0}
        other.load(tmp_path / "a", state)
        assert [callback.n for callback in other.callbacks] == [1, 2]
        assert state["callbacks"] is other.callbacks
        with pytest.raises(RuntimeError, match=r"does not fit the callbacks.*'Counting\.0', 'Counting\.1'"):
            Fabric(accelerator="cpu").load(tmp_path / "a", {"callbacks": Fabric(accelerator="cpu").callbacks})

    def test_what_nobody_took_is_returned(self, fabric: Fabric, tmp_path: Path) -> None:
        fabric.save(tmp_path / "a", {"step": 1, "extra": [1], "model": nn.Linear(1, 1)})
        state: dict[str, Any] = {"step": 0}
        remainder = fabric.load(tmp_path / "a", state)
        assert remainder.keys() == {"extra", "model"}
        assert state == {"step": 1}

    @pytest.mark.parametrize("state", [None, {}])
    def test_without_a_state_all_of_it_is_returned(self, fabric: Fabric, tmp_path: Path, state: Any) -> None:
        fabric.save(str(tmp_path / "a"), {"step": 1, "x": torch.ones(2)})
        assert same(fabric.load(str(tmp_path / "a"), state), {"step": 1, "x": torch.ones(2)})

    def test_saving_does_not_change_the_state(self, fabric: Fabric, tmp_path: Path) -> None:
        state = state_of(fabric, 1)
        before = dict(state)
        fabric.save(tmp_path / "a", state)
        assert all(state[name] is before[name] for name in before)
        assert state.keys() == before.keys()

    def test_into_the_precision_of_this_run(self, tmp_path: Path) -> None:
        single, double = Fabric(accelerator="cpu"), Fabric(accelerator="cpu", precision="64-true")
        model, *_ = trained(single)
        single.save(tmp_path / "a", {"model": model})
        other = double.setup(nn.Linear(3, 2))
        double.load(tmp_path / "a", {"model": other})
        assert other.weight.dtype is torch.float64
        assert torch.equal(other.weight, model.weight.double())

    def test_a_path_with_a_protocol(self, fabric: Fabric) -> None:
        import fsspec

        folder = f"/{secrets.token_hex(4)}"
        state = {"step": 0}
        try:
            fabric.save(f"memory:/{folder}/deep/a.ckpt", {"step": 3})
            fabric.load(f"memory:/{folder}/deep/a.ckpt", state)
        finally:
            fsspec.filesystem("memory").rm(folder, recursive=True)
        assert state == {"step": 3}


class TestObjectsInsideOfContainers:
    """What is saved without complaint can be loaded with the defaults."""

    def test_modules_and_stateful_objects_in_a_dictionary(self, fabric: Fabric, tmp_path: Path) -> None:
        def new(steps: int) -> dict[str, Any]:
            torch.manual_seed(steps)
            net = nn.Linear(1, 1)
            model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters()))
            return {"gan": {"model": model, "optimizer": optimizer, "progress": Progress(steps)}, "step": steps}

        saved, state = new(1), new(2)
        fabric.save(tmp_path / "a", saved)
        fabric.load(tmp_path / "a", state)
        assert same(state["gan"]["model"].state_dict(), saved["gan"]["model"].state_dict())
        assert state["gan"]["progress"].step == 1

    def test_modules_in_a_list(self, fabric: Fabric, tmp_path: Path) -> None:
        saved, state = ([fabric.setup(nn.Linear(1, 1)) for _ in range(2)] for _ in range(2))
        fabric.save(tmp_path / "a", {"models": saved})
        fabric.load(tmp_path / "a", {"models": state})
        assert same([m.state_dict() for m in state], [m.state_dict() for m in saved])


class TestStrict:
    def test_a_name_that_is_missing(self, fabric: Fabric, tmp_path: Path) -> None:
        model, *_ = trained(fabric)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fabric.save(tmp_path / "a", {"model": nn.Linear(3, 2), "step": 1})
        state = {"model": model, "epoch": 5}
        with pytest.raises(KeyError, match=r"The checkpoint has no 'epoch'; it has 'model', 'step'.*`strict=False`"):
            fabric.load(tmp_path / "a", state)
        assert same(model.state_dict(), before)
        assert state["epoch"] == 5
        assert fabric.load(tmp_path / "a", state, strict=False) == {"step": 1}
        assert not same(model.state_dict(), before)
        assert state["epoch"] == 5

    def test_keys_of_a_module(self, fabric: Fabric, tmp_path: Path) -> None:
        fabric.save(tmp_path / "a", {"model": nn.Linear(3, 2, bias=False)})
        net = nn.Linear(3, 2)
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bias"'):
            fabric.load(tmp_path / "a", {"model": net})
        fabric.load(tmp_path / "a", {"model": net}, strict=False)
        assert torch.equal(net.weight, fabric.load(tmp_path / "a")["model"]["weight"])


class TestFilter:
    def test_it_says_what_is_saved(self, fabric: Fabric, tmp_path: Path) -> None:
        seen: list[tuple[str, type]] = []

        def no_bias(key: str, value: Any) -> bool:
            seen.append((key, type(value)))
            return key != "bias"

        state = {"model": fabric.setup(nn.Linear(3, 2)), "other": nn.Linear(1, 1), "values": {"a": 1, "b": 2}}
        fabric.save(tmp_path / "a", state, filter={"model": no_bias, "values": lambda key, value: value > 1})
        loaded = fabric.load(tmp_path / "a")
        assert {name: list(value) for name, value in loaded.items()} == {
            "model": ["weight"],
            "other": ["weight", "bias"],
            "values": ["b"],
        }
        assert seen == [("weight", torch.Tensor), ("bias", torch.Tensor)]

    def test_an_empty_one_changes_nothing(self, fabric: Fabric, tmp_path: Path) -> None:
        fabric.save(tmp_path / "a", {"step": 1}, filter={})
        assert fabric.load(tmp_path / "a") == {"step": 1}

    @pytest.mark.parametrize("filter", [lambda key, value: True, ["model"], "model"])
    def test_something_that_is_no_dictionary(self, fabric: Fabric, tmp_path: Path, filter: Any) -> None:
        with pytest.raises(TypeError) as error:
            fabric.save(tmp_path / "a", {"model": nn.Linear(1, 1)}, filter=filter)
        assert f"`fabric.save(filter={filter!r})`: pass a dictionary" in str(error.value)
        assert not (tmp_path / "a").exists()

    def test_a_name_that_the_state_has_not(self, fabric: Fabric, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"names 'modle', but the state has 'model', 'step'"):
            fabric.save(tmp_path / "a", {"model": nn.Linear(1, 1), "step": 1}, filter={"modle": lambda k, v: True})

    def test_something_that_cannot_be_called(self, fabric: Fabric, tmp_path: Path) -> None:
        with pytest.raises(
            TypeError, match=r"filter=\{'model': 'weight'\}\)`: pass a function `\(key, value\) -> bool`"
        ):
            fabric.save(tmp_path / "a", {"model": nn.Linear(1, 1)}, filter={"model": "weight"})  # type: ignore[dict-item]


class TestLoadRaw:
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_a_module_and_an_optimizer(self, fabric: Fabric, tmp_path: Path, wrapped: bool) -> None:
        model, optimizer, _ = trained(fabric, 3)
        torch.save(model.state_dict(), tmp_path / "model")
        torch.save(optimizer.state_dict(), tmp_path / "optimizer")
        other, other_optimizer, _ = trained(fabric, 1)
        fabric.load_raw(tmp_path / "model", other if wrapped else other.module)
        fabric.load_raw(tmp_path / "optimizer", other_optimizer if wrapped else other_optimizer.optimizer)
        assert same(other.state_dict(), model.state_dict())
        assert same(other_optimizer.state_dict(), optimizer.state_dict())

    def test_strict(self, fabric: Fabric, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(2, 3)}, tmp_path / "a")
        model = fabric.setup(nn.Linear(3, 2))
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bias"'):
            fabric.load_raw(tmp_path / "a", model)
        fabric.load_raw(tmp_path / "a", model, strict=False)
        assert torch.equal(model.weight, torch.ones(2, 3))

    def test_into_a_compiled_module(self, fabric: Fabric, tmp_path: Path) -> None:
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "a")
        model = fabric.setup(torch.compile(nn.Linear(3, 2), backend="eager"))
        fabric.load_raw(tmp_path / "a", model)
        assert same(dict(model.module.state_dict()), dict(torch.load(tmp_path / "a")))

    @pytest.mark.parametrize("thing", [None, {}, {"a": 1}, 3, "a string"])
    def test_something_else(self, fabric: Fabric, tmp_path: Path, thing: Any) -> None:
        torch.save({"last_epoch": 3}, tmp_path / "a")
        with pytest.raises(TypeError, match=r"fabric.load_raw.*module or optimizer"):
            fabric.load_raw(tmp_path / "a", thing)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to write anywhere, if there is one."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


class TestFailures:
    def test_a_file_that_is_not_there(self, fabric: Fabric, tmp_path: Path) -> None:
        for load in (lambda: fabric.load(tmp_path / "none"), lambda: fabric.load_raw(tmp_path / "none", nn.Identity())):
            with pytest.raises(FileNotFoundError, match="none"):
                load()

    @pytest.mark.parametrize("method", ["load", "load_raw"])
    def test_objects_are_refused_unless_the_file_is_trusted(self, fabric: Fabric, tmp_path: Path, method: str) -> None:
        torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(2), "object": UUID(int=1)}, tmp_path / "a")
        target: Any = {"weight": None} if method == "load" else nn.Linear(3, 2)
        for weights_only in (None, True):
            with pytest.raises(UnsafeCheckpointError, match=r"uuid.UUID` in state\['object'\].*weights_only=False"):
                getattr(fabric, method)(tmp_path / "a", target, weights_only=weights_only)
        getattr(fabric, method)(tmp_path / "a", target, strict=False, weights_only=False)

    def test_what_configurations_are_made_of_is_loaded(self, fabric: Fabric, tmp_path: Path) -> None:
        config = {
            "attributes": AttributeDict(lr=0.1, model=AttributeDict(width=3)),
            "namespace": Namespace(data=Path("data"), layers=range(3), part=slice(1, 2)),
            "numbers": [numpy.float64(0.3), numpy.int64(3), numpy.bool_(True), 1j, Fraction(1, 3), Decimal("1.5")],
            "array": numpy.arange(4.0),
            "dtype": numpy.dtype("float32"),
            "times": [datetime(2026, 1, 2, tzinfo=timezone.utc), timedelta(hours=1)],
            "sets": [{1, 2}, frozenset("a")],
        }
        fabric.save(tmp_path / "a", {"config": config, "array": config.pop("array")})
        loaded = fabric.load(tmp_path / "a")
        assert loaded["config"] == config
        assert type(loaded["config"]["attributes"].model) is AttributeDict
        assert type(loaded["config"]["numbers"][0]) is numpy.float64
        assert numpy.array_equal(loaded["array"], numpy.arange(4.0))

    def test_the_old_file_survives_a_state_that_does_not_pickle(self, fabric: Fabric, tmp_path: Path) -> None:
        fabric.save(tmp_path / "a", {"step": 1})
        with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
            fabric.save(tmp_path / "a", {"step": 2, "model": nn.Linear(50, 50), "function": lambda: None})
        assert fabric.load(tmp_path / "a") == {"step": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_parent_that_is_a_file(self, fabric: Fabric, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            fabric.save(tmp_path / "file" / "a", {"step": 1})

    @pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
    def test_a_folder_without_permission(self, fabric: Fabric, tmp_path: Path) -> None:
        target = tmp_path / "locked" / "a"
        fabric.save(target, {"step": 1})
        target.parent.chmod(0o500)
        try:
            with as_nobody(), pytest.raises(PermissionError, match="Permission denied"):
                fabric.save(target, {"step": 2})
        finally:
            target.parent.chmod(0o700)
        assert fabric.load(target) == {"step": 1}
        assert [path.name for path in target.parent.iterdir()] == ["a"]

    def test_a_full_disk(self, fabric: Fabric, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource")
        signal = pytest.importorskip("signal")
        fabric.save(tmp_path / "a", {"step": 1})
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                fabric.save(tmp_path / "a", {"model": nn.Linear(100, 100)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert fabric.load(tmp_path / "a") == {"step": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
