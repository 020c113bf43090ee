"""Guarded callbacks in a Fabric: what they get for ``learner``, and when."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable as Function
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from fabric_lite import (
    Callback,
    CancelEpochException,
    CancelFittingException,
    CancelStepException,
    Fabric,
    FitException,
    Protected,
    ProtectedException,
    Read,
    State,
    Write,
)

HOOK = "on_step_end"


class Learner:
    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


class Slots:
    __slots__ = ("epoch", "step")

    def __init__(self, **state: Any) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Record:
    step: Any = None
    epoch: int = 0


class Module(nn.Module):
    def __init__(self, **state: Any) -> None:
        super().__init__()
        self.__dict__.update(state)


class Declared(Callback):
    """Hooks are given as functions."""

    def __init__(self, access: Any, **hooks: Any) -> None:
        self.access = access
        self.__dict__.update(hooks)

    def stateaccess(self) -> Any:
        return self.access


def make(callbacks: Any, **arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", callbacks=callbacks, **arguments)


def ways_to_take_it(got: list[Any]) -> dict[str, Callback]:
    """Callbacks that take the learner in different ways, and write down what they get."""

    def decorated(method: Function[..., Any]) -> Function[..., Any]:
        return functools.wraps(method)(lambda *args, **kwargs: method(*args, **kwargs))

    class Named(Callback):
        def on_step_end(self, learner: Any) -> None:
            got.append(learner)

    class KeywordOnly(Callback):
        def on_step_end(self, *, learner: Any) -> None:
            got.append(learner)

    class Second(Callback):
        def on_step_end(self, loss: Any = None, learner: Any = None) -> None:
            got.append(learner)

    class Kwargs(Callback):
        def on_step_end(self, **kwargs: Any) -> None:
            got.append(kwargs["learner"])

    class Decorated(Callback):
        @decorated
        def on_step_end(self, learner: Any) -> None:
            got.append(learner)

    class Static(Callback):
        @staticmethod
        def on_step_end(learner: Any) -> None:
            got.append(learner)

    class Class(Callback):
        @classmethod
        def on_step_end(cls, learner: Any) -> None:
            got.append(learner)

    class Dynamic(Callback):
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda **kwargs: got.append(kwargs["learner"])

    partial = Declared({}, on_step_end=functools.partial(lambda first, learner: got.append(learner), 1))
    kinds = (Named, KeywordOnly, Second, Kwargs, Decorated, Static, Class, Dynamic)
    return {**{kind.__name__: kind() for kind in kinds}, "partial": partial}


class TestLearnerIsReplacedByAProxy:
    @pytest.mark.parametrize("guard", ["on", "strict"])
    @pytest.mark.parametrize("way", ways_to_take_it([]))
    def test_as_a_keyword(self, way: str, guard: Any) -> None:
        got: list[Any] = []
        fabric, learner = make(ways_to_take_it(got)[way], guard=guard), Learner()
        for _ in range(3):
            fabric.call(HOOK, loss=1, learner=learner)
        assert type(got[0]) is Protected
        assert got[1] is got[0], "made once, not for each event"
        assert got[2] is got[0]

    @pytest.mark.parametrize("way", ["Named", "Decorated", "Static", "Class"])
    def test_as_the_positional_argument_that_lands_on_it(self, way: str) -> None:
        got: list[Any] = []
        learner = Learner()
        make(ways_to_take_it(got)[way]).call(HOOK, learner)
        assert type(got[0]) is Protected

    def test_in_any_place(self) -> None:
        got: list[Any] = []
        first, second = Learner(), Learner()
        make(ways_to_take_it(got)["Second"]).call(HOOK, first, second)
        make(Declared({}, on_step_end=lambda learner, other: got.extend((learner, other)))).call(HOOK, first, second)
        assert [type(value) for value in got] == [Protected, Protected, Learner]

    def test_under_another_name_it_is_the_object_itself(self) -> None:
        got: list[Any] = []
        learner = Learner()
        fabric = make(
            Declared({}, on_step_end=lambda trainer: got.append(trainer), on_all=lambda *args: got.extend(args))
        )
        fabric.call(HOOK, learner)
        fabric.call(HOOK, trainer=learner)
        fabric.call("on_all", learner)
        assert got == [learner] * 3

    def test_there_may_be_none(self) -> None:
        got: list[Any] = []
        fabric = make([Declared({}, on_step_end=lambda learner=None, loss=0: got.append((learner, loss)))])
        fabric.call(HOOK)
        fabric.call(HOOK, loss=2)
        fabric.call(HOOK, learner=None)
        fabric.call(HOOK, None)
        assert got == [(None, 0), (None, 2), (None, 0), (None, 0)]

    def test_a_missing_one_is_a_missing_argument(self) -> None:
        with pytest.raises(TypeError, match="learner"):
            make(ways_to_take_it([])["Named"]).call(HOOK)

    def test_a_method_that_is_replaced_later_gets_the_proxy_too(self) -> None:
        got: list[Any] = []
        callback = Declared({}, on_step_end=lambda learner: None)
        fabric, learner = make(callback), Learner()
        for _ in range(12):
            fabric.call(HOOK, learner=learner)
            callback.on_step_end = lambda learner: got.append(learner)
        assert {type(value) for value in got} == {Protected}
        assert len(got) == 11

    @pytest.mark.parametrize(
        "learner",
        [
            *(kind(step=1) for kind in (State, dict, Record, Learner, Slots, Module, SimpleNamespace)),
            type("OfAClass", (), {"step": 1}),
        ],
        ids=lambda learner: type(learner).__name__,
    )
    def test_any_object_is_a_learner(self, learner: Any) -> None:
        def read(learner: Any) -> None:
            seen.append(learner["step"])
            with pytest.raises(ProtectedException, match=rf"^Read access to {name}\.epoch disallowed\. "):
                learner.epoch  # noqa: B018

        def write(learner: Any) -> None:
            learner["step"] = learner["step"] + 1

        seen: list[Any] = []
        name = type(learner).__name__
        reader = Declared({"step": Read()}, on_step_end=read)
        fabric = make([reader, Declared({"step": Write()}, on_step_begin=write)])
        for _ in range(3):
            fabric.call("on_step_begin", learner=learner)
            fabric.call(HOOK, learner=learner)
        assert seen == [2, 3, 4]

    def test_a_proxy_for_each_callback_and_learner(self) -> None:
        got: list[Any] = []
        learners = [Learner(), Learner()]
        fabric = make([Declared({}, on_step_end=got.append, on_other=got.append) for _ in range(2)])
        for callback in fabric.callbacks:
            callback.on_step_end = callback.on_other = lambda learner: got.append(learner)
        for learner in learners * 2:
            fabric.call(HOOK, learner=learner)
            fabric.call("on_other", learner=learner)
        assert len({id(proxy) for proxy in got}) == 4
        assert len(got) == 16
        assert {type(proxy) for proxy in got} == {Protected}


class TestPlainCallbacks:
    def test_they_get_the_object_itself(self) -> None:
        class Plain:
            def on_step_end(self, learner: Any) -> None:
                got.append(learner)

        got: list[Any] = []
        learner = Learner()
        fabric = make([Plain(), Declared({}, on_step_end=lambda learner: None), Plain()])
        fabric.callbacks.on(HOOK, lambda learner: got.append(learner))
        fabric.call(HOOK, learner=learner)
        fabric.call(HOOK, learner)
        assert [value is learner for value in got] == [True] * 6

    def test_also_when_a_guarded_callback_calls_the_hook(self) -> None:
        got: list[Any] = []
        learner = Learner()
        fabric = make(Declared({}, on_step_end=lambda learner: fabric.call("on_inner", learner=learner)))
        fabric.callbacks.on("on_inner", lambda learner: got.append(learner))
        fabric.call(HOOK, learner=learner)
        assert [type(each) for each in got] == [Protected]  # what was passed: it is not the bus that lets it out


class TestInit:
    def meeting(self, guard: Any = "on") -> tuple[Fabric, list[Any]]:
        class Meeting(Callback):
            def init(self, learner: Any) -> None:
                met.append(learner)

            def on_step_end(self, learner: Any) -> None:
                met.append(HOOK)

            on_other = on_step_end

        met: list[Any] = []
        return make(Meeting(), guard=guard), met

    @pytest.mark.parametrize("guard", ["on", "off", "strict"])
    def test_at_the_first_hook_with_a_learner(self, guard: Any) -> None:
        fabric, met = self.meeting(guard)
        learners = [Learner(), Learner()]
        fabric.call("on_unknown", learner=learners[0])
        assert met == []
        for learner in (learners[0], learners[0], learners[1], learners[0]):
            fabric.call(HOOK, learner=learner)
            fabric.call("on_other", learner=learner)
        kinds = [what if what == HOOK else type(what) for what in met]
        kind = Learner if guard == "off" else Protected
        assert kinds == [kind, *[HOOK] * 4, kind, *[HOOK] * 4]
        assert met[0] is not met[5]

    def test_a_change_of_the_callbacks_is_no_second_meeting(self) -> None:
        fabric, met = self.meeting()
        learner = Learner()
        fabric.call(HOOK, learner=learner)
        with fabric.callbacks.add(Declared({"x": Write()}, on_step_end=lambda learner: None)):
            fabric.call(HOOK, learner=learner)
        fabric.call(HOOK, learner=learner)
        assert [what for what in met if what != HOOK] == met[:1]

    @pytest.mark.parametrize("guard", ["on", "off", "strict"])
    def test_an_exception_there_has_a_note(self, guard: Any) -> None:
        class Failing(Callback):
            def init(self, learner: Any) -> None:
                raise KeyError("mine")

            def on_step_end(self, learner: Any) -> None: ...

        with pytest.raises(KeyError, match="mine") as caught:
            make(Failing(), guard=guard).call(HOOK, learner=Learner())
        if hasattr(caught.value, "add_note"):
            assert "the callback `Failing`" in "".join(getattr(caught.value, "__notes__", ()))


class TestGuard:
    def test_off_hands_out_the_object_itself(self) -> None:
        got: list[Any] = []
        learner = Learner(step=State(loss=1))

        def act(learner: Any) -> None:
            learner.step.loss = 2
            got.append(learner)

        make(Declared({}, on_step_end=act), guard="off").call(HOOK, learner=learner)
        assert got == [learner]
        assert learner.step.loss == 2

    @pytest.mark.parametrize("guard", ["yes", "", None, True])
    def test_anything_else(self, guard: Any) -> None:
        message = f"`Fabric(guard={guard!r})`: choose 'on', 'off' or 'strict'."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make(None, guard=guard)


@pytest.mark.parametrize("guard", ["on", "off", "strict"])
@pytest.mark.parametrize("error", [CancelStepException, CancelEpochException, CancelFittingException, FitException])
def test_control_flow_passes_unchanged(error: type[Exception], guard: Any) -> None:
    def cancel(learner: Any) -> None:
        raise cancelled

    cancelled = error("enough")
    after: list[Any] = []
    fabric = make(Declared({}, on_step_end=cancel), guard=guard)
    fabric.callbacks.on(HOOK, lambda: after.append(1))
    with pytest.raises(error) as caught:
        fabric.call(HOOK, learner=Learner())
    assert caught.value is cancelled
    assert after == []
    if hasattr(cancelled, "__notes__"):
        assert cancelled.__notes__ == ["raised by the callback `Declared` in its hook `on_step_end`"]
