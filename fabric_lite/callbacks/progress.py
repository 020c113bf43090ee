"""Show how far an epoch has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TextIO

from fabric_lite.callbacks._learner import is_first, steps_in_epoch
from fabric_lite.permissions import Callback, Read, StateAccess

# The bar is drawn anew at most this often.
_SECONDS = 0.1


class ProgressPrinter(Callback):
    """Shows a progress bar for each epoch; where there is no terminal, prints a line at its end.

    The bar needs the extra ``progress``; without it, there are lines, and one that names it. Only the first process
    prints.

    State access: reads ``cbstate.history`` (of `Recorder`), ``data`` for the number of steps, and ``fabric``. In a
    hand-written loop, ``data`` and ``fabric`` may be missing.

    Args:
        file: Where to print; by default, the standard output.
        console: A ``rich.console.Console`` to print to instead.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, file: TextIO | None = None, console: Any = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.file = file
        self.console = console
        self.clock = clock
        self._bars: Any = None
        self._tasks: dict[Any, Any] = {}
        self._began: dict[Any, float] = {}
        self._drawn = 0.0
        self._has_hinted = False

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"cbstate": {"history": Read()}, "data": Read(), "fabric": Read()}

    def on_epoch_begin(self, learner: Any, phase: Any) -> None:
        """Begin a bar.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if not is_first(learner):
            return
        self._began[phase] = self.clock()
        console = self._terminal()
        if console is None:
            return
        if self._bars is None:
            self._bars = _bars(console)
            self._bars.start()
        title = f"Epoch {learner.cbstate.history[phase].epochs + 1} {phase.name}"
        self._tasks[phase] = self._bars.add_task(title, total=steps_in_epoch(learner, phase))

    def on_step_end(self, phase: Any) -> None:
        """Move the bar on.

        Args:
            phase: The phase.
        """
        if phase in self._tasks:
            self._bars.advance(self._tasks[phase])
            now = self.clock()
            if now - self._drawn >= _SECONDS:
                self._drawn = now
                self._bars.refresh()

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """End the bar, or print a line.

        Args:
            learner: The learner.
            phase: The phase.
        """
        began = self._began.pop(phase, None)
        if phase in self._tasks:
            task = self._tasks.pop(phase)
            steps = learner.cbstate.history[phase].stepsepoch
            self._bars.update(task, total=steps, completed=steps)
            if not self._tasks:
                self._stop()
        elif began is not None:
            history = learner.cbstate.history[phase]
            seconds = self.clock() - began
            file = self.file or sys.stdout if self.console is None else self.console.file
            print(
                f"Epoch {history.epochs} {phase.name}: {history.stepsepoch} steps, {seconds:.1f} s",
                file=file,
                flush=True,
            )

    def on_fit_end(self) -> None:
        """Take a bar down that an epoch has left, which did not come to its end."""
        self._stop()

    def on_exception(self) -> None:
        """Take the bar down: it hides the cursor, and has taken the standard output over."""
        self._stop()

    def _stop(self) -> None:
        bars, self._bars = self._bars, None
        self._tasks.clear()
        self._began.clear()
        if bars is not None:
            bars.stop()

    def _terminal(self) -> Any:
        """A console of rich, if it is on a terminal."""
        if self.console is not None:
            return self.console if self.console.is_terminal else None
        if self._bars is not None:
            return self._bars.console
        file = self.file or sys.stdout
        if not file.isatty():
            return None
        if find_spec("rich") is None:
            if not self._has_hinted:
                print('A progress bar needs the package rich: pip install "torch-fabric-lite[progress]".', file=file)
                self._has_hinted = True
            return None
        from rich.console import Console

        console = Console(file=file)
        return None if console.is_dumb_terminal else console


def _bars(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # It is drawn from the loop: rich's own thread would live on in workers that a dataloader forks.
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, auto_refresh=False)
