"""The graph of a Fabric's callbacks: it follows every change, and a change that cannot be leaves all as it was."""

from __future__ import annotations

from collections.abc import Callable as Function
from typing import Any

import pytest

from fabric_lite import (
    Callback,
    CallbackGraph,
    CallbackGraphError,
    ConditionalCallback,
    CyclicDependencyError,
    Fabric,
    MissingStateError,
    Protected,
    Read,
    RunFirst,
    State,
    Write,
    WriteConflictError,
    throttle,
)

HOOK = "on_step_end"


class Logged(Callback):
    """Writes down who ran, and with what."""

    access: Any = {}

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log = [] if log is None else log

    def stateaccess(self) -> Any:
        return self.access

    def on_step_end(self, learner: Any = None) -> None:
        self.log.append(type(self).__name__)

    def on_each(self, learner: Any) -> None:
        self.log.append(learner)


class Creator(Logged):
    access = {"cbstate.history": Write()}

    def state_dict(self) -> dict[str, Any]:
        return {"runs": len(self.log)}

    def load_state_dict(self, state: Any) -> None:
        self.log[:] = ["loaded"] * state["runs"]


class User(Logged):
    access = {"cbstate.history": Read(), "step.loss": Write()}


class Printer(Logged):
    access = {"step.loss": Read()}


class Rival(Logged):
    access = {"step": Write()}


class Last(Logged):
    def runafter(self) -> tuple[type, ...]:
        return (Logged,)


class Plain:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def on_step_end(self) -> None:
        self.log.append("Plain")


def make(callbacks: Any = None, **arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", callbacks=callbacks, **arguments)


def ran(fabric: Fabric, log: list[Any]) -> list[Any]:
    log.clear()
    fabric.call(HOOK, learner=State(cbstate=State(), step=State()))
    return log


class TestOrder:
    def test_declared_dependencies_move_a_callback_and_nothing_else_does(self) -> None:
        log: list[Any] = []
        given = [Printer(log), Plain(log), Last(log), User(log), Plain(log), Creator(log)]
        fabric = make(given)
        assert ran(fabric, log) == ["Plain", "Plain", "Creator", "User", "Printer", "Last"]
        assert [type(callback).__name__ for callback in fabric.callbacks] == log
        assert fabric.callbacks.graph.order == tuple(fabric.callbacks)

    def test_plain_callbacks_alone_keep_theirs(self) -> None:
        log: list[Any] = []
        plain = [Plain(log) for _ in range(3)]
        fabric = make(plain)
        assert fabric.callbacks.graph.order == tuple(plain)
        assert fabric.callbacks.graph.edges == ()

    @pytest.mark.parametrize("guard", ["on", "off", "strict"])
    def test_in_every_mode(self, guard: Any) -> None:
        log: list[Any] = []
        assert ran(make([User(log), Creator(log)], guard=guard), log) == ["Creator", "User"]
        with pytest.raises(WriteConflictError):
            make([User(), Rival(), Creator()], guard=guard)

    def test_it_says_why(self) -> None:
        graph = make([User(), Creator()]).callbacks.graph
        assert isinstance(graph, CallbackGraph)
        ((before, after, reason),) = graph.edges
        assert (type(before), type(after)) == (Creator, User)
        assert reason == "Creator creates cbstate.history, which User reads"
        assert reason in graph.explain()
        assert graph.to_mermaid().startswith("flowchart")
        assert graph.to_dot().startswith("digraph")


class TestChanges:
    def test_the_order_follows_each(self) -> None:
        log: list[Any] = []
        fabric = make(Printer(log))
        assert ran(fabric, log) == ["Printer"]
        fabric.callbacks.add(Creator(log))
        handle = fabric.callbacks.add(User(log))
        assert ran(fabric, log) == ["Creator", "User", "Printer"]
        with fabric.callbacks.add(Last(log)):
            fabric.callbacks.add(Plain(log))
            assert ran(fabric, log) == ["Creator", "User", "Printer", "Last", "Plain"]
        handle.remove()
        assert ran(fabric, log) == ["Printer", "Creator", "Plain"]
        handle.remove()
        fabric.callbacks.replace(Creator(log))
        assert ran(fabric, log) == ["Printer", "Creator", "Plain"]
        fabric.callbacks.remove(Printer)
        assert ran(fabric, log) == ["Creator", "Plain"]
        fabric.callbacks.set([Last(log), Printer(log)])
        assert ran(fabric, log) == ["Printer", "Last"]
        fabric._callbacks = Plain(log)
        assert ran(fabric, log) == ["Plain"]
        assert [type(callback) for callback in fabric.callbacks.graph.order] == [Plain]

    def test_the_graph_of_before_is_as_it_was(self) -> None:
        fabric = make(Printer())
        before = fabric.callbacks.graph
        fabric.callbacks.add(Plain([]))
        assert len(before.order) == 1
        assert len(fabric.callbacks.graph.order) == 2

    def test_one_that_is_taken_off_while_its_hook_runs_is_still_guarded(self) -> None:
        class Removing(Logged):
            def on_each(self, learner: Any) -> None:
                fabric.callbacks.set([])

        log: list[Any] = []
        fabric = make([Removing(), Printer(log)])
        for _ in range(2):
            fabric.call("on_each", learner=State())
        assert [type(value) for value in log] == [Protected]

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda c: c.add(Rival()), WriteConflictError, "User writes step.loss and Rival writes step, and nothing"),
            (lambda c: c.remove(Creator), MissingStateError, "User reads cbstate.history, which no callback writes"),
            (lambda c: c.set([User()]), MissingStateError, "add Recorder"),
            (lambda c: c.replace(malformed()), TypeError, r"Creator.stateaccess\(\) returned 7, which is no mapping"),
            (lambda c: c.add(Circular()), CyclicDependencyError, "These callbacks wait for each other"),
            (lambda c: c.set([Rival(), Rival(), User()]), WriteConflictError, "^4 problems with these callbacks:\n1. "),
        ],
        ids=["add", "remove", "set", "replace", "cycle", "all"],
    )
    def test_what_cannot_be_changes_nothing(
        self, change: Function[[Any], object], error: type[Exception], message: str
    ) -> None:
        log: list[Any] = []
        fabric = make([Plain(log), User(log), Creator(log)])
        order, graph, learner = list(fabric.callbacks), fabric.callbacks.graph, State()
        fabric.call("on_each", learner=learner)
        met = list(log)
        with pytest.raises(error, match=message):
            change(fabric.callbacks)
        assert list(fabric.callbacks) == order
        assert fabric.callbacks.graph is graph
        log.clear()
        fabric.call("on_each", learner=learner)
        assert [new is old for new, old in zip(log, met, strict=True)] == [True, True]
        assert ran(fabric, log) == ["Plain", "Creator", "User"]
        fabric.callbacks.add(Printer(log))
        assert ran(fabric, log) == ["Plain", "Creator", "User", "Printer"]

    def test_not_even_when_it_was_the_first_guarded_one(self) -> None:
        log: list[Any] = []
        fabric = make([Plain(log)])
        with pytest.raises(MissingStateError):
            fabric.callbacks.add(User(log))
        assert ran(fabric, log) == ["Plain"]
        assert fabric.callbacks.graph.order == tuple(fabric.callbacks)

    def test_a_fabric_with_what_cannot_be_is_not_made(self) -> None:
        with pytest.raises(CallbackGraphError, match="which no callback writes") as caught:
            make([User()])
        assert [type(problem) for problem in caught.value.problems] == [MissingStateError]

    def test_what_is_declared_is_asked_once(self) -> None:
        class Asked(Logged):
            def stateaccess(self) -> Any:
                self.log.append("asked")
                return {}

        log: list[Any] = []
        fabric = make(Asked(log))
        for _ in range(3):
            fabric.call("on_each", learner=State())
            fabric.callbacks.add(Printer())
        assert log.count("asked") == 1


def malformed() -> Creator:
    creator = Creator()
    creator.access = 7
    return creator


class Circular(Logged):
    access = {"cbstate.history": Write()}

    def runafter(self) -> tuple[type, ...]:
        return (User,)

    def resolveconflict(self, other: object) -> Any:
        return RunFirst(self)


class TestConditional:
    def test_the_collection_sees_through_it(self) -> None:
        inner = Creator()
        wrapped = throttle(inner, HOOK, freq=2)
        fabric = make([User(), wrapped])
        assert [type(callback) for callback in fabric.callbacks] == [ConditionalCallback, User]
        assert fabric.callbacks.get(Creator) is inner
        other = Creator()
        assert fabric.callbacks.replace(other) is wrapped
        assert fabric.callbacks.get(Creator) is other
        assert fabric.callbacks.replace(throttle(inner, HOOK, freq=3)) is other
        assert fabric.callbacks.get(Creator) is inner
        assert len(fabric.callbacks) == 2
        fabric.callbacks.remove(User)
        assert isinstance(fabric.callbacks.remove(Creator), ConditionalCallback)
        assert len(fabric.callbacks) == 0

    def test_runafter_sees_through_it(self) -> None:
        fabric = make([throttle(Last(), HOOK, freq=1), throttle(Printer(), HOOK, freq=1)])
        assert [type(callback.callback) for callback in fabric.callbacks] == [Printer, Last]

    def test_its_state_is_that_of_the_callback(self) -> None:
        inner = Creator(["once"])
        saved = make(throttle(inner, HOOK, freq=2)).callbacks.state_dict()
        assert saved == {"Creator.0": {"runs": 1}}
        again = Creator()
        make(again).callbacks.load_state_dict(saved)
        assert again.log == ["loaded"]
        third = Creator()
        make(throttle(third, HOOK, freq=2)).callbacks.load_state_dict(saved)
        assert third.log == ["loaded"]

    def test_its_uncalled_hooks_are_those_of_the_callback(self) -> None:
        fabric = make(throttle(Printer(), HOOK, freq=2))
        fabric.call(HOOK, learner=State())
        ((_, hook, nearest),) = fabric.callbacks.uncalled()
        assert (hook, nearest) == ("on_each", None)
        assert str(fabric.callbacks.uncalled()[0]) == "`Printer.on_each` was never called"

    @pytest.mark.parametrize("guard", ["on", "off", "strict"])
    def test_throttled(self, guard: Any) -> None:
        log: list[Any] = []
        fabric = make([throttle(Printer(log), HOOK, freq=3), Plain(log)], guard=guard)
        for _ in range(7):
            fabric.call(HOOK, learner=State())
        assert log == ["Printer", *["Plain"] * 3, "Printer", *["Plain"] * 3, "Printer", "Plain"]

    def test_a_plain_one(self) -> None:
        log: list[Any] = []
        fabric = make(throttle(Plain(log), HOOK, freq=2))
        for _ in range(4):
            fabric.call(HOOK, learner=State())
        assert log == ["Plain"] * 2

    def test_what_it_wraps_is_guarded(self) -> None:
        log: list[Any] = []
        fabric, learner = make(ConditionalCallback(Printer(log), lambda hook, phase: hook == "on_each")), State()
        fabric.call("on_each", learner=learner)
        fabric.call("on_each", learner)
        fabric.call(HOOK, learner=learner)
        assert [type(value) for value in log] == [Protected] * 2

    def test_an_exception_names_what_it_wraps(self) -> None:
        class Failing(Callback):
            def on_step_end(self) -> None:
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine") as caught:
            make(throttle(Failing(), HOOK, freq=2)).call(HOOK)
        if hasattr(caught.value, "add_note"):
            assert caught.value.__notes__ == ["raised by the callback `Failing` in its hook `on_step_end`"]
