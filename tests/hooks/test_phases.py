"""Dispatch on event and phase: of each callback one method, the most specific that it has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.events import Event, Phase, TrainingPhase, ValidationPhase
from fabric_lite.hooks import Callbacks
from fabric_lite.permissions import Callback, ConditionalCallback, Guard, SerialExecutor


class Finetuning(TrainingPhase):
    name = "finetuning"


class Sub(Finetuning):
    pass


TRAIN, VALIDATION, FINETUNING = TrainingPhase(), ValidationPhase(), Finetuning()

# Written out, so that it is not the code under test that says what is right.
METHODS: dict[type[Phase] | None, list[str]] = {
    None: ["on_step_end"],
    Phase: ["on_step_end"],
    TrainingPhase: ["on_train_step_end", "on_step_end"],
    ValidationPhase: ["on_validation_step_end", "on_step_end"],
    Finetuning: ["on_finetuning_step_end", "on_train_step_end", "on_step_end"],
    Sub: ["on_finetuning_step_end", "on_train_step_end", "on_step_end"],
}
NAMES = METHODS[Finetuning] + METHODS[ValidationPhase][:1]


def compiled(callbacks: list[Any]) -> Callbacks:
    return Callbacks(callbacks, make_guard=Guard)


def one_by_one(callbacks: list[Any]) -> Callbacks:
    return Callbacks(callbacks, make_guard=Guard, executor=SerialExecutor())


both_ways = pytest.mark.parametrize("make", [compiled, one_by_one])
Make = Callable[[list[Any]], Callbacks]


class Noting:
    """Has the methods that it is told to have, and notes down their names when they are called."""

    def __init__(self, *names: str) -> None:
        self.notes: list[str] = []
        for name in names:
            self.put(name)

    def put(self, name: str, note: str = "") -> None:
        setattr(self, name, lambda: self.notes.append(name + note))


@both_ways
@pytest.mark.parametrize(
    "phase, expected",
    [
        (TRAIN, ["on_train_step_end", "on_train_step_end", "on_step_end", "on_train_step_end"]),
        (VALIDATION, ["on_step_end", None, "on_step_end", "on_validation_step_end"]),
        (FINETUNING, ["on_finetuning_step_end", "on_train_step_end", "on_step_end", "on_train_step_end"]),
        (Sub(), ["on_finetuning_step_end", "on_train_step_end", "on_step_end", "on_train_step_end"]),
        (Phase(), ["on_step_end", None, "on_step_end", None]),
    ],
)
def test_the_most_specific_wins_and_only_that(make: Make, phase: Phase, expected: list[str | None]) -> None:
    callbacks = [
        Noting(*METHODS[Finetuning]),
        Noting("on_train_step_end"),
        Noting("on_step_end"),
        Noting("on_validation_step_end", "on_train_step_end"),
    ]
    make(callbacks).call("on_step_end", phase=phase)
    assert [callback.notes for callback in callbacks] == [[] if name is None else [name] for name in expected]


@both_ways
@pytest.mark.parametrize("keywords", [{}, {"phase": None}, {"phase": "train"}, {"phase": TrainingPhase}])
def test_without_a_phase_the_name_alone_counts(make: Make, keywords: dict[str, Any]) -> None:
    callback = Noting(*NAMES)
    make([callback]).call("on_step_end", **keywords)
    assert callback.notes == ["on_step_end"]


@both_ways
def test_a_name_that_does_not_begin_with_on_is_the_same_in_every_phase(make: Make) -> None:
    callback = Noting("before_step", "train_before_step", "on_train_before_step")
    make([callback]).call("before_step", phase=TRAIN)
    assert callback.notes == ["before_step"]


@both_ways
def test_an_event_of_ones_own_and_an_event_of_the_enum(make: Make) -> None:
    callback = Noting("on_train_coffee_break", "on_train_step_end")
    callbacks = make([callback])
    callbacks.call("on_coffee_break", phase=TRAIN)
    callbacks.call(Event.STEP_END, phase=TRAIN)
    assert callback.notes == ["on_train_coffee_break", "on_train_step_end"]


@both_ways
def test_a_specific_name_can_be_called_as_a_hook_itself(make: Make) -> None:
    callback = Noting("on_train_step_end", "on_step_end")
    make([callback]).call("on_train_step_end", phase=VALIDATION)
    assert callback.notes == ["on_train_step_end"]


@both_ways
def test_one_hook_in_alternating_phases(make: Make) -> None:
    callback = Noting("on_train_step_end", "on_step_end")
    callbacks = make([callback])
    for phase in [TRAIN, VALIDATION] * 3:
        callbacks.call("on_step_end", phase=phase)
    callbacks.call("on_step_end")
    assert callback.notes == ["on_train_step_end", "on_step_end"] * 3 + ["on_step_end"]


@both_ways
def test_methods_take_any_of_the_arguments(make: Make) -> None:
    notes: list[Any] = []

    class Picky:
        def on_train_step_end(self, event: str, phase: Phase) -> None:
            notes.append((event, phase))

        def on_step_end(self, learner: Any) -> None:
            notes.append(learner)

    callbacks = make([Picky()])
    for phase in [TRAIN, VALIDATION]:
        callbacks.call("on_step_end", learner="L", phase=phase, event=Event.STEP_END)
    assert notes == [("on_step_end", TRAIN), "L"]


@both_ways
def test_a_method_that_is_replaced_later_is_the_one_that_runs(make: Make) -> None:
    callback = Noting("on_train_step_end")
    callbacks = make([callback])
    callbacks.call("on_step_end", phase=TRAIN)
    callback.put("on_train_step_end", " anew")
    callbacks.call("on_step_end", phase=TRAIN)
    assert callback.notes == ["on_train_step_end", "on_train_step_end anew"]


@both_ways
def test_a_more_specific_method_that_comes_later_wins(make: Make) -> None:
    callback = Noting("on_step_end")
    callbacks = make([callback])
    callbacks.call("on_step_end", phase=TRAIN)
    callback.put("on_train_step_end")
    callbacks.call("on_step_end", phase=TRAIN)
    assert callback.notes == ["on_step_end", "on_train_step_end"]


@both_ways
def test_when_the_specific_method_goes_the_general_one_runs(make: Make) -> None:
    callback: Any = Noting("on_train_step_end", "on_step_end")
    callbacks = make([callback])
    callbacks.call("on_step_end", phase=TRAIN)
    del callback.on_train_step_end
    callbacks.call("on_step_end", phase=TRAIN)
    assert callback.notes == ["on_train_step_end", "on_step_end"]


@both_ways
def test_a_hook_that_nobody_had_is_noticed_when_it_comes(make: Make) -> None:
    callback = Noting()
    callbacks = make([callback])
    callbacks.call("on_step_end", phase=TRAIN)
    callback.put("on_train_step_end")
    callbacks.call("on_step_end", phase=VALIDATION)
    callbacks.call("on_step_end", phase=TRAIN)
    assert callback.notes == ["on_train_step_end"]


@both_ways
def test_a_hook_that_was_called_without_a_phase_first(make: Make) -> None:
    callback = Noting("on_train_step_end")
    callbacks = make([callback])
    for _ in range(2):
        callbacks.call("on_step_end")
        callbacks.call("on_step_end", phase=TRAIN)
    assert callback.notes == ["on_train_step_end"] * 2


@both_ways
def test_something_that_is_not_callable_stands_in_the_way_with_one_warning(make: Make) -> None:
    callback = Noting("on_step_end")
    vars(callback)["on_train_step_end"] = 3
    callbacks = make([callback])
    with pytest.warns(UserWarning, match=r"`Noting.on_train_step_end` is 3, which is not callable"):
        callbacks.call("on_step_end", phase=TRAIN)
    callbacks.call("on_step_end", phase=TRAIN)  # a second warning would be an error
    assert callback.notes == []


@both_ways
@pytest.mark.skipif(sys.version_info < (3, 11), reason="has no notes")
def test_the_note_at_an_exception_names_the_method_that_raised(make: Make) -> None:
    class Failing:
        def on_train_step_end(self) -> None:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        make([Failing()]).call("on_step_end", phase=TRAIN)
    notes: list[str] = vars(caught.value)["__notes__"]
    assert notes == ["raised by the callback `Failing` in its hook `on_train_step_end`"]


@both_ways
def test_all_names_that_a_call_tries_count_as_called(make: Make) -> None:
    callbacks = make([Noting()])
    callbacks.call("on_step_end", phase=FINETUNING)

    class Late:
        def on_train_step_end(self) -> None: ...

        def on_validation_step_end(self) -> None: ...

    callbacks.add(Late())
    assert [found.hook for found in callbacks.uncalled()] == ["on_validation_step_end"]


@both_ways
def test_guarded_and_conditional_callbacks_are_dispatched_alike(make: Make) -> None:
    notes: list[Any] = []

    class Guarded(Callback):
        def on_train_step_end(self, learner: Any) -> None:
            notes.append(("train", type(learner).__name__))

        def on_step_end(self, phase: Phase) -> None:
            notes.append(("any", phase))

    asked: list[Any] = []

    def condition(hook: str, phase: Phase) -> bool:
        asked.append((hook, phase))
        return phase == VALIDATION

    class Learner:
        pass

    learner = Learner()  # the collection does not keep it alive
    callbacks = make([Guarded(), ConditionalCallback(Guarded(), condition)])
    for phase in [TRAIN, VALIDATION]:
        callbacks.call("on_step_end", learner=learner, phase=phase)
    assert notes == [("train", "Protected"), ("any", VALIDATION), ("any", VALIDATION)]
    assert [phase for _, phase in asked] == [TRAIN, VALIDATION]


Step = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(list(METHODS)), st.booleans()),
    st.tuples(st.sampled_from(["put", "none", "delete"]), st.integers(0, 2), st.sampled_from(NAMES)),
)


@given(has=st.lists(st.sets(st.sampled_from(NAMES)), min_size=3, max_size=3), steps=st.lists(Step, max_size=12))
def test_both_ways_of_calling_are_the_same_and_as_the_rule_says(has: list[set[str]], steps: list[Any]) -> None:
    """Whatever callbacks have, get and lose while phases alternate, also with other arguments."""

    def play(call: Callable[[list[Noting], type[Phase] | None, dict[str, Any]], None]) -> list[list[str]]:
        callbacks = [Noting(*sorted(names)) for names in has]
        for number, (what, which, detail) in enumerate(steps):
            if what == "call":
                call(callbacks, which, {"extra": 1} if detail else {})
            elif what == "put":
                callbacks[which].put(detail, str(number))
            elif what == "none":
                vars(callbacks[which])[detail] = None
            else:
                vars(callbacks[which]).pop(detail, None)
        return [callback.notes for callback in callbacks]

    def through(make: Make) -> list[list[str]]:
        made: list[Callbacks] = []

        def call(callbacks: list[Noting], kind: type[Phase] | None, extra: dict[str, Any]) -> None:
            if not made:
                made.append(make(callbacks))
            made[0].call("on_step_end", **extra, **({} if kind is None else {"phase": kind()}))

        return play(call)

    def by_the_rule(callbacks: list[Noting], kind: type[Phase] | None, extra: dict[str, Any]) -> None:
        for callback in callbacks:
            for name in METHODS[kind]:
                if getattr(callback, name, None) is not None:
                    getattr(callback, name)()
                    break

    assert through(compiled) == through(one_by_one) == play(by_the_rule)
