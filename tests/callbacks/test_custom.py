from __future__ import annotations

import pickle
from typing import Any

import pytest

from fabric_lite import Fabric, ProtectedException, Read, State, Write
from fabric_lite.callbacks.custom import CustomCallback
from fabric_lite.events import AbstractTrainingPhase, Event, Phase, TrainingPhase, ValidationPhase

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


def touch(learner: Any) -> None:
    learner.count += 1


def run(callback: CustomCallback, learner: Any, *hooks: str) -> None:
    fabric = Fabric(accelerator="cpu", callbacks=callback, guard="strict")
    for hook in hooks or ("on_step_end",):
        for phase in (TRAIN, VALIDATION):
            fabric.call(hook, learner=learner, phase=phase, event=Event.STEP_END)


def test_one_event_in_every_phase() -> None:
    learner = State(count=0)
    run(CustomCallback(touch, access={"count": Write()}), learner, "on_step_begin", "on_step_end", "on_epoch_end")
    assert learner.count == 2


@pytest.mark.parametrize("phase", [TrainingPhase, AbstractTrainingPhase, TRAIN])
def test_one_phase(phase: Any) -> None:
    learner = State(count=0)
    callback = CustomCallback(touch, Event.STEP_END, phase, {"count": Write()})
    run(callback, learner)
    assert learner.count == 1
    Fabric(accelerator="cpu", callbacks=callback).call("on_step_end", learner=learner)  # outside of any phase
    assert learner.count == 1


def test_the_function_gets_what_it_takes() -> None:
    seen: list[Any] = []
    run(CustomCallback(lambda phase, event: seen.append((phase, event)), phase=TrainingPhase), State())
    assert seen == [(TRAIN, Event.STEP_END)]
    fabric = Fabric(accelerator="cpu", callbacks=CustomCallback(lambda **names: seen.append(names), "on_anything"))
    fabric.call("on_anything", answer=42)
    assert seen[1:] == [{"answer": 42}]


@pytest.mark.parametrize("phase", [TrainingPhase, Phase])
def test_it_is_held_to_its_word(phase: Any) -> None:
    callback = CustomCallback(touch, Event.STEP_END, phase, {"count": Read()})
    with pytest.raises(ProtectedException, match=r"Write access to State\.count disallowed"):
        run(callback, State(count=0))
    fabric = Fabric(accelerator="cpu", callbacks=callback)
    with pytest.raises(ProtectedException, match=r"Write access to State\.count disallowed"):
        fabric.call("on_step_end", State(count=0), phase=TRAIN)  # handed over by position


def test_it_is_pickled_with_its_function() -> None:
    callback = pickle.loads(pickle.dumps(CustomCallback(touch, Event.STEP_END, TrainingPhase, {"count": Write()})))
    learner = State(count=0)
    run(callback, learner)
    assert learner.count == 1
    assert repr(callback).endswith("'on_step_end', TrainingPhase)")


def test_a_hook_that_nobody_calls_is_found() -> None:
    fabric = Fabric(accelerator="cpu", callbacks=CustomCallback(touch, "on_stepp_end"))
    fabric.call("on_step_end", learner=State(), phase=TRAIN)
    assert "`CustomCallback.on_stepp_end` was never called" in str(fabric.callbacks.uncalled()[0])


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"`CustomCallback\(3, 'on_step_end'\)` got something that is not callable"):
        CustomCallback(3)  # type: ignore[arg-type]
    for name in ("init", "_private", "stateaccess"):
        with pytest.raises(ValueError, match=r"no hook can have that name\. Take an `Event`"):
            CustomCallback(touch, name)
    with pytest.raises(TypeError, match=r"`CustomCallback\(\.\.\., phase=<class 'int'>\)`: pass a class of phases"):
        CustomCallback(touch, phase=int)  # type: ignore[arg-type]
