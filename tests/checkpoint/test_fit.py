"""All is checked before anything is changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric


class Progress:
    """A stateful object, which may refuse."""

    def __init__(self, n: int = 0, log: list[str] | None = None) -> None:
        self.n = n
        self.log = log

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.append("progress")
        if state["n"] < 0:
            raise ValueError("negative")
        self.n = state["n"]


class Fancy(nn.Module):
    """With hooks, extra state, a way of its own to load, a buffer, a shared part and a lazy one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.again = self.inner
        self.register_buffer("count", torch.zeros(()))
        self.register_load_state_dict_pre_hook(self._rename)
        self.extra: Any = None

    @staticmethod
    def _rename(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}old" in state:
            state[f"{prefix}count"] = state.pop(f"{prefix}old")

    def get_extra_state(self) -> Any:
        return {"extra": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["extra"]


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


def state_of(n: int) -> dict[str, Any]:
    torch.manual_seed(n)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=float(n), momentum=0.9)
    return {
        "first": nn.Linear(2, 2),
        "progress": Progress(n),
        "step": n,
        "model": model,
        "optimizer": optimizer,
        "nested": {"models": [nn.Linear(1, 1), nn.Linear(1, 1)], "n": n},
    }


def contents(value: Any) -> Any:
    """A copy of all that can change."""
    if isinstance(value, (nn.Module, torch.optim.Optimizer, Progress)):
        return contents(dict(value.state_dict()))
    if isinstance(value, dict):
        return {key: contents(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [contents(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "a name": (lambda saved: saved.pop("step"), KeyError, "has no 'step'"),
    "a key of a module": (
        lambda saved: saved["model"].pop("1.running_mean"),
        RuntimeError,
        r"state\['model'\] does not fit the checkpoint, and nothing was loaded.(.|\n)*Missing key.*1.running_mean",
    ),
    "a shape": (
        lambda saved: saved["model"].update({"0.weight": torch.ones(5, 5)}),
        RuntimeError,
        r"state\['model'\] does not fit(.|\n)*size mismatch for 0.weight",
    ),
    "a module in a list": (
        lambda saved: saved["nested"]["models"][1].pop("bias"),
        RuntimeError,
        r"state\['nested'\]\['models'\]\[1\] does not fit(.|\n)*\"bias\"",
    ),
    "the length of a list": (
        lambda saved: saved["nested"]["models"].pop(),
        ValueError,
        r"state\['nested'\]\['models'\] is a list of 2 with objects in it, and the checkpoint has a list of 1 there",
    ),
    "a container": (
        lambda saved: saved.update(nested=3),
        ValueError,
        r"state\['nested'\] is a dict with objects in it, and the checkpoint has a int there",
    ),
    "a key of a container": (lambda saved: saved["nested"].pop("n"), KeyError, "has no 'n'"),
    "a parameter of an optimizer": (
        lambda saved: saved["optimizer"]["param_groups"][0]["params"].pop(),
        ValueError,
        r"state\['optimizer'\] does not fit the checkpoint.*groups have 4 parameters, those that were saved 3",
    ),
    "the groups of an optimizer": (
        lambda saved: saved["optimizer"]["param_groups"].append({"params": []}),
        ValueError,
        "groups have 4 parameters, those that were saved 4 and 0",
    ),
    "an optimizer": (
        lambda saved: saved.update(optimizer={"n": 1}),
        KeyError,
        "'param_groups'",
    ),
}


@pytest.mark.parametrize("place", SPOILT)
def test_nothing_is_half_loaded(place: str, fabric: Fabric, tmp_path: Path) -> None:
    spoil, error, message = SPOILT[place]
    fabric.save(tmp_path / "a", state_of(1))
    saved = fabric.load(tmp_path / "a")
    spoil(saved)
    torch.save(saved, tmp_path / "b")
    state = state_of(2)
    before = contents(state)
    with pytest.raises(error, match=message):
        fabric.load(tmp_path / "b", state)
    assert contents(state) == before


def test_everything_fits(fabric: Fabric, tmp_path: Path) -> None:
    fabric.save(tmp_path / "a", state_of(1))
    state = state_of(2)
    assert fabric.load(tmp_path / "a", state) == {}
    assert contents(state) == contents(state_of(1))


def test_other_objects_come_last(fabric: Fabric, tmp_path: Path) -> None:
    fabric.save(tmp_path / "a", {**state_of(1), "progress": Progress(-1)})
    state = state_of(2)
    with pytest.raises(ValueError, match="negative"):
        fabric.load(tmp_path / "a", state)
    assert contents(state["model"]) == contents(state_of(1)["model"])


def test_modules_that_load_in_a_way_of_their_own(fabric: Fabric, tmp_path: Path) -> None:
    saved = Fancy()
    saved.extra, saved.count = "extra", torch.tensor(3.0)
    old = dict(saved.state_dict())
    old["old"] = old.pop("count")
    torch.save({"model": old}, tmp_path / "a")
    model = Fancy()
    fabric.load(tmp_path / "a", {"model": model})
    assert (model.extra, model.count) == ("extra", 3)
    assert torch.equal(model.inner.weight, saved.inner.weight)
    assert model.again is model.inner

    del old["inner.weight"], old["again.weight"]
    torch.save({"model": old}, tmp_path / "b")
    model = Fancy()
    with pytest.raises(RuntimeError, match=r"inner\.weight"):
        fabric.load(tmp_path / "b", {"model": model})
    assert (model.extra, model.count) == (None, 0)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_without_a_shape_yet(fabric: Fabric, tmp_path: Path) -> None:
    fabric.save(tmp_path / "a", {"model": nn.Linear(3, 2)})
    lazy = nn.LazyLinear(2)
    fabric.load(tmp_path / "a", {"model": lazy})
    assert lazy.weight.shape == (2, 3)


def test_shared_and_tied_parameters(fabric: Fabric, tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    saved, model = tied(), tied()
    fabric.save(tmp_path / "a", {"model": saved})
    fabric.load(tmp_path / "a", {"model": model})
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0].weight, saved[0].weight)


def test_what_was_left_out_is_logged(fabric: Fabric, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model": {"weight": torch.ones(2, 3), "more": torch.ones(1)}}, tmp_path / "a")
    model = nn.Linear(3, 2)
    with caplog.at_level(logging.INFO):
        fabric.load(tmp_path / "a", {"model": model, "epoch": 3}, strict=False)
    assert [record.message for record in caplog.records] == [
        "state['model'] was loaded in part: 'bias' is missing, 'more' is left over.",
        "The checkpoint has no state['epoch']: left as it was.",
    ]
    assert torch.equal(model.weight, torch.ones(2, 3))
