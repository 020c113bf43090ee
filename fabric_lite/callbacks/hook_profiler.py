"""`HookProfiler`: where the time of the callbacks goes."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from fabric_lite.permissions import unwrap
from fabric_lite.utilities.cloud_io import _atomic_open
from fabric_lite.utilities.rank_zero import rank_zero_only
from fabric_lite.utilities.types import _PATH


class Timing(NamedTuple):
    """The time that the callbacks of one class took in one hook, in seconds.

    Attributes:
        callback: Name of the class.
        hook: Name of the hook.
        calls: How many there were.
        total: Of all calls together.
        mean: Of one call.
        share: Of the total, in that of all callbacks and hooks.
    """

    callback: str
    hook: str
    calls: int
    total: float
    mean: float
    share: float


class HookProfiler:
    """Takes the time of each call of each hook, and prints a table of it when fitting ends.

    It is the time of the process: what a GPU still has to do when a callback returns is not in it. A hook that a
    callback calls counts twice, for that callback too. With several processes, the first one prints.

    It touches no state of the training, and is not guarded. Of several profilers, the first takes the time.

    Args:
        clock: Returns the time in seconds.

    Example:
        >>> profiler = HookProfiler()
        >>> print(profiler.report())
        callback  hook  calls  total [s]  mean [ms]  share
    """

    traces_hooks = True  # what the hook bus looks for

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._taken: dict[tuple[str, str], list[float]] = {}
        self._lock = threading.Lock()

    def trace(self, callback: Any, hook: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Make a call and take its time, also if it raises.

        Args:
            callback: The callback.
            hook: Name of the hook.
            function: What to call.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned.
        """
        began = self.clock()
        try:
            return function(*args, **kwargs)
        finally:
            took = self.clock() - began
            with self._lock:  # an executor may run callbacks in threads
                taken = self._taken.setdefault((type(unwrap(callback)).__name__, hook), [0, 0.0])
                taken[0] += 1
                taken[1] += took

    def timings(self) -> list[Timing]:
        """What was found so far, the longest total first."""
        with self._lock:
            taken = {key: tuple(value) for key, value in self._taken.items()}
        whole = sum(total for _, total in taken.values()) or 1.0
        found = [Timing(*key, int(n), total, total / n, total / whole) for key, (n, total) in taken.items()]
        return sorted(found, key=lambda timing: -timing.total)

    def report(self) -> str:
        """The timings as a table."""
        rows = [("callback", "hook", "calls", "total [s]", "mean [ms]", "share")]
        for name, hook, calls, total, mean, share in self.timings():
            rows.append((name, hook, str(calls), f"{total:.3f}", f"{mean * 1000:.3f}", f"{share:.1%}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            names = (cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
            numbers = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
            lines.append("  ".join((*names, *numbers)))
        return "\n".join(lines)

    def to_csv(self, path: _PATH) -> None:
        """Write the timings into a file, a row for each.

        Args:
            path: A path or fsspec URL; missing folders are made.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(Timing._fields)
        writer.writerows(self.timings())
        with _atomic_open(path) as file:
            file.write(text.getvalue().encode())

    def reset(self) -> None:
        """Forget what was found."""
        with self._lock:
            self._taken.clear()

    def on_fit_end(self) -> None:
        """Print the table."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(self.report())
