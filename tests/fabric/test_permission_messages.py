"""What a guarded callback is told when it oversteps, and that the line in it mends it."""

from __future__ import annotations

from collections.abc import Callable as Function
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric_lite import Callback, Fabric, ProtectedException, Read, State, Write

HOOK = "on_step_end"


class Learner:
    def __init__(self, **state: Any) -> None:
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


class TestMessages:
    @pytest.mark.parametrize(
        ("access", "act", "message"),
        [
            (
                {},
                lambda learner: learner.step.loss,
                "Read access to Learner.step.loss disallowed. Declared read it in on_step_end; to allow it, add this"
                ' line to the mapping that Declared.stateaccess() returns:\n    "step.loss": Read(),',
            ),
            (
                {"step": {"loss": Read()}},
                lambda learner: setattr(learner.step, "loss", 1),
                "Write access to Learner.step.loss disallowed. Declared wrote to it in on_step_end; to allow it, change"
                ' the entry in the mapping that Declared.stateaccess() returns:\n    "step.loss": Write(),',
            ),
        ],
    )
    def test_they_begin_with_the_sentence_of_the_seed(self, access: Any, act: Any, message: str) -> None:
        fabric = make(Declared(access, on_step_end=act))
        with pytest.raises(ProtectedException) as caught:
            fabric.call(HOOK, learner=Learner(step=State(loss=0.5)))
        assert str(caught.value) == message
        if hasattr(caught.value, "__notes__"):
            assert caught.value.__notes__ == ["raised by the callback `Declared` in its hook `on_step_end`"]


@dataclass
class Options:
    rate: float = 0.1
    parts: list[Any] = field(default_factory=lambda: [1, {"a": 1}])


def a_learner(kind: Any) -> Any:
    step = State(loss=0.5, xs=[1, [2, 3]], more={"a.b": 1, "items": {"n": 1}})
    return kind(step=step, options=Options(), model=SimpleNamespace(weight=1), names={"a": {"b": 1}}, epoch=3)


ACTIONS: list[Function[[Any], object]] = [
    lambda p: p.epoch,
    lambda p: p["epoch"],
    lambda p: setattr(p, "epoch", 4),
    lambda p: delattr(p, "epoch"),
    lambda p: p.step.loss,
    lambda p: p.step["loss"],
    lambda p: p["step"].xs[1][0],
    lambda p: p.step.xs[1].append(4),
    lambda p: setattr(p.step, "loss", 1),
    lambda p: setattr(p.step, "new", 1),
    lambda p: p.step.more["a.b"],
    lambda p: p.step.more.__setitem__("a.b", 2),
    lambda p: p.step.more["items"]["n"],
    lambda p: p.step.more["items"].update(n=2),
    lambda p: p.options.rate,
    lambda p: setattr(p.options, "rate", 1),
    lambda p: p.options.parts[1].__setitem__("a", 2),
    lambda p: p.options.parts.clear(),
    lambda p: p.model.weight,
    lambda p: setattr(p.model, "weight", 2),
    lambda p: p.names["a"]["b"],
    lambda p: p.names["a"].__delitem__("b"),
    lambda p: p.names.__setitem__("c", 1),
]
KINDS = [Learner, State, SimpleNamespace]
MODES = st.sampled_from([Read(), Write()])
DECLARED = st.dictionaries(
    st.sampled_from(
        ["epoch", "step", "step.loss", "step.xs", "step.more", "options", "options.rate", "model", "names"]
    ),
    MODES,
    max_size=4,
)


@given(DECLARED, st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4), st.sampled_from(KINDS))
@example({"step": Read(), "step.loss": Read()}, [lambda p: setattr(p.step, "loss", 1)], Learner)
def test_the_line_of_a_message_mends_it(access: dict[str, Any], actions: list[Any], kind: Any) -> None:
    """Paste the line, run again: each line is asked for once, and in the end everything works."""
    for action in actions:
        for _ in range(4):  # reading, and then writing, at two depths
            callback = Declared(access, on_step_end=lambda learner, act=action: act(learner))
            try:
                make(callback).call(HOOK, learner=a_learner(kind))
                break
            except ProtectedException as error:
                sentence, _, line = str(error).partition("\n")
                pasted = eval(f"{{{line}}}", {"Read": Read, "Write": Write})
                assert sentence.endswith(" the mapping that Declared.stateaccess() returns:")
                assert ("change the entry in" in sentence) == (pasted.keys() <= access.keys())
                assert pasted.items() - access.items(), "it is there already"
                access = {**access, **pasted}
        else:
            pytest.fail(f"{access} does not allow it")
