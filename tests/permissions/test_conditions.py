from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re
from unittest.mock import Mock

import pytest

from fabric_lite.permissions import (
    Callback,
    ConditionalCallback,
    NoConflict,
    Read,
    Throttle,
    is_guarded,
    throttle,
    unwrap,
)


class Phase:
    name = "train"


class Special(Phase):
    name = "warmup"


class Logger(Callback):
    rate = 3

    def __init__(self):
        self.log = []

    def stateaccess(self):
        return {"step.loss": Read()}

    def runafter(self):
        return (int,)

    def resolveconflict(self, other):
        return NoConflict()

    def init(self, learner):
        self.log.append(("init", learner))

    def state_dict(self):
        return {"log": list(self.log)}

    def load_state_dict(self, state):
        self.log = list(state["log"])

    def on_step_end(self, learner, loss=1):
        self.log.append(("step", learner, loss))
        return "ran"

    def on_train_step_end(self, phase):
        self.log.append(("train step", phase))

    def on_any(self, *args, **kwargs):
        self.log.append((args, kwargs))

    @staticmethod
    def on_static(phase, x):
        return phase, x

    @functools.cached_property
    def on_value(self):
        return 5


def never(hook, phase):
    return False


def always(hook, phase):
    return True


def test_everything_about_the_callback_is_forwarded():
    logger = Logger()
    wrapped = ConditionalCallback(logger, never)
    assert wrapped.stateaccess() == {"step.loss": Read()}
    assert wrapped.runafter() == (int,)
    assert wrapped.resolveconflict(None) == NoConflict()
    wrapped.init("learner")
    assert wrapped.state_dict() == {"log": [("init", "learner")]}
    wrapped.load_state_dict({"log": [1]})
    assert logger.log == wrapped.log == [1]
    assert (wrapped.rate, wrapped.on_value) == (3, 5)
    wrapped.rate = 4
    assert logger.rate == 4
    del wrapped.rate
    assert wrapped.rate == 3
    assert "on_step_end" in dir(wrapped)
    assert repr(wrapped) == f"ConditionalCallback({logger!r}, {never!r})"


def test_hooks_run_on_condition():
    asked, logger = [], Logger()
    wrapped = ConditionalCallback(logger, lambda hook, phase: asked.append((hook, phase)) or phase is not None)
    assert wrapped.on_step_end("learner") is None
    assert logger.log == []
    assert wrapped.on_step_end("learner", phase="train") == "ran"
    assert logger.log == [("step", "learner", 1)]
    assert asked == [("on_step_end", None), ("on_step_end", "train")]


def test_a_condition_may_be_an_object():
    class Weekdays:
        def shouldrun(self, hook, phase):
            return hook == "on_step_end"

    logger = Logger()
    wrapped = ConditionalCallback(logger, Weekdays())
    wrapped.on_step_end(1)
    wrapped.on_any(1)
    assert len(logger.log) == 1


def test_the_signature_is_that_of_the_method_with_a_phase():
    wrapped = ConditionalCallback(Logger(), always)
    assert str(inspect.signature(wrapped.on_step_end)) == "(learner, loss=1, *, phase=None)"
    assert str(inspect.signature(wrapped.on_train_step_end)) == "(phase)"
    assert str(inspect.signature(wrapped.on_any)) == "(*args, **kwargs)"
    assert str(inspect.signature(wrapped.on_static)) == "(phase, x)"


def test_a_method_that_takes_the_phase_gets_it():
    seen, logger = [], Logger()
    wrapped = ConditionalCallback(logger, lambda hook, phase: seen.append(phase) or True)
    wrapped.on_train_step_end("positional")
    wrapped.on_train_step_end(phase="keyword")
    wrapped.on_any(1, phase="any")
    assert wrapped.on_static("first", x=1) == ("first", 1)
    assert seen == ["positional", "keyword", "any", "first"]
    assert logger.log == [("train step", "positional"), ("train step", "keyword"), ((1,), {"phase": "any"})]


def test_a_callable_without_a_signature():
    class Collects:
        def __init__(self):
            self.on_item = dict

    assert ConditionalCallback(Collects(), always).on_item(x=1, phase=2) == {"x": 1, "phase": 2}


def test_the_same_hook_is_the_same_object_until_the_method_is_replaced():
    logger = Logger()
    wrapped = ConditionalCallback(logger, always)
    assert wrapped.on_step_end is wrapped.on_step_end
    before = wrapped.on_step_end
    logger.on_step_end = Mock(return_value="mocked")
    assert wrapped.on_step_end is not before
    assert wrapped.on_step_end(1) == "mocked"


def test_guarded_stays_guarded_and_plain_stays_plain():
    class Plain:
        def on_step_end(self):
            return "ran"

    plain, logger = Plain(), Logger()
    assert is_guarded(ConditionalCallback(logger, never))
    assert not is_guarded(ConditionalCallback(plain, never))
    assert not hasattr(ConditionalCallback(plain, never), "state_dict")
    assert ConditionalCallback(plain, always).on_step_end() == "ran"
    twice = ConditionalCallback(ConditionalCallback(logger, always), always)
    assert unwrap(twice) is logger
    assert unwrap(plain) is plain
    assert twice.on_step_end(1, phase="train") == "ran"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda wrapped: pickle.loads(pickle.dumps(wrapped))])
def test_copies(duplicate):
    wrapped = throttle(Logger(), "on_step_end", freq=2)
    wrapped.on_step_end(1)
    again = duplicate(wrapped)
    assert type(again) is ConditionalCallback
    again.on_step_end(2)
    again.on_step_end(3)
    assert [entry[1] for entry in again.log] == [1, 3], "the count goes with the copy"


def test_a_condition_that_is_none():
    message = "The condition for Logger is 3; pass a function (hook, phase) -> bool or an object with such a method"
    with pytest.raises(TypeError, match=re.escape(message)):
        ConditionalCallback(Logger(), 3)


# throttle


def test_every_nth_time_beginning_with_the_first():
    logger = Logger()
    wrapped = throttle(logger, "on_step_end", freq=3)
    for number in range(8):
        wrapped.on_step_end(number)
        wrapped.on_any(number)
    assert [entry[1] for entry in logger.log if entry[0] == "step"] == [0, 3, 6]
    assert len(logger.log) == 8 + 3, "other hooks are not throttled"


def test_every_so_many_seconds():
    now = [100.0]
    logger = Logger()
    wrapped = throttle(logger, "on_step_end", seconds=5, clock=lambda: now[0])
    ran = []
    for _ in range(8):
        ran.append(wrapped.on_step_end(1) == "ran")
        now[0] += 2
    assert ran == [True, False, False, True, False, False, True, False]


def test_zero_seconds_throttle_nothing():
    wrapped = throttle(Logger(), "on_step_end", seconds=0)
    assert [wrapped.on_step_end(1) for _ in range(3)] == ["ran"] * 3


def test_an_event_is_throttled_in_its_form_for_a_phase():
    throttled = Throttle("on_step_end", freq=2)
    for phase, hook in [
        (Phase(), "on_train_step_end"),
        (Special(), "on_warmup_step_end"),
        (Special(), "on_train_step_end"),
    ]:
        throttled = Throttle("on_step_end", freq=2)
        assert [throttled.shouldrun(hook, phase) for _ in range(3)] == [True, False, True]
        assert throttled.shouldrun("on_step_end", phase), "each hook is counted by itself"
    assert [Throttle("on_step_end", freq=2).shouldrun("on_train_step_end", None) for _ in range(2)] == [True] * 2
    other = Throttle("on_step_end", freq=2)
    assert [other.shouldrun("on_valid_step_end", Phase()) for _ in range(2)] == [True] * 2


def test_repr():
    assert repr(Throttle("on_a", freq=2)) == "Throttle('on_a', freq=2)"
    assert repr(Throttle("on_a", seconds=2)) == "Throttle('on_a', seconds=2)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "throttle takes either freq or seconds, not freq=None and seconds=None."),
        ({"freq": 1, "seconds": 1}, "throttle takes either freq or seconds, not freq=1 and seconds=1."),
        ({"freq": 0}, "throttle got freq=0; it runs a hook once in freq times, so freq is at least 1."),
        ({"seconds": -1}, "throttle got seconds=-1; time does not run backwards."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        throttle(Logger(), "on_step_end", **arguments)
