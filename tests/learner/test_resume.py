"""`Learner.fit(..., resume=...)`: a training that was interrupted ends as if it had not been."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import CancelFittingException, Fabric, Learner, TrainingPhase, ValidationPhase
from fabric_lite.callbacks import Checkpointer, EarlyStopping, LearningRate, Metrics, Recorder, Scheduler, onecycle

STEPS = 4  # of an epoch
EPOCHS = 3


class Interrupted(Exception):
    """What a killed process does not raise."""


class Interrupt:
    """Ends training at the beginning of the step that follows some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_train_step_begin(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted


def make(folder: Path, *more: Any, seed: int = 1, **checkpointer: Any) -> Learner:
    """A learner with dropout, shuffled data, a schedule and stopping: nothing may be lost of any of them."""
    torch.manual_seed(seed)
    xs = torch.arange(32.0).reshape(16, 2) / 32
    training = DataLoader(TensorDataset(xs, xs.sum(1, keepdim=True)), 4, shuffle=True)
    validation = DataLoader(TensorDataset(xs, xs.prod(1, keepdim=True)), 8)
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.4), nn.Linear(8, 1))
    callbacks = [
        Recorder(),
        Metrics(),
        Scheduler({LearningRate: onecycle(EPOCHS, 0.05)}),
        EarlyStopping(9),
        Checkpointer(folder, every_n_steps=1, keep_top_k=1, **checkpointer),
        *more,
    ]
    fabric = Fabric(accelerator="cpu", devices=1)
    optimizer = torch.optim.AdamW
    return Learner(
        model,
        nn.functional.mse_loss,
        data=(training, validation),
        optimizer=optimizer,
        callbacks=callbacks,
        fabric=fabric,
        usedefaultcallbacks=False,
    )


def outcome(learner: Learner) -> dict[str, Any]:
    """All that must be the same."""
    phases = (TrainingPhase(), ValidationPhase())
    metrics = [dict(learner.cbstate.metricsepoch[phase]) for phase in phases]
    values = [{name: list(series) for name, series in found.items()} for found in metrics]
    history = [vars(learner.cbstate.history[phase]) for phase in phases]
    weights = {name: value.tolist() for name, value in learner.model.state_dict().items()}
    return {"weights": weights, "metrics": values, "history": history, "rng": torch.rand(2).tolist()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    learner = make(tmp_path_factory.mktemp("whole"))
    learner.fit(EPOCHS)
    return outcome(learner)


@pytest.mark.parametrize("after", range(1, STEPS * EPOCHS))
def test_it_ends_as_if_it_had_not_been_interrupted(tmp_path: Path, expected: dict[str, Any], after: int) -> None:
    interrupted = make(tmp_path, Interrupt(after))
    with pytest.raises(Interrupted):
        interrupted.fit(EPOCHS)
    learner = make(tmp_path, seed=2)
    learner.fit(EPOCHS, resume="latest")
    assert outcome(learner) == expected


def test_interrupted_again_and_again(tmp_path: Path, expected: dict[str, Any]) -> None:
    for seed in (1, 3, 4):
        with pytest.raises(Interrupted):
            make(tmp_path, Interrupt(3), seed=seed).fit(EPOCHS, resume="latest")
    learner = make(tmp_path, seed=9)
    learner.fit(EPOCHS, resume="latest")
    assert outcome(learner) == expected


def test_a_finished_training_has_nothing_to_do(tmp_path: Path, expected: dict[str, Any]) -> None:
    make(tmp_path).fit(EPOCHS)
    learner = make(tmp_path, seed=2)
    learner.fit(EPOCHS, resume="latest")
    found = outcome(learner)
    assert {**found, "rng": 0} == {**expected, "rng": 0}
    assert learner.progress.epochs == EPOCHS


def test_epochs_are_counted_from_the_first_one(tmp_path: Path) -> None:
    make(tmp_path).fit(2)
    learner = make(tmp_path, seed=2)
    learner.fit(EPOCHS, resume=tmp_path / "latest.ckpt")
    assert (learner.progress.epochs, learner.cbstate.history[TrainingPhase()].epochs) == (EPOCHS, EPOCHS)
    learner.fit(1)
    assert (learner.progress.epochs, learner.cbstate.history[TrainingPhase()].epochs) == (1, EPOCHS + 1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_at_the_end_of_the_step(tmp_path: Path, expected: dict[str, Any], name: str) -> None:
    class Preempt:
        steps = 0

        def on_train_step_begin(self) -> None:
            self.steps += 1
            if self.steps == 6:
                os.kill(os.getpid(), signal.Signals[name])

    seen: list[int] = []
    before = signal.signal(signal.Signals[name], lambda number, _: seen.append(number))
    try:
        learner = make(tmp_path, Preempt(), latest=False)
        learner.fit(EPOCHS)
        assert seen == [signal.Signals[name]]
        assert learner.stop_reason == f"preempted by {name}; everything is in {tmp_path}/latest.ckpt"
        os.kill(os.getpid(), signal.Signals[name])  # its handler is back
        assert len(seen) == 2
    finally:
        signal.signal(signal.Signals[name], before)
    resumed = make(tmp_path, seed=2)
    resumed.fit(EPOCHS, resume="latest")
    assert outcome(resumed) == expected


def test_a_signal_in_a_validation(tmp_path: Path, expected: dict[str, Any]) -> None:
    class Preempt:
        steps = 0

        def on_validation_step_begin(self) -> None:
            self.steps += 1
            if self.steps == 3:  # the first of the second epoch
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    learner = make(tmp_path, Preempt())
    learner.fit(EPOCHS)
    assert signal.getsignal(signal.SIGTERM) == before
    assert str(learner.stop_reason).startswith("preempted by SIGTERM")
    resumed = make(tmp_path, seed=2)
    resumed.fit(EPOCHS, resume="latest")
    assert outcome(resumed) == expected


def test_a_hand_written_loop_catches_the_end(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=checkpointer)
    model, optimizer = fabric.setup(model := nn.Linear(1, 1), torch.optim.SGD(model.parameters()))
    learner = type("Loop", (), {"fabric": fabric, "model": model, "optimizer": optimizer})()
    before = signal.getsignal(signal.SIGUSR1)
    fabric.call("on_fit_begin", learner=learner)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(CancelFittingException, match=re.escape(f"preempted by SIGUSR1; everything is in {tmp_path}")):
        fabric.call("on_train_step_end", learner=learner)
    fabric.call("on_fit_end", learner=learner)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert fabric.load(tmp_path / "latest.ckpt")["callbacks"]["Checkpointer.0"]["steps"] == 1


def test_the_latest_needs_a_checkpointer() -> None:
    learner = Learner(nn.Linear(1, 1), nn.functional.mse_loss, data=([],), fabric=Fabric(accelerator="cpu", devices=1))
    with pytest.raises(ValueError, match=r"looks for the newest checkpoint of a `Checkpointer`, and none"):
        learner.fit(1, resume="latest")


def test_data_without_a_position_begins_anew(tmp_path: Path) -> None:
    def learner(*more: Any) -> Learner:
        batches = [(torch.ones(2, 1), torch.ones(2, 1))] * 3
        callbacks = [Recorder(), Checkpointer(tmp_path, every_n_steps=1), *more]
        fabric = Fabric(accelerator="cpu", devices=1)
        return Learner(
            nn.Linear(1, 1), nn.functional.mse_loss, data=(batches,), callbacks=callbacks, fabric=fabric,
            usedefaultcallbacks=False,
        )  # fmt: skip

    with pytest.raises(Interrupted):
        learner(Interrupt(2)).fit(1)
    resumed = learner()
    with pytest.warns(UserWarning, match=r"data that is no `torch.utils.data.DataLoader` has no position to go"):
        resumed.fit(1, resume="latest")
    assert resumed.cbstate.history[TrainingPhase()].steps == 5
