"""Print metrics as a table."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from fabric_lite.callbacks._learner import is_first
from fabric_lite.callbacks.progress import ProgressPrinter
from fabric_lite.permissions import Callback, Read, StateAccess

_WIDTH = 12


class MetricsPrinter(Callback):
    """Prints the metrics of each epoch as a row of a table, with a head whenever the columns change.

    Only the first process prints.

    State access: reads ``cbstate.metricsepoch`` (of `Metrics`), ``cbstate.history`` (of `Recorder`) and ``fabric``. In
    a hand-written loop, ``fabric`` may be missing.

    Args:
        file: Where to print; by default, the standard output.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self._columns: tuple[str, ...] = ()

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"cbstate": {"metricsepoch": Read(), "history": Read()}, "fabric": Read()}

    def runafter(self) -> tuple[type, ...]:
        """The bar of the epoch comes first."""
        return (ProgressPrinter,)

    def on_fit_begin(self) -> None:
        """Begin a table."""
        self._columns = ()

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Print a row.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if not is_first(learner):
            return
        metrics = learner.cbstate.metricsepoch[phase]
        values = {name: _written(series.last) for name, series in metrics.items() if len(series)}
        columns = ("Phase", "Epoch", *values)
        widths = [max(_WIDTH, len(column)) for column in columns]
        rows = [(phase.name or type(phase).__name__, str(learner.cbstate.history[phase].epochs), *values.values())]
        if columns != self._columns:
            rows = [columns, tuple("-" * width for width in widths), *rows]
        self._columns = columns
        for row in rows:
            line = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            print(line, file=self.file or sys.stdout, flush=True)


def _written(value: Any) -> str:
    """A value as a cell: numbers with five digits."""
    try:
        return f"{float(value):.5g}"
    except (TypeError, ValueError):
        return str(value)
