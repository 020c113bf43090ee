from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from fabric_lite import Callback, Fabric, MissingStateError, State, Write
from fabric_lite.callbacks.metrics_printer import MetricsPrinter
from fabric_lite.callbacks.progress import ProgressPrinter
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.callbacks.series import Series
from fabric_lite.events import TrainingPhase, ValidationPhase

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


class Given(Callback):
    """Writes given metrics."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def stateaccess(self) -> Any:
        return {"cbstate.metricsepoch": Write()}

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        if getattr(learner.cbstate, "metricsepoch", None) is None:
            learner.cbstate.metricsepoch = {TRAIN: {}, VALIDATION: {}}
        for name, value in self.values.items():
            series = learner.cbstate.metricsepoch[phase].setdefault(name, Series())
            series.append(len(series) + 1, value)


def epochs(*values: tuple[Any, dict[str, float]], **state: Any) -> str:
    file, given = io.StringIO(), Given()
    fabric = Fabric(accelerator="cpu", callbacks=[MetricsPrinter(file), given, Recorder()], guard="strict")
    learner = State(cbstate=State(), **state)
    for phase, given.values in values:
        fabric.call("on_epoch_end", learner=learner, phase=phase)
    return file.getvalue()


def test_a_table() -> None:
    a_long_name = {"Loss": 1 / 3, "a_long_metric_name": 1e-9}
    assert epochs((TRAIN, {"Loss": 0.5}), (TRAIN, {"Loss": 12345678.0}), (VALIDATION, a_long_name)).splitlines() == [
        "       Phase         Epoch          Loss",
        "------------  ------------  ------------",
        "       train             1           0.5",
        "       train             2    1.2346e+07",
        "       Phase         Epoch          Loss  a_long_metric_name",
        "------------  ------------  ------------  ------------------",
        "  validation             1       0.33333               1e-09",
    ]


def test_other_processes_are_silent() -> None:
    assert epochs((TRAIN, {"Loss": 0.5}), fabric=SimpleNamespace(is_global_zero=False)) == ""


def test_a_new_fit_begins_a_new_table(capsys: pytest.CaptureFixture[str]) -> None:
    given = Given()
    given.values = {"Loss": 1.0}
    fabric = Fabric(accelerator="cpu", callbacks=[MetricsPrinter(), given, Recorder()])
    learner = State(cbstate=State())
    for _ in range(2):
        fabric.call("on_fit_begin", learner=learner)
        fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    assert capsys.readouterr().out.count("Phase") == 2


def test_it_comes_after_the_bar() -> None:
    printer, bar = MetricsPrinter(), ProgressPrinter()
    callbacks = Fabric(accelerator="cpu", callbacks=[printer, bar, Recorder(), Given()]).callbacks
    assert list(callbacks).index(bar) < list(callbacks).index(printer)


def test_it_needs_metrics() -> None:
    with pytest.raises(MissingStateError, match=r"cbstate\.metricsepoch"):
        Fabric(accelerator="cpu", callbacks=MetricsPrinter())
