from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite import Callback, Fabric, Read, State
from fabric_lite.callbacks.timer import Duration, Timer
from fabric_lite.events import TrainingPhase, ValidationPhase

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


class Loop:
    """A hand-written loop in which time passes as it is told."""

    def __init__(self, learner: Any = None) -> None:
        self.now = 0.0
        self.timer = Timer(clock=lambda: self.now)
        self.fabric = Fabric(accelerator="cpu", callbacks=self.timer, guard="strict")
        self.learner = State(cbstate=State()) if learner is None else learner

    def call(self, hook: str, phase: Any = TRAIN) -> None:
        self.fabric.call(hook, learner=self.learner, phase=phase)

    def epoch(self, phase: Any, steps: list[tuple[float, float]]) -> None:
        """An epoch of steps that take some time, each after some waiting."""
        self.call("on_epoch_begin", phase)
        for waiting, working in steps:
            self.now += waiting
            self.call("on_step_begin", phase)
            self.now += working
            self.call("on_step_end", phase)
        self.call("on_epoch_end", phase)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5))
def test_times(steps: list[tuple[float, float]]) -> None:
    loop = Loop()
    loop.epoch(TRAIN, steps)
    loop.epoch(VALIDATION, [(1, 2)])
    loop.epoch(TRAIN, steps)
    timing = loop.learner.cbstate.timer[TRAIN]
    work, all_ = sum(step[1] for step in steps), sum(map(sum, steps))
    assert timing.step == Duration(count=2 * len(steps), total=2 * work, last=steps[-1][1])
    assert timing.step.mean == pytest.approx(work / len(steps))
    assert timing.epoch == Duration(count=2, total=2 * all_, last=all_)
    assert loop.learner.cbstate.timer[VALIDATION].epoch.mean == 3


def test_what_does_not_end_does_not_count() -> None:
    loop = Loop()
    loop.call("on_epoch_begin")
    loop.call("on_step_begin")
    loop.now = 5.0
    loop.call("on_step_begin")
    loop.now = 7.0
    loop.call("on_step_end")
    loop.call("on_step_end")
    timing = loop.learner.cbstate.timer[TRAIN]
    assert (timing.step, timing.epoch) == (Duration(1, 2.0, 2.0), Duration())
    assert timing.epoch.mean == 0


def test_readers_have_it_from_the_first_event() -> None:
    seen: list[float] = []

    class Reader(Callback):
        def stateaccess(self) -> Any:
            return {"cbstate.timer": Read()}

        def on_epoch_begin(self, learner: Any, phase: Any) -> None:
            seen.append(learner.cbstate.timer[phase].step.mean)

    fabric = Fabric(accelerator="cpu", callbacks=[Reader(), Timer()], guard="strict")
    fabric.call("on_epoch_begin", learner=State(cbstate=State()), phase=TRAIN)
    assert seen == [0]


def test_state() -> None:
    first, second = Loop(), Loop()
    first.epoch(TRAIN, [(1, 2), (3, 4)])
    second.fabric.callbacks.load_state_dict(first.fabric.callbacks.state_dict())
    second.epoch(TRAIN, [(1, 6)])
    assert second.learner.cbstate.timer[TRAIN].step == Duration(3, 12, 6)
    assert second.learner.cbstate.timer[TRAIN].epoch == Duration(2, 17, 7)


def test_without_a_place_for_it() -> None:
    loop = Loop(SimpleNamespace())
    with pytest.raises(AttributeError, match=r"the learner has none\. Give it one: `learner\.cbstate = State\(\)`"):
        loop.call("on_epoch_begin")
