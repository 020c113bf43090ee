"""The callbacks that a `Learner` has unless it is told otherwise."""

from __future__ import annotations

from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.metrics_printer import MetricsPrinter
from fabric_lite.callbacks.progress import ProgressPrinter
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.callbacks.stop_on_nan import StopOnNaNLoss
from fabric_lite.permissions import Callback


def default_callbacks() -> list[Callback]:
    """Make a new one of each."""
    return [Recorder(), Metrics(), ProgressPrinter(), MetricsPrinter(), StopOnNaNLoss()]
