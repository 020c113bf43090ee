from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import Callback, CancelFittingException, Fabric, Read, State, Write
from fabric_lite.callbacks.checkpointer import Checkpointer
from fabric_lite.callbacks.ema import EMA
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner
from fabric_lite.plugins.io import TorchCheckpointIO

TRAIN, VALID = TrainingPhase(), ValidationPhase()


class Values(Callback):
    """Stands in for `Metrics`: a value for each epoch."""

    def __init__(self, *values: float, name: str = "Loss") -> None:
        self.values, self.name = list(values), name
        self.series: list[tuple[int, float]] = []

    def stateaccess(self) -> Any:
        return {"cbstate.metricsepoch": Write()}

    def init(self, learner: Any) -> None:
        learner.cbstate.metricsepoch = {VALID: {self.name: self.series}}

    def on_validation_epoch_end(self, learner: Any) -> None:
        self.series.append((len(self.series) + 1, self.values[len(self.series)]))


def made(*callbacks: Any, **kwargs: Any) -> tuple[Fabric, State]:
    fabric = Fabric(callbacks=list(callbacks), guard="strict", **kwargs)
    module = torch.nn.Linear(1, 1)
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9))
    return fabric, State(fabric=fabric, model=model, optimizer=optimizer, cbstate=State())


def epochs(fabric: Fabric, learner: State, count: int, steps: int = 2) -> None:
    for _ in range(count):
        for _ in range(steps):
            fabric.call("on_step_end", learner=learner, phase=TRAIN)
        fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
        fabric.call("on_epoch_end", learner=learner, phase=VALID)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "mode, k, kept",
    [
        ("min", 1, ["epoch-004-Loss-0.125.ckpt"]),
        ("min", 2, ["epoch-002-Loss-0.250.ckpt", "epoch-004-Loss-0.125.ckpt"]),
        ("max", 2, ["epoch-001-Loss-0.500.ckpt", "epoch-003-Loss-0.750.ckpt"]),
        ("min", 0, []),
    ],
)
def test_the_best_are_kept(tmp_path: Path, mode: Any, k: int, kept: list[str]) -> None:
    checkpointer = Checkpointer(tmp_path, "Loss", mode, keep_top_k=k)
    fabric, learner = made(checkpointer, Values(0.5, 0.25, 0.75, 0.125, math.nan))
    epochs(fabric, learner, 5)
    assert names(tmp_path) == [*kept, "latest.ckpt"]
    assert sorted(Path(saved.path).name for saved in checkpointer.kept) == kept
    if kept:
        assert checkpointer.best is not None
        assert checkpointer.best.value == (0.125 if mode == "min" else 0.75)


def test_all_are_kept_and_nan_is_worst(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, "a/b", "max", keep_top_k=None, latest=False)
    epochs(*made(checkpointer, Values(math.nan, 1.0, 2.0, name="a/b")), 3)
    assert names(tmp_path) == ["epoch-001-a-b-nan.ckpt", "epoch-002-a-b-1.000.ckpt", "epoch-003-a-b-2.000.ckpt"]
    assert [saved.value for saved in checkpointer.kept[:2]] == [2.0, 1.0]


def test_without_a_monitor_the_newest_are_kept(tmp_path: Path) -> None:
    epochs(*made(Checkpointer(tmp_path, keep_top_k=2, every_n_epochs=2)), 7)
    assert names(tmp_path) == ["epoch-004.ckpt", "epoch-006.ckpt", "latest.ckpt"]


def test_steps(tmp_path: Path) -> None:
    fabric, learner = made(Checkpointer(tmp_path, keep_top_k=2, every_n_epochs=None, every_n_steps=3))
    epochs(fabric, learner, 5)
    assert names(tmp_path) == ["latest.ckpt", "step-00000006.ckpt", "step-00000009.ckpt"]
    assert fabric.load(tmp_path / "latest.ckpt")["callbacks"]["Checkpointer.0"]["steps"] == 9
    fabric.call("on_fit_end", learner=learner)
    assert fabric.load(tmp_path / "latest.ckpt")["callbacks"]["Checkpointer.0"]["steps"] == 10


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, True), (60.0, False)])
def test_every_so_many_minutes(tmp_path: Path, minutes: float, saved: bool) -> None:
    fabric, learner = made(Checkpointer(tmp_path, every_n_minutes=minutes))
    fabric.call("on_fit_begin", learner=learner)
    for step in (1, 2):
        fabric.call("on_step_end", learner=learner, phase=TRAIN)
        assert names(tmp_path) == ["latest.ckpt"] * saved
        if saved:
            assert fabric.load(tmp_path / "latest.ckpt")["callbacks"]["Checkpointer.0"]["steps"] == step
    fabric.call("on_fit_end", learner=learner)


def test_steps_with_a_monitor_write_the_latest_only(tmp_path: Path) -> None:
    fabric, learner = made(Checkpointer(tmp_path, "Loss", every_n_steps=1), Values())
    fabric.call("on_step_end", learner=learner, phase=TRAIN)
    assert names(tmp_path) == ["latest.ckpt"]


def test_what_is_saved(tmp_path: Path) -> None:
    fabric, learner = made(Checkpointer(tmp_path, state={"extra": {"a": 1}}), Recorder())
    epochs(fabric, learner, 1)
    saved = fabric.load(tmp_path / "epoch-001.ckpt")
    assert set(saved) == {"model", "optimizer", "precision", "rng", "extra", "callbacks"}
    assert torch.equal(saved["model"]["weight"], learner.model.weight)
    assert saved["optimizer"]["param_groups"][0]["momentum"] == 0.9
    assert saved["extra"] == {"a": 1}
    assert saved["callbacks"]["Recorder.0"]["train"]["epochs"] == 1
    # it knows of itself: a resumed training goes on to delete it
    assert saved["callbacks"]["Checkpointer.0"]["kept"][0][0] == str(tmp_path / "epoch-001.ckpt")


def test_several_models_and_no_optimizer(tmp_path: Path) -> None:
    fabric = Fabric(callbacks=Checkpointer(tmp_path))
    models = State(one=fabric.setup(torch.nn.Linear(1, 1)), two=torch.nn.Linear(1, 1))
    fabric.call("on_epoch_end", learner=State(fabric=fabric, model=models), phase=TRAIN)
    saved = fabric.load(tmp_path / "latest.ckpt")
    assert set(saved) == {"model", "precision", "rng", "callbacks"}
    assert set(saved["model"]["one"]) == set(saved["model"]["two"]) == {"weight", "bias"}


def test_resuming(tmp_path: Path) -> None:
    values = (0.5, 0.25, 0.75, 0.125)
    epochs(*made(Checkpointer(tmp_path, "Loss", keep_top_k=2), Values(*values[:2])), 2)
    checkpointer = Checkpointer(tmp_path, "Loss", keep_top_k=2)
    fabric, learner = made(checkpointer, Values(*values[2:]))
    fabric.load(tmp_path / "latest.ckpt", {**learner, "callbacks": fabric.callbacks}, strict=False)
    epochs(fabric, learner, 2)
    assert names(tmp_path) == ["epoch-002-Loss-0.250.ckpt", "epoch-004-Loss-0.125.ckpt", "latest.ckpt"]
    assert (checkpointer.epochs, checkpointer.steps) == (4, 8)


class Broken(TorchCheckpointIO):
    fails = False

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if self.fails:
            raise OSError("the disk is full")
        super().save_checkpoint(checkpoint, path, storage_options)


def test_an_old_checkpoint_stays_until_the_new_one_is_there(tmp_path: Path) -> None:
    io = Broken()
    checkpointer = Checkpointer(tmp_path, "Loss")
    fabric, learner = made(checkpointer, Values(0.5, 0.25, 0.125), plugins=io)
    epochs(fabric, learner, 1)
    before = checkpointer.state_dict()["kept"]
    io.fails = True
    with pytest.raises(OSError, match="the disk is full"):
        epochs(fabric, learner, 1)
    assert names(tmp_path) == ["epoch-001-Loss-0.500.ckpt", "latest.ckpt"]
    assert checkpointer.state_dict()["kept"] == before
    io.fails = False
    epochs(fabric, learner, 1)
    assert names(tmp_path) == ["epoch-003-Loss-0.125.ckpt", "latest.ckpt"]


def test_a_checkpoint_that_somebody_deleted(tmp_path: Path) -> None:
    fabric, learner = made(Checkpointer(tmp_path))
    epochs(fabric, learner, 1)
    (tmp_path / "epoch-001.ckpt").unlink()
    epochs(fabric, learner, 1)
    assert names(tmp_path) == ["epoch-002.ckpt", "latest.ckpt"]


def test_a_url() -> None:
    fabric, learner = made(Checkpointer("memory://checkpointer/", every_n_epochs=1))
    epochs(fabric, learner, 2)
    from fsspec import filesystem

    files = sorted(path.rpartition("/")[2] for path in filesystem("memory").ls("/checkpointer", detail=False))
    assert files == ["epoch-002.ckpt", "latest.ckpt"]


def test_two_of_them(tmp_path: Path) -> None:
    epochs(*made(Checkpointer(tmp_path / "a"), Checkpointer(tmp_path / "b", "Loss"), Values(0.5, 1.0)), 2)
    assert names(tmp_path / "a") == ["epoch-002.ckpt", "latest.ckpt"]
    assert names(tmp_path / "b") == ["epoch-001-Loss-0.500.ckpt", "latest.ckpt"]


def test_a_learner_that_is_cancelled(tmp_path: Path) -> None:
    class Stop(Callback):
        """Runs before the checkpointer can save the epoch."""

        def stateaccess(self) -> Any:
            return {"cbstate.history": Read()}

        def on_validation_epoch_end(self, learner: Any, phase: Any) -> None:
            if learner.cbstate.history[phase].epochs == 2:
                raise CancelFittingException("enough")

    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    data = [(torch.ones(2, 1), torch.zeros(2, 1))]
    learner = Learner(
        module,
        torch.nn.functional.l1_loss,
        data=(data, data),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.25),
        callbacks=[Stop(), Recorder(), Metrics(), EMA(0.0, evaluate=True), Checkpointer(tmp_path, "Loss")],
        fabric=Fabric(guard="strict"),
        usedefaultcallbacks=False,
    )
    learner.fit(5)
    assert names(tmp_path) == ["epoch-002-Loss-0.500.ckpt", "latest.ckpt"]
    for name in names(tmp_path):
        saved = learner.fabric.load(tmp_path / name)
        assert saved["model"]["weight"].item() == 0.5
        assert saved["callbacks"]["EMA.0"]["model"]["module.weight"].item() == 0.5


def test_the_monitored_phase(tmp_path: Path) -> None:
    learner = State(fabric=None, model=torch.nn.Linear(1, 1), cbstate=State(metricsepoch={TRAIN: {"Loss": [(1, 0.5)]}}))
    learner.fabric = fabric = Fabric(callbacks=Checkpointer(tmp_path, "Loss", phase=TrainingPhase()))
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    assert names(tmp_path) == ["epoch-001-Loss-0.500.ckpt", "latest.ckpt"]


def test_no_such_metric(tmp_path: Path) -> None:
    match = (
        r"`Checkpointer\(monitor='accuracy'\)`: there is no such metric of ValidationPhase\(\), only 'Loss'. Monitor"
    )
    with pytest.raises(ValueError, match=match):
        epochs(*made(Checkpointer(tmp_path, "accuracy"), Values(0.5)), 1)
    with pytest.raises(ValueError, match=r"there is no such metric of ValidationPhase.., only none"):
        epochs(*made(Checkpointer(tmp_path, "Loss")), 1)


def test_no_fabric(tmp_path: Path) -> None:
    fabric = Fabric(callbacks=Checkpointer(tmp_path))
    with pytest.raises(AttributeError, match=r"(?s)saves through `learner.fabric`, which .* does not have. Write"):
        fabric.call("on_epoch_end", learner=State(model=torch.nn.Linear(1, 1)), phase=TRAIN)


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"mode": "best"}, r"`Checkpointer\(mode='best'\)`: pass 'min' or 'max'"),
        ({"keep_top_k": -1}, r"`Checkpointer\(keep_top_k=-1\)`: pass 0 or more, or None to keep all"),
        ({"every_n_epochs": 0}, r"`Checkpointer\(every_n_epochs=0\)`: pass 1 or more"),
        ({"every_n_steps": 0}, r"`Checkpointer\(every_n_steps=0\)`: pass 1 or more"),
        ({"every_n_minutes": 0}, r"`Checkpointer\(every_n_minutes=0\)`: pass more than 0, or None"),
        ({"signals": ["SIGFOO"]}, r"There is no signal 'SIGFOO'\. Choose among .*SIGTERM"),
        ({"state": {"model": 1}}, "has the name 'model', under which it saves the learner's own. Choose another"),
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Checkpointer(tmp_path, **wrong)
