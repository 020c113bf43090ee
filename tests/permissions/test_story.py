"""The guided example of the document that the layer comes from: a callback that prints the loss of each step."""

from __future__ import annotations

import pytest

from fabric_lite.permissions import (
    Callback,
    ConditionalCallback,
    Guard,
    MissingStateError,
    NoConflict,
    ProtectedException,
    Read,
    RunFirst,
    State,
    Unresolvable,
    Write,
    WriteConflictError,
)


class Learner:
    def __init__(self):
        self.step = State()
        self.cbstate = State()


def fit(guard, callbacks, losses=(0.5, 0.25)):
    """A training loop in small: what the hook bus does, by hand."""
    learner = Learner()
    order = guard.arrange(callbacks)
    for loss in losses:
        learner.step = State(loss=loss)
        for callback in order:
            hook = getattr(callback, "on_step_end", None)
            adapt = guard.adapt(callback, "on_step_end", "learner")
            if hook is not None:
                hook(learner if adapt is None else adapt(learner))


class Recorder(Callback):
    def stateaccess(self):
        return {"cbstate": {"history": Write()}}

    def init(self, learner):
        if "history" not in learner.cbstate:
            learner.cbstate.history = {"train": State(stepsepoch=0)}

    def on_step_end(self, learner):
        learner.cbstate.history["train"].stepsepoch += 1


def test_the_story_of_printer(capsys):
    creators = {"history": "Recorder"}

    class Printer(Callback):
        def on_step_end(self, learner):
            print("Hello, World!")

    fit(Guard(), [Printer()])
    assert capsys.readouterr().out == "Hello, World!\n" * 2

    class Printer(Callback):
        def on_step_end(self, learner):
            print("Step loss:", learner.step.loss)

    with pytest.raises(ProtectedException, match=r"^Read access to Learner\.step\.loss disallowed\. ") as caught:
        fit(Guard(), [Printer()])
    assert str(caught.value).endswith('\n    "step.loss": Read(),')

    class Printer(Printer):
        def stateaccess(self):
            return {"step": {"loss": Read()}}

    fit(Guard(), [Printer()])
    assert capsys.readouterr().out == "Step loss: 0.5\nStep loss: 0.25\n"

    class Printer(Callback):
        def stateaccess(self):
            return {"step": {"loss": Read()}, "cbstate": {"history": Read()}}

        def on_step_end(self, learner):
            step = learner.cbstate.history["train"].stepsepoch
            print("Step", step, "loss:", learner.step.loss)

    with pytest.raises(MissingStateError) as missing:
        fit(Guard(creators=creators), [Printer()])
    assert str(missing.value) == (
        "Printer reads cbstate.history, which no callback writes; add Recorder(), which creates cbstate.history,"
        " or remove Printer."
    )
    assert capsys.readouterr().out == "", "it is found before anything runs"

    fit(Guard(creators=creators), [Printer(), Recorder()])
    assert capsys.readouterr().out == "Step 1 loss: 0.5\nStep 2 loss: 0.25\n"

    class Meddler(Printer):
        def on_step_end(self, learner):
            learner.cbstate.history["train"].stepsepoch = 0

    with pytest.raises(
        ProtectedException, match=r"^Write access to Learner\.cbstate\.history\.train\.stepsepoch disallowed\. "
    ):
        fit(Guard(creators=creators), [Meddler(), Recorder()])


# "Conflict resolution", line by line


class One(Callback):
    answer: object = NotImplemented

    def stateaccess(self):
        return {"step.loss": Write()}

    def resolveconflict(self, other):
        return self.answer


class Two(One):
    pass


def arranged(first, second):
    return [type(callback).__name__ for callback in Guard().arrange([first, second])]


def test_the_default_is_an_error_with_a_helpful_message():
    with pytest.raises(
        WriteConflictError, match=r"^One writes step\.loss and Two writes step\.loss, and nothing says which"
    ):
        arranged(One(), Two())


def test_unresolvable_can_never_be_used_together():
    one = One()
    one.answer = Unresolvable()
    with pytest.raises(WriteConflictError, match=r"says Unresolvable\(\): they cannot be used together"):
        arranged(Two(), one)


def test_no_conflict_means_any_order():
    one = One()
    one.answer = NoConflict()
    assert arranged(Two(), one) == ["Two", "One"]
    assert arranged(one, Two()) == ["One", "Two"]


def test_run_first_is_equivalent_to_runafter():
    one, two = One(), Two()
    one.answer = RunFirst(one)
    assert arranged(two, one) == ["One", "Two"]

    class After(One):
        def runafter(self):
            return (Two,)

    assert arranged(After(), two) == ["Two", "After"]


# What was wrong in the original, and is not carried over


class Early(Callback):
    answer: object = NotImplemented

    def __init__(self, **access):
        self.access = access

    def stateaccess(self):
        return self.access

    def resolveconflict(self, other):
        return self.answer


def test_a_conflict_is_asked_about_both_ways_round():
    quiet, knowing = Early(a=Write()), Early(a=Write())
    knowing.answer = RunFirst(knowing)
    for given in ([quiet, knowing], [knowing, quiet]):
        assert Guard().arrange(given) == (knowing, quiet)


def test_run_first_of_two_writers_orders_them():
    one, other = Early(a=Write()), Early(a=Write())
    for first in (one, other):
        one.answer = RunFirst(first)
        second = other if first is one else one
        assert Guard().arrange([one, other]) == (first, second)


def test_a_writer_and_a_reader_may_have_no_conflict():
    reader, writer = Early(a=Read()), Early(a=Write())
    writer.answer = NoConflict()
    assert Guard().arrange([reader, writer]) == (reader, writer)


def test_a_later_writer_runs_before_an_earlier_reader():
    """The original compared each callback with those after it only."""
    reader, writer = Early(a=Read()), Early(a=Write())
    assert Guard().arrange([reader, writer]) == (writer, reader)


def test_the_order_is_made_once_not_at_every_event(monkeypatch):
    callback = Early(step=Read())
    guard = Guard()
    guard.arrange([callback])
    graph = guard.graph
    learner = Learner()
    for hook in ("on_a", "on_b"):
        guard.adapt(callback, hook, "learner")(learner)
    assert guard.graph is graph
    assert guard.graph.order is graph.order


def test_all_problems_are_reported():
    with pytest.raises(WriteConflictError) as caught:
        Guard().arrange([Early(a=Write()), Early(a=Write()), Early(**{"cbstate.x": Read()})])
    assert [type(problem) for problem in caught.value.problems] == [WriteConflictError, MissingStateError]


def test_a_conditional_wrapper_keeps_runafter_and_resolveconflict():
    class Last(Callback):
        def runafter(self):
            return (Early,)

    early = Early(a=Write())
    last = ConditionalCallback(Last(), lambda hook, phase: True)
    assert Guard().arrange([last, early]) == (early, last)
    resolving = Early(a=Write())
    resolving.answer = RunFirst(resolving)
    wrapped = ConditionalCallback(resolving, lambda hook, phase: True)
    assert Guard().arrange([early, wrapped]) == (wrapped, early)
