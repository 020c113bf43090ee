"""`LogThroughput`: how fast a training is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fabric_lite.callbacks._logging import LoggingCallback, every, steps_done
from fabric_lite.loggers.logger import log_to_all
from fabric_lite.permissions import Read, StateAccess
from fabric_lite.utilities.throughput import Throughput


class LogThroughput(LoggingCallback):
    """Logs batches and samples per second, averages over the last steps.

    They are called ``train/device/samples_per_sec`` …, as `fabric_lite.utilities.Throughput` calls them. Time counts
    from the beginning to the end of training epochs: loading of data is in it, validation is not. A GPU works behind
    the clock's back by a few steps, which an average over many of them does not notice.

    Reads ``step.xs``, ``fabric`` (the loop need not have it: one process, then) and ``cbstate.history``.

    Args:
        *loggers: Where to; by default, to the loggers of the learner's `Fabric`.
        freq: Log at each so manieth training step.
        window: The number of steps that the averages are taken over; by default, ``freq``.
        samples: Number of samples in ``step.xs``; by default, the length of the first tensor in it.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        *loggers: Any,
        freq: int = 50,
        window: int | None = None,
        samples: Callable[[Any], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(*loggers)
        self.freq = every(freq, self) or 1
        self.window = every(window, self, "window") or self.freq
        self.samples = samples or batch_size
        self.clock = clock
        self._throughput: Throughput | None = None
        self._totals = {"batches": 0, "samples": 0}
        self._before = 0.0  # the time of the epochs that are over
        self._began: float | None = None

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"fabric": Read(), "step.xs": Read(), "cbstate.history": Read()}

    def on_train_epoch_begin(self, learner: Any) -> None:
        """Start the clock, unless it runs.

        Args:
            learner: The learner.
        """
        if self._began is None:
            self._began = self.clock()
        if self._throughput is None:
            processes = getattr(getattr(learner, "fabric", None), "world_size", 1)
            # n steps lie between n + 1 moments, of which this is the first
            self._throughput = Throughput(world_size=processes, window_size=self.window + 1)
            self._throughput.update(time=0.0, **self._totals)

    # for loops without epochs
    on_train_step_begin = on_train_epoch_begin

    def on_train_step_end(self, learner: Any, phase: Any) -> None:
        """Count the step, and log if it is time.

        Args:
            learner: The learner.
            phase: The phase.

        Raises:
            RuntimeError: If the beginning of neither an epoch nor a step was seen.
        """
        if self._throughput is None or self._began is None:
            raise RuntimeError(
                "`LogThroughput` has seen the end of a step, but no beginning. Write"
                ' `fabric.call("on_step_begin", learner=learner, phase=phase)` where a step begins.'
            )
        self._totals["batches"] += 1
        self._totals["samples"] += self.samples(learner.step.xs)
        self._throughput.update(time=self._before + self.clock() - self._began, **self._totals)
        step = steps_done(learner, phase)
        if step % self.freq == 0:
            metrics = {f"{phase.name}/{name}": value for name, value in self._throughput.compute().items()}
            log_to_all(self.targets(learner), metrics, step)

    def on_train_epoch_end(self) -> None:
        """Stop the clock."""
        if self._began is not None:
            self._before += self.clock() - self._began
            self._began = None


def batch_size(xs: Any) -> int:
    """The length of the first tensor in a batch.

    Args:
        xs: A tensor, or a mapping or sequence of tensors, in any nesting.

    Raises:
        TypeError: If there is none.
    """
    if isinstance(xs, Mapping):
        return batch_size(next(iter(xs.values()), None))
    if isinstance(xs, Sequence) and not isinstance(xs, str) and len(xs):
        return batch_size(xs[0])
    if isinstance(xs, Tensor) and xs.ndim:
        return xs.shape[0]
    raise TypeError(
        f"`LogThroughput` cannot see how many samples there are in a `{type(xs).__name__}`. Say it:"
        " `LogThroughput(samples=lambda xs: ...)`."
    )
