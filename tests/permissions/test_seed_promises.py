"""What the document in which the permission layer has its origin promises: for each sentence, quoted, a test.

Its guided example, and the answers to a conflict, are in test_story.py, line by line. Here are the sentences around
them, in a `Learner` and on the bus of a `Fabric`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import (
    Callback,
    CallbackGraphError,
    Fabric,
    Learner,
    MissingStateError,
    NoConflict,
    Phase,
    ProtectedException,
    Read,
    RunFirst,
    SerialExecutor,
    State,
    ThreadedExecutor,
    TrainingPhase,
    Write,
    WriteConflictError,
)
from fabric_lite.callbacks import Metrics, Recorder


def make(*callbacks: Any, **options: Any) -> Learner:
    """A learner whose two training steps have the losses 1 and 0.25; one step of validation follows."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    one = (torch.ones(1, 1), torch.ones(1, 1))
    return Learner(
        model,
        nn.MSELoss(),
        data=([one, one], [one]),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.25),
        callbacks=callbacks,
        fabric=Fabric(accelerator="cpu", devices=1, **options),
        usedefaultcallbacks=False,
    )


def names(learner: Learner) -> list[str]:
    return [type(callback).__name__ for callback in learner.callbacks.graph.order]


class Counting(Callback):
    """Writes what it is told to."""

    def __init__(self, *paths: str, answer: Any = NotImplemented) -> None:
        self.paths, self.answer, self.steps = paths, answer, 0

    def stateaccess(self) -> Any:
        return {path: Write() for path in self.paths}

    def resolveconflict(self, other: object) -> Any:
        return self.answer

    def on_step_end(self) -> None:
        self.steps += 1


class Other(Counting):
    pass


# "A guided example"


def test_which_part_to_hook_into_is_said_by_event_and_phase() -> None:
    """“you specify which part of the training you want to "hook into" by dispatching on Phases and Events”"""
    seen = []

    class Hooking(Callback):
        def on_step_end(self, event: str, phase: Phase) -> None:
            seen.append((event, phase.name))

        def on_train_epoch_end(self, event: str, phase: Phase) -> None:
            seen.append((event, phase.name))

    make(Hooking()).fit(1)
    assert seen == [
        ("on_step_end", "train"),
        ("on_step_end", "train"),
        ("on_epoch_end", "train"),
        ("on_step_end", "validation"),
    ]


def test_a_callback_may_keep_state_of_its_own() -> None:
    """“It can include fields to use as internal state”"""
    counting = Counting()
    make(counting).fit(1)
    assert counting.steps == 3


def test_a_callback_is_passed_when_a_learner_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    """“We can now pass an instance of `Printer` when creating a `Learner` and the message will be printed at the end of
    every step.”
    """

    class Printer(Callback):
        def on_step_end(self) -> None:
            print("Hello, World!")

    make(Printer()).fit(1)
    assert capsys.readouterr().out == "Hello, World!\n" * 3


def test_a_handler_reads_and_changes_the_state_of_the_learner() -> None:
    """“the callback handler `on` receives as the last argument a `Learner` instance, allowing the callback to access
    and modify state”
    """
    doubled = []

    class Doubling(Callback):
        def stateaccess(self) -> Any:
            return {"step.xs": Write()}

        def on_step_begin(self, learner: Any) -> None:
            learner.step.xs = 2 * learner.step.xs

    learner = make(Doubling())
    learner.callbacks.on("on_step_end", lambda learner: doubled.append(learner.step.xs.item()))
    learner.fit(1)
    assert doubled == [2, 2, 2]


class Trespassing(Callback):
    def __init__(self, access: Any = None) -> None:
        self.access = access or {}

    def stateaccess(self) -> Any:
        return self.access

    def on_step_end(self, learner: Any) -> None:
        learner.step.loss  # noqa: B018 - the access is what is tested

    def on_epoch_end(self, learner: Any) -> None:
        learner.cbstate.mine = 1


@pytest.mark.parametrize(
    "access, message",
    [({}, "Read access to Learner.step.loss"), ({"step.loss": Read()}, "Write access to Learner.cbstate.mine")],
)
def test_reading_and_modifying_is_prevented_by_default(access: Any, message: str) -> None:
    """“*FluxTraining.jl* prevents callbacks from reading and modifying state by default.” and
    “ProtectedException("Read access to Learner.step.loss disallowed.")”
    """
    with pytest.raises(ProtectedException) as caught:
        make(Trespassing(access)).fit(1)
    assert str(caught.value).startswith(f"{message} disallowed. Trespassing ")


def test_after_the_definition_the_code_runs() -> None:
    """“After that definition, the above code will run fine.”"""
    make(Trespassing({"step": {"loss": Read()}, "cbstate": {"mine": Write()}})).fit(1)


def test_dependencies_are_analysed_before_any_code_runs() -> None:
    """“this extra information makes it possible to analyze state dependencies before any code is run”"""
    counting = Counting("step.xs")
    with pytest.raises(CallbackGraphError, match=r"^Counting writes step\.xs and Other writes step\.xs, and nothing"):
        make(counting, Other("step.xs"))
    assert counting.steps == 0


# "Dependencies"


class Printer(Callback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def stateaccess(self) -> Any:
        return {"step": {"loss": Read()}, "cbstate": {"history": Read()}}

    def on_train_step_end(self, learner: Any, phase: Phase) -> None:
        step = learner.cbstate.history[phase].stepsepoch
        self.lines.append(f"Step {step} loss: {learner.step.loss:.4f}")


@pytest.mark.parametrize("place", [0, 1])
def test_recorder_tracks_the_number_of_steps(place: int) -> None:
    """“Luckily, there already is a callback that tracks this kind of statistics, the `Recorder`. It uses a special
    piece of state, `learner.cbstate`, to store a `History` with this information.” and
    “`stepsepoch`  # steps completed in current epoch”
    """
    callbacks: list[Any] = [printer := Printer()]
    callbacks.insert(place, Recorder())
    learner = make(*callbacks)
    learner.fit(2)
    assert printer.lines[:2] == ["Step 1 loss: 1.0000", "Step 2 loss: 0.2500"]
    assert [line.partition(" loss")[0] for line in printer.lines] == ["Step 1", "Step 2"] * 2
    assert learner.cbstate.history[TrainingPhase()].steps == 4


def test_the_same_in_a_loop_without_a_learner() -> None:
    """“using the callback in the wrong context will always result in an error” — and in the right one, it works."""
    with pytest.raises(
        MissingStateError, match=r"^Printer reads cbstate\.history, which no callback writes; add Recor"
    ):
        Fabric(accelerator="cpu", devices=1, callbacks=Printer())
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[printer := Printer(), Recorder()])
    state = State(step=State(loss=0.5), cbstate=State())
    fabric.call("on_step_end", learner=state, phase=TrainingPhase())
    assert printer.lines == ["Step 1 loss: 0.5000"]


@pytest.mark.parametrize("mode, allowed", [(Read, False), (Write, True)])
def test_whoever_puts_something_into_cbstate_declares_it(mode: Any, allowed: bool) -> None:
    """“Like any other piece of state, the callback writing to it needs to add a `Write()` permission to it using
    `stateaccess`.”
    """
    callbacks = [
        Trespassing({"step.loss": Read(), "cbstate.mine": mode()}),
        Counting("cbstate.mine", answer=NoConflict()),
    ]
    if allowed:
        learner = make(*callbacks)
        learner.fit(1)
        assert learner.cbstate.mine == 1
    else:
        with pytest.raises(ProtectedException, match=r"^Write access to Learner\.cbstate\.mine disallowed\. "):
            make(*callbacks).fit(1)


def test_an_entry_of_cbstate_is_created_before_it_is_read() -> None:
    """“when creating the callback graph, it is checked that every entry in `cbstate` that is accessed is being created
    first”
    """
    reader = Trespassing({"cbstate.mine": Read()})
    with pytest.raises(
        MissingStateError, match=r"^Trespassing reads cbstate\.mine, which no callback writes; add a call"
    ):
        make(reader)
    assert names(make(reader, Counting("cbstate.mine"))) == ["Counting", "Trespassing"]


def test_printer_without_recorder_is_an_error() -> None:
    """“Since `Printer` depends on `Recorder` now, an error will be thrown if you try to use `Printer` without
    `Recorder`.”
    """
    with pytest.raises(MissingStateError) as caught:
        make(Printer())
    assert str(caught.value) == (
        "Printer reads cbstate.history, which no callback writes; add Recorder(), which creates cbstate.history,"
        " or remove Printer."
    )


# "Conflict resolution". The four answers: test_the_default_is_an_error_with_a_helpful_message and those after it in
# test_story.py


@pytest.mark.parametrize("paths", [("step.xs", "step.xs"), ("step", "step.xs"), ("step.xs", "step")])
def test_conflicts_are_detected_when_a_learner_is_made(paths: tuple[str, str]) -> None:
    """“When creating a `Learner`, a dependency graph is created. The graph is then analyzed to find possible conflicts
    (for example, when two callbacks update the same state). Conflicts are detected automatically and will result in an
    error.”
    """
    one, other = paths
    with pytest.raises(WriteConflictError) as caught:
        make(Counting(one), Other(other))
    assert str(caught.value).startswith(
        f"Counting writes {one} and Other writes {other}, and nothing says which of them runs first; "
    )


def test_other_state_and_reading_alone_are_no_conflict() -> None:
    """“Conflicts happen when the same state is being modified by multiple callbacks and it is unclear which order of
    running them (if any) is valid.”
    """
    reading = [Trespassing({"step.loss": Read()}) for _ in range(2)]
    graph = make(Counting("step.xs"), Other("step.ys"), *reading).callbacks.graph
    assert graph.edges == ()


def test_runafter_orders_callbacks() -> None:
    """“`runafter` allows you to define list of callbacks that should run before the callback.”"""

    class Last(Counting):
        def runafter(self) -> tuple[type, ...]:
            return (Other, Recorder)

    assert names(make(Last("step.xs"), Other("step.xs"), Recorder())) == ["Other", "Recorder", "Last"]


def test_recorder_runs_after_the_metrics() -> None:
    """“For example, `Recorder` needs to run after all metrics”"""

    class MoreMetrics(Metrics):
        def stateaccess(self) -> Any:
            return {"step.loss": Read()}

    assert names(make(Recorder(), Metrics(), MoreMetrics())) == ["Metrics", "MoreMetrics", "Recorder"]


@pytest.mark.parametrize("turned", [False, True])
def test_resolveconflict_settles_two_callbacks(turned: bool) -> None:
    """“`resolveconflict` provides more granular control to handle a possible conflict between two callbacks. It takes
    two callbacks and defines how to resolve a conflict”
    """
    asked = []

    class Resolving(Counting):
        def resolveconflict(self, other: object) -> Any:
            asked.append(other)
            return RunFirst(self) if isinstance(other, Other) else NotImplemented

    callbacks = [resolving := Resolving("step.xs"), other := Other("step.xs")]
    graph = make(*(reversed(callbacks) if turned else callbacks)).callbacks.graph
    assert (graph.order, asked[0]) == ((resolving, other), other)


# "Callback execution"


class Noting(Callback):
    """Notes down its name, if it is let."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def on_epoch_end(self) -> None:
        self.notes.append(self.name)


class NotingLate(Noting):
    def runafter(self) -> tuple[type, ...]:
        return (Noting,)


@pytest.mark.parametrize("options", [{}, {"executor": SerialExecutor()}])
def test_callbacks_run_serially_in_a_topological_order(options: Any) -> None:
    """“By default, a topological ordering of the callbacks is created from the dependency graph and the callbacks are
    executed serially.”
    """
    notes: list[str] = []
    learner = make(NotingLate("late", notes), Noting("a", notes), Noting("b", notes), **options)
    learner.callbacks.call("on_epoch_end")
    assert notes == ["a", "b", "late"]


def test_execution_can_be_replaced() -> None:
    """“This behavior can be overwritten with custom callback executors”"""

    class Backwards:
        def run(self, calls: Sequence[Any], graph: Any) -> None:
            for call in reversed(calls):
                call()

    notes: list[str] = []
    make(Noting("a", notes), Noting("b", notes), executor=Backwards()).callbacks.call("on_epoch_end")
    assert notes == ["b", "a"]


def test_callbacks_run_in_parallel_where_that_is_valid() -> None:
    """“to allow callbacks to safely run in parallel where valid”"""
    meeting, notes = threading.Barrier(2, timeout=60), []

    class Meeting(Noting):
        def on_epoch_end(self) -> None:
            meeting.wait()
            super().on_epoch_end()

    executor = ThreadedExecutor(max_workers=2)
    callbacks = [NotingLate("late", notes), Meeting("met", notes), Meeting("met", notes)]
    make(*callbacks, executor=executor).callbacks.call("on_epoch_end")
    executor.close()
    assert notes == ["met", "met", "late"]
