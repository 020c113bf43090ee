"""All that log, measure and save in one training: they do not disturb it, nor each other."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import Fabric, ThreadedExecutor
from fabric_lite.callbacks.checkpointer import Checkpointer
from fabric_lite.callbacks.ema import EMA
from fabric_lite.callbacks.gradient_norm import GradientNorm
from fabric_lite.callbacks.hook_profiler import HookProfiler
from fabric_lite.callbacks.log_histograms import LogHistograms
from fabric_lite.callbacks.log_hyperparams import LogHyperParams
from fabric_lite.callbacks.log_metrics import LogMetrics
from fabric_lite.callbacks.log_throughput import LogThroughput
from fabric_lite.callbacks.log_visualization import LogVisualization
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.callbacks.traces import LogTraces, Traces
from fabric_lite.learner import Learner
from fabric_lite.loggers import CSVLogger, TensorBoardLogger


def trained(callbacks: list[Any], **options: Any) -> Learner:
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(6)]
    learner = Learner(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)),
        torch.nn.functional.mse_loss,
        data=(data[:4], data[4:]),
        callbacks=callbacks,
        fabric=Fabric(**options),
        usedefaultcallbacks=False,
    )
    learner.fit(3)
    return learner


@pytest.mark.parametrize("threads", [None, 2])
def test_a_training_with_everything(tmp_path: Path, threads: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")
    executor = None if threads is None else ThreadedExecutor(threads)
    callbacks = [
        LogMetrics(freq=2),
        LogHyperParams(),
        LogHistograms(freq=4),
        LogVisualization(lambda learner: learner.step.xs.sigmoid(), name="batch"),
        LogTraces(freq=4),
        Traces({"mean": lambda learner: learner.step.preds.mean()}),
        LogThroughput(freq=4),
        GradientNorm(freq=4),
        EMA(decay=0.5, evaluate=True),
        Checkpointer(tmp_path / "checkpoints", "Loss"),
        Recorder(),
        Metrics(),
        HookProfiler(),
    ]
    learner = trained(callbacks, loggers=list(loggers), guard="strict", executor=executor)
    plain = trained([])
    for name, parameter in plain.model.state_dict().items():
        assert torch.equal(parameter, learner.model.state_dict()[name]), name

    place = {type(callback): index for index, callback in enumerate(learner.callbacks)}
    assert all(place[Checkpointer] > place[kind] for kind in (Recorder, Metrics, EMA, GradientNorm, Traces))
    epochs = learner.cbstate.metricsepoch
    with open(Path(loggers[0].log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for phase, series in epochs.items():
        logged = [(int(row["step"]), float(row[f"{phase.name}/Loss"])) for row in rows if row[f"{phase.name}/Loss"]]
        assert logged == list(series["Loss"])
    assert sum(bool(row["train/GradientNorm"]) for row in rows) == 3
    (best,) = learner.callbacks.get(Checkpointer).kept
    assert Path(best.path).exists()
    saved = learner.fabric.load(tmp_path / "checkpoints" / "latest.ckpt")
    assert {"EMA.0", "Metrics.0", "Recorder.0", "Traces.0", "Checkpointer.0"} <= set(saved["callbacks"])
    table = capsys.readouterr().out
    assert "Checkpointer" in table
    assert "on_backward_end" in table
    if executor is not None:
        executor.close()
