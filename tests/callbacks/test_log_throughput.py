from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fabric_lite import Fabric, State
from fabric_lite.callbacks.log_throughput import LogThroughput, batch_size
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner


class Rows:
    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_learner() -> None:
    logger, clock = Rows(), Clock()

    class Work:
        def on_train_step_begin(self) -> None:
            clock.now += 0.5

        def on_validation_step_begin(self) -> None:
            clock.now += 1000.0

    data = [(torch.zeros(4, 1), torch.zeros(4, 1))] * 4
    learner = Learner(
        torch.nn.Linear(1, 1),
        torch.nn.functional.mse_loss,
        data=(data, data),
        callbacks=[Work(), LogThroughput(logger, freq=3, clock=clock), Recorder()],
        fabric=Fabric(guard="strict"),
        usedefaultcallbacks=False,
    )
    learner.fit(2)
    rates = {"train/device/batches_per_sec": 2.0, "train/device/samples_per_sec": 8.0}
    assert logger.rows == [
        (3, {"train/time": 1.5, "train/batches": 3, "train/samples": 12, **rates}),
        (6, {"train/time": 3.0, "train/batches": 6, "train/samples": 24, **rates}),
    ]


def test_steps_without_epochs_and_several_processes() -> None:
    logger, clock = Rows(), Clock()
    fabric = Fabric(callbacks=[Recorder(), LogThroughput(logger, freq=1, window=2, samples=lambda xs: xs, clock=clock)])
    learner = State(cbstate=State(), fabric=SimpleNamespace(world_size=3))
    for samples in (1, 2, 6):
        learner.step = State(xs=samples)
        fabric.call("on_step_begin", learner=learner, phase=TrainingPhase())
        clock.now += 1.0
        fabric.call("on_step_end", learner=learner, phase=TrainingPhase())
        fabric.call("on_step_end", learner=learner, phase=ValidationPhase())
    assert [row.get("train/samples_per_sec") for _, row in logger.rows] == [None, 4.5, 12.0]
    assert logger.rows[1][1]["train/device/samples_per_sec"] == 1.5


def test_no_beginning() -> None:
    fabric = Fabric(callbacks=[LogThroughput(Rows()), Recorder()])
    with pytest.raises(
        RuntimeError, match=r'has seen the end of a step, but no beginning. Write `fabric.call\("on_step'
    ):
        fabric.call("on_step_end", learner=State(cbstate=State()), phase=TrainingPhase())


def test_number_of_samples() -> None:
    xs = torch.zeros(5, 2)
    assert [batch_size(batch) for batch in (xs, [xs, 1], {"a": (xs,)})] == [5, 5, 5]
    for batch in (torch.tensor(1.0), [], {}, "text"):
        with pytest.raises(
            TypeError, match=r"cannot see how many samples.* `LogThroughput\(samples=lambda xs: \.\.\.\)"
        ):
            batch_size(batch)
