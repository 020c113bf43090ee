from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fabric_lite import Fabric, State
from fabric_lite.callbacks.log_histograms import LogHistograms
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase
from fabric_lite.learner import Learner
from fabric_lite.loggers import CSVLogger, TensorBoardLogger


def histograms(logger: TensorBoardLogger) -> dict[str, list[tuple[int, float, float]]]:
    """Step, number and sum of what each histogram counted."""
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
    return {
        tag: [(event.step, event.histogram_value.num, event.histogram_value.sum) for event in events.Histograms(tag)]
        for tag in events.Tags()["histograms"]
    }


def test_a_learner(tmp_path: Path) -> None:
    data = [(torch.full((2, 3), float(i)), torch.zeros(2, 1)) for i in range(1, 6)]
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    logger = TensorBoardLogger(tmp_path)
    learner = Learner(
        model,
        lambda preds, ys: preds.sum(),
        data=(data,),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.0),
        callbacks=[LogHistograms(freq=2), Recorder()],
        fabric=Fabric(loggers=[CSVLogger(tmp_path), logger], guard="strict"),
        usedefaultcallbacks=False,
    )
    learner.fit(1)
    # the gradient of each of the three weights is twice the input
    assert histograms(logger) == {
        "params/weight": [(2, 3, 6.0), (4, 3, 6.0)],
        "grads/weight": [(2, 3, 12.0), (4, 3, 24.0)],
    }


def step(logger: Any, learner: Any) -> None:
    fabric = Fabric(callbacks=[LogHistograms(*logger, freq=1), Recorder()])
    fabric.call("on_step_end", learner=learner, phase=TrainingPhase())


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    step([logger], State(model=torch.nn.Linear(2, 1), cbstate=State()))
    assert {tag: values[0][:2] for tag, values in histograms(logger).items()} == {
        "params/weight": (1, 2),
        "params/bias": (1, 1),
    }


def test_a_logger_without_histograms(tmp_path: Path) -> None:
    match = r"`LogHistograms` cannot log to `CSVLogger`: the `experiment` there has no `add_histogram`. Write `LogHist"
    learner = State(model=torch.nn.Linear(2, 1), cbstate=State())
    with pytest.raises(TypeError, match=match):
        step([CSVLogger(tmp_path), TensorBoardLogger(tmp_path)], learner)
    with pytest.raises(TypeError, match=match):
        step([], State(learner, fabric=Fabric(loggers=CSVLogger(tmp_path))))
