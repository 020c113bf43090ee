"""Measure how long epochs and steps take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fabric_lite.callbacks._by_phase import ByPhase
from fabric_lite.permissions import Callback, StateAccess, Write


@dataclass
class Duration:
    """How long something took that happened several times, in seconds.

    Attributes:
        count: How many times.
        total: All together.
        last: The last one.
        mean: The mean; 0 if there was none.
    """

    count: int = 0
    total: float = 0.0
    last: float = 0.0

    @property
    def mean(self) -> float:
        """The mean; 0 if there was none."""
        return self.total / self.count if self.count else 0.0

    def add(self, seconds: float) -> None:
        """Count one more.

        Args:
            seconds: How long it took.
        """
        self.count, self.total, self.last = self.count + 1, self.total + seconds, seconds


@dataclass
class Timing:
    """How long the epochs and the steps of a phase took.

    Attributes:
        epoch: Its epochs, with everything in between the steps.
        step: Its steps, without what is between them, such as waiting for data.
    """

    epoch: Duration = field(default_factory=Duration)
    step: Duration = field(default_factory=Duration)


def _new(phase: Any) -> Timing:
    return Timing()


def _restored(phase: Any, state: Mapping[str, Any]) -> Timing:
    return Timing(Duration(**state["epoch"]), Duration(**state["step"]))


class Timer(Callback):
    """Measures how long epochs and steps take, in ``cbstate.timer[phase]``, a `Timing`.

    Steps and epochs that do not come to their end do not count. Devices work on while the clock is read: a step's time
    is that in which it was handed to the device, and only over an epoch the two come to the same.

    State access: writes ``cbstate.timer``.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._timings: ByPhase[Timing] = ByPhase(_new, _restored)
        self._began: dict[tuple[str, Any], float] = {}

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"cbstate": {"timer": Write()}}

    def init(self, learner: Any) -> None:
        """Make the entry.

        Args:
            learner: The learner.

        Raises:
            AttributeError: If the learner has no ``cbstate``.
        """
        if getattr(learner, "cbstate", None) is None:
            raise AttributeError(
                "`Timer` keeps its times in `learner.cbstate`, and the learner has none. Give it one:"
                " `learner.cbstate = State()`."
            )
        learner.cbstate.timer = self._timings

    def on_epoch_begin(self, learner: Any, phase: Any) -> None:
        """Look at the clock.

        Args:
            learner: The learner.
            phase: The phase.
        """
        self._timings.begun(phase)
        self._began["epoch", phase] = self.clock()

    def on_step_begin(self, learner: Any, phase: Any) -> None:
        """Look at the clock.

        Args:
            learner: The learner.
            phase: The phase.
        """
        self._timings.begun(phase)
        self._began["step", phase] = self.clock()

    def on_step_end(self, learner: Any, phase: Any) -> None:
        """Count a step.

        Args:
            learner: The learner.
            phase: The phase.
        """
        self._ended("step", phase)

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Count an epoch.

        Args:
            learner: The learner.
            phase: The phase.
        """
        self._ended("epoch", phase)

    def _ended(self, what: str, phase: Any) -> None:
        now, began = self.clock(), self._began.pop((what, phase), None)
        if began is not None:
            duration: Duration = getattr(self._timings.begun(phase), what)
            duration.add(now - began)

    def state_dict(self) -> dict[str, Any]:
        """The times of all phases."""
        return self._timings.state_dict(asdict)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._timings.load_state_dict(state)
