from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import Callback, Fabric, MissingStateError, State, Write
from fabric_lite.callbacks.log_metrics import LogMetrics
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner
from fabric_lite.loggers import CSVLogger

TRAIN, VALID = TrainingPhase(), ValidationPhase()


class Rows:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.saves = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def save(self) -> None:
        self.saves += 1


class Source(Callback):
    """Stands in for `Metrics`: writes what it is told to."""

    def on_epoch_end(self, learner: Any) -> None: ...

    def __init__(self, step: Any, epoch: Any) -> None:
        self.step, self.epoch = step, epoch

    def stateaccess(self) -> Any:
        return {"cbstate": {"metricsstep": Write(), "metricsepoch": Write()}}

    def init(self, learner: Any) -> None:
        learner.cbstate.metricsstep, learner.cbstate.metricsepoch = self.step, self.epoch


def test_steps_and_epochs_have_names_and_numbers() -> None:
    logger = Rows()
    losses, epochs = [], {"Loss": [(1, 0.5)]}
    fabric = Fabric(callbacks=[LogMetrics(logger, freq=2), Source({TRAIN: {"Loss": losses}}, {VALID: epochs})])
    learner = State(cbstate=State())
    fabric.callbacks.attach(learner)
    for step in range(1, 6):
        losses.append((step, 1.0 / step))
        fabric.call("on_step_end", learner=learner, phase=TRAIN)
        fabric.call("on_step_end", learner=learner, phase=VALID)
    fabric.call("on_epoch_end", learner=learner, phase=VALID)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)  # which has none
    fabric.call("on_fit_end", learner=learner)
    assert logger.rows == [
        (2, {"train/step/Loss": 0.5}),
        (4, {"train/step/Loss": 0.25}),
        (1, {"validation/Loss": 0.5}),
    ]
    assert logger.saves == 1


def test_a_metric_that_was_not_computed_this_time_is_left_out() -> None:
    logger = Rows()
    epochs = {"Loss": [(1, 0.5), (2, 0.25)], "slow": [(1, 7.0)], "new": []}
    fabric = Fabric(callbacks=[LogMetrics(logger, freq=None), Source({}, {TRAIN: epochs})])
    fabric.call("on_epoch_end", learner=State(cbstate=State()), phase=TRAIN)
    assert logger.rows == [(2, {"train/Loss": 0.25})]


def test_the_loggers_of_the_fabric_are_the_default() -> None:
    loggers = [Rows(), Rows()]
    fabric = Fabric(loggers=loggers, callbacks=[LogMetrics(), Source({}, {TRAIN: {"Loss": [(1, 0.5)]}})])
    fabric.call("on_epoch_end", learner=State(cbstate=State(), fabric=fabric), phase=TRAIN)
    assert [logger.rows for logger in loggers] == [[(1, {"train/Loss": 0.5})]] * 2


@pytest.mark.parametrize("learner", [State(cbstate=State()), State(cbstate=State(), fabric=Fabric())])
def test_nowhere_to_log_to(learner: State) -> None:
    fabric = Fabric(callbacks=[LogMetrics(), Source({}, {TRAIN: {"Loss": [(1, 0.5)]}})])
    with pytest.raises(ValueError, match=r"`LogMetrics` has nowhere to log to.* Write `LogMetrics\(..., CSVLogger"):
        fabric.call("on_epoch_end", learner=learner, phase=TRAIN)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"`LogMetrics` got 10 as a logger, which has no `log_metrics`.* by name"):
        LogMetrics(10)
    with pytest.raises(ValueError, match=r"`LogMetrics\(freq=0\)`: pass 1 or more, or None for never"):
        LogMetrics(freq=0)
    with pytest.raises(MissingStateError, match=r"(?s)LogMetrics.*metricsepoch.*Metrics"):
        Fabric(callbacks=[LogMetrics(Rows())])


def test_a_learner_and_a_file(tmp_path: Path) -> None:
    data = [(torch.full((4, 1), float(i)), torch.zeros(4, 1)) for i in range(1, 4)]
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    logger = CSVLogger(tmp_path)
    learner = Learner(
        model,
        torch.nn.functional.l1_loss,
        data=(data, data),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.0),
        callbacks=[LogMetrics(logger, freq=2), Recorder(), Metrics()],
        fabric=Fabric(guard="strict"),
        usedefaultcallbacks=False,
    )
    learner.fit(2)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    # losses of 1, 2 and 3 in each epoch
    assert rows == [
        {"step": 2, "train/step/Loss": 2.0},
        {"step": 1, "train/Loss": 2.0},
        {"step": 1, "validation/Loss": 2.0},
        {"step": 4, "train/step/Loss": 1.0},
        {"step": 6, "train/step/Loss": 3.0},
        {"step": 2, "train/Loss": 2.0},
        {"step": 2, "validation/Loss": 2.0},
    ]
