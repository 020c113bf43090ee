from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.permissions import Callback, CallbackGraph, Read, State, Write
from fabric_lite.permissions.access import entries, normalise


def declared(access):
    return dict(entries(normalise(access, Callback())))


def test_leaves_of_one_kind_are_equal():
    assert Read() == Read() != Write() == Write()
    assert {Read(): 1}[Read()] == 1
    assert (repr(Read()), repr(Write())) == ("Read()", "Write()")


@pytest.mark.parametrize(
    "access",
    [
        {"step": {"loss": Read(), "xs": Write()}, "cbstate": {"history": {"steps": Read()}}},
        {"step.loss": Read(), "step.xs": Write(), "cbstate.history.steps": Read()},
        {"step": {"loss": Read()}, "step.xs": Write(), "cbstate.history": {"steps": Read()}},
        {"step.loss": Read(), "step": State(xs=Write()), "cbstate": {"history.steps": Read()}},
        {"step.loss": Read(), "step": {"loss": Read(), "xs": Write()}, "cbstate": {"history": {"steps": Read()}}},
    ],
)
def test_nested_and_dotted_forms_are_the_same(access):
    assert declared(access) == {
        ("step", "loss"): Read(),
        ("step", "xs"): Write(),
        ("cbstate", "history", "steps"): Read(),
    }


def test_the_more_specific_entry_counts():
    tree = normalise({"step": Read(), "step.xs": Write(), "step.a.b": Write()}, Callback())
    step = tree.children["step"]
    assert (tree.mode, step.mode, step.children["xs"].mode) == (None, Read(), Write())
    assert (step.children["a"].mode, step.children["a"].children["b"].mode) == (Read(), Write())


def test_an_entry_that_says_nothing_new_is_dropped():
    assert declared({"step": Write(), "step.xs": Write()}) == {("step",): Write()}
    assert normalise({"step": Write(), "step.xs": Write()}, Callback()).children["step"].leaf


def test_an_empty_mapping_declares_nothing():
    assert declared({}) == declared({"step": {}}) == {}
    assert declared({"step": {}, "step.xs": Read()}) == {("step", "xs"): Read()}


class Counter(Callback):
    def __init__(self, access):
        self.access = access

    def stateaccess(self):
        return self.access


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (None, 'Counter.stateaccess() returned None, which is no mapping; return one such as {"step.loss": Read()}'),
        (Read(), "Counter.stateaccess() returned Read(), which is no mapping"),
        ([("step", Read())], "which is no mapping"),
        ({3: Read()}, 'Counter.stateaccess(): the key 3 is no string; a path is written like "step.loss".'),
        ({"step": {"a": {None: Read()}}}, "Counter.stateaccess(): the key None below 'step.a' is no string"),
        ({"": Read()}, "Counter.stateaccess(): the path '' has an empty part"),
        ({"step.": Read()}, "Counter.stateaccess(): the path 'step.' has an empty part"),
        ({"step": {"a..b": Read()}}, "Counter.stateaccess(): the path 'step.a..b' has an empty part"),
        ({"step": {"loss": Read}}, "Counter.stateaccess(): 'step.loss' is the class Read; write Read() instead."),
        ({"step.loss": Write}, "Counter.stateaccess(): 'step.loss' is the class Write; write Write() instead."),
        ({"step.loss": "r"}, "Counter.stateaccess(): 'step.loss' is 'r'; write Read(), Write() or a mapping of"),
        ({"step.loss": None}, "Counter.stateaccess(): 'step.loss' is None; write Read(), Write() or"),
        (
            {"step": {"loss": Read()}, "step.loss": Write()},
            "Counter.stateaccess(): 'step.loss' is given twice, as Read() and as Write(); keep one.",
        ),
    ],
)
def test_a_malformed_declaration_names_callback_and_path(access, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        CallbackGraph([Counter(access)])


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)
modes = st.sampled_from([Read(), Write()])


def in_force(access, path):
    """The oracle: the mode of the longest declared prefix."""
    found = [access[path[:end]] for end in range(len(path), 0, -1) if path[:end] in access]
    return found[0] if found else None


@given(st.dictionaries(paths, modes, max_size=6), paths)
def test_the_tree_says_for_every_path_what_the_longest_entry_says(access, path):
    node = normalise({".".join(key): mode for key, mode in access.items()}, Callback())
    mode = None
    for part in path:
        child = node.children.get(part) if node is not None else None
        mode = child.mode if child is not None else mode
        node = child
    assert mode == in_force(access, path)


@given(st.dictionaries(paths, modes, max_size=6))
def test_entries_declare_the_same_again(access):
    once = declared({".".join(key): mode for key, mode in access.items()})
    assert declared({".".join(key): mode for key, mode in once.items()}) == once
    assert set(once) <= set(access)
