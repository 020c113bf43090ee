from __future__ import annotations

from typing import Any

import pytest
import torch

from fabric_lite import Fabric, MissingStateError, State
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.callbacks.traces import LogTraces, Traces
from fabric_lite.events import Phase, TrainingPhase, ValidationPhase


class Rows:
    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def run(fabric: Fabric, learner: State, values: list[float]) -> None:
    for value in values:
        learner.step = State(preds=torch.tensor([value, 0.0], requires_grad=True))
        for phase in (TrainingPhase(), ValidationPhase()):
            fabric.call("on_step_end", learner=learner, phase=phase)


def largest(learner: Any) -> Any:
    return learner.step.preds.max()


def test_traces_and_their_log() -> None:
    logger = Rows()
    callbacks = [LogTraces(logger, freq=2), Traces({"max": largest, "two": lambda learner: 2}), Recorder()]
    fabric = Fabric(callbacks=callbacks, guard="strict")
    learner = State(cbstate=State())
    run(fabric, learner, [1.0, 5.0, 3.0, 4.0])
    assert learner.cbstate.traces == {
        "max": [(1, 1.0), (2, 5.0), (3, 3.0), (4, 4.0)],
        "two": [(1, 2), (2, 2), (3, 2), (4, 2)],
    }
    assert not any(value.requires_grad for _, value in learner.cbstate.traces["max"])
    assert logger.rows == [(2, {"traces/max": 5.0, "traces/two": 2}), (4, {"traces/max": 4.0, "traces/two": 2})]


def test_phases() -> None:
    learner = State(cbstate=State())
    each, validation = Traces({"each": largest}, Phase), Traces({"validation": largest}, ValidationPhase)
    run(Fabric(callbacks=[Recorder(), each, validation]), learner, [1.0, 2.0])
    assert {name: len(values) for name, values in learner.cbstate.traces.items()} == {"each": 4, "validation": 2}


def test_two_with_one_name() -> None:
    with pytest.raises(ValueError, match=r"Two `Traces` have the name 'max'. Give one of them another name"):
        Fabric(callbacks=[Recorder(), Traces({"max": largest}), Traces({"max": largest})])


def test_state_round_trip() -> None:
    before, after = Traces({"max": largest}), Traces({"max": largest, "new": largest})
    run(Fabric(callbacks=[Recorder(), before]), State(cbstate=State()), [1.0, 2.0])
    learner = State(cbstate=State())
    fabric = Fabric(callbacks=[Recorder(), after])
    fabric.callbacks.attach(learner)
    after.load_state_dict(before.state_dict())
    run(fabric, learner, [3.0])
    assert [value.item() for _, value in learner.cbstate.traces["max"]] == [1.0, 2.0, 3.0]
    assert after.state_dict()["traces"]["new"] == [(1, 3.0)]


def test_what_is_missing() -> None:
    with pytest.raises(MissingStateError, match=r"(?s)LogTraces.*cbstate.traces"):
        Fabric(callbacks=[LogTraces()])
    with pytest.raises(MissingStateError, match=r"(?s)Traces.*cbstate.history.*Recorder"):
        Fabric(callbacks=[Traces({})])
