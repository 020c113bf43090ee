from __future__ import annotations

import copy
import pickle
import re
from collections.abc import MutableMapping

import pytest

from fabric_lite.permissions import State


def test_entries_are_items_and_attributes():
    state = State(xs=1)
    state.ys = 2
    state["loss"] = 3
    assert (state.xs, state["ys"], state.loss) == (1, 2, 3)
    assert list(state) == ["xs", "ys", "loss"]
    assert len(state) == 3
    assert "ys" in state
    assert hasattr(state, "ys")
    assert dict(state) == {"xs": 1, "ys": 2, "loss": 3} == {**state}
    assert state == {"xs": 1, "ys": 2, "loss": 3}
    assert isinstance(state, MutableMapping)


def test_entries_go_either_way():
    state = State(xs=1, ys=2)
    del state.xs
    del state["ys"]
    assert state == {}
    assert not hasattr(state, "xs")


def test_made_from_a_mapping_or_pairs():
    assert State({"xs": 1}, ys=2) == State([("xs", 1)], ys=2) == State(xs=1, ys=2)


def test_a_key_that_is_no_identifier_is_an_item():
    state = State({"val/loss": 1, "two words": 2})
    assert (state["val/loss"], state["two words"]) == (1, 2)
    assert getattr(state, "val/loss") == 1


def test_repr_shows_the_entries():
    assert repr(State(xs=[1], name="a")) == "State(xs=[1], name='a')"


@pytest.mark.parametrize("duplicate", [copy.copy, State.copy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copies_are_states_of_their_own(duplicate):
    state = State(xs=1, inner=State(ys=2))
    other = duplicate(state)
    other.xs = 5
    assert type(other) is State
    assert state == {"xs": 1, "inner": {"ys": 2}}
    assert other.inner == State(ys=2)


def test_copies_share_values_and_deep_copies_do_not():
    state = State(xs=[1])
    assert copy.copy(state).xs is state.xs is state.copy().xs
    assert copy.deepcopy(state).xs == state.xs
    assert copy.deepcopy(state).xs is not state.xs


@pytest.mark.parametrize(
    ("access", "error", "message"),
    [
        (lambda s: s.los, AttributeError, "State has no entry 'los'; did you mean 'loss'?"),
        (lambda s: s["los"], KeyError, "State has no entry 'los'; did you mean 'loss'?"),
        (lambda s: delattr(s, "los"), AttributeError, "State has no entry 'los'; did you mean 'loss'?"),
        (lambda s: s.pop("los"), KeyError, "State has no entry 'los'; did you mean 'loss'?"),
        (lambda s: s.__delitem__("los"), KeyError, "State has no entry 'los'; did you mean 'loss'?"),
        (lambda s: s.qqqq, AttributeError, "State has no entry 'qqqq'; it has 'loss', 'xs'."),
        (lambda s: State().qqqq, AttributeError, "State has no entry 'qqqq'; it has none."),
        (lambda s: s.__array__, AttributeError, "State has no '__array__'."),
        (
            lambda s: setattr(s, "items", 1),
            ValueError,
            "State has an attribute of its own called 'items'; name the entry otherwise, for example 'items_'.",
        ),
        (
            lambda s: State(values=1),
            ValueError,
            "State has an attribute of its own called 'values'; name the entry otherwise, for example 'values_'.",
        ),
        (
            lambda s: s.__setitem__(3, 1),
            TypeError,
            "A key of State is a string, not 3; use a dict as the entry instead.",
        ),
    ],
)
def test_errors_say_what_to_do(access, error, message):
    with pytest.raises(error, match=re.escape(message)):
        access(State(loss=1, xs=2))


def test_defaults_work():
    state = State(xs=1)
    assert state.get("ys", 7) == getattr(state, "ys", 7) == state.pop("ys", 7) == state.setdefault("ys", 7) == 7
