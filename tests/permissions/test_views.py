# ruff: noqa: RUF005, SIM300 - operators and their sides are what is tested
from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from array import array
from collections import Counter, OrderedDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Mapping, MutableMapping, Sequence, Set
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.permissions import Guard, Protected, ProtectedException, Read, State
from fabric_lite.permissions.views import View


@dataclasses.dataclass
class Inner:
    values: list = dataclasses.field(default_factory=lambda: [1, 2])


@dataclasses.dataclass
class History:
    steps: int = 0
    inner: Inner = dataclasses.field(default_factory=Inner)
    target: str = "a name that the view has a slot for"

    def push(self):
        self.steps += 1

    def last(self):
        return self.inner.values[-1]

    @property
    def values(self):
        return self.inner.values

    def __len__(self):
        return len(self.inner.values)

    def __getitem__(self, index):
        return self.inner.values[index]

    def __call__(self):
        self.inner.values.append(3)

    @staticmethod
    def double(value):
        return 2 * value

    @classmethod
    def make(cls):
        return cls()


Point = namedtuple("Point", "x y")


@pytest.fixture
def view(learner_class, protected):
    """A function that gives a value as a callback sees it that declared it readable."""

    def make(value):
        make.learner = learner_class(value=value)
        return protected(make.learner, {"value": Read()}).value

    return make


def denied(path, did=""):
    return pytest.raises(
        ProtectedException, match=f"^Write access to Learner.{re.escape(path)} disallowed. Printer {re.escape(did)}"
    )


def test_views_are_abstract_containers_and_no_builtins(view):
    for value, kind in [
        ([1], Sequence),
        ({"a": 1}, Mapping),
        ({1}, Set),
        (deque([1]), Sequence),
        (State(a=1), Mapping),
    ]:
        seen = view(value)
        assert isinstance(seen, View)
        assert isinstance(seen, kind)
        assert not isinstance(seen, (list, dict, set))


def test_other_values_come_as_they_are(view):
    tensor = torch.zeros(2)
    module = torch.nn.Linear(1, 1)
    for value in (
        tensor,
        module,
        torch.nn.ModuleList([module]),
        torch.optim.SGD(module.parameters(), 0.1),
        tensor.shape,
        torch.max(torch.eye(2), 0),
        0.5,
        1,
        None,
        True,
        "text",
        b"bytes",
        bytearray(b"bytes"),
        array("d", [1.0]),
        range(3),
        (1, "a", tensor),
        Point(1, tensor),
        frozenset([1]),
        History,
        SimpleNamespace(a=[1]),
        print,
    ):
        assert view(value) is value


MUTATIONS: list[tuple[Any, Any]] = [
    ([3, 1], lambda v: v.append(1)),
    ([3, 1], lambda v: v.extend([1])),
    ([3, 1], lambda v: v.insert(0, 1)),
    ([3, 1], lambda v: v.remove(1)),
    ([3, 1], lambda v: v.pop()),
    ([3, 1], lambda v: v.clear()),
    ([3, 1], lambda v: v.sort()),
    ([3, 1], lambda v: v.reverse()),
    ([3, 1], lambda v: v.__setitem__(0, 1)),
    ([3, 1], lambda v: v.__setitem__(slice(0, 1), [])),
    ([3, 1], lambda v: v.__delitem__(0)),
    ([3, 1], lambda v: v.__iadd__([1])),
    ([3, 1], lambda v: v.__imul__(2)),
    ([3, 1], lambda v: setattr(v, "attribute", 1)),
    ({"a": 1}, lambda v: v.__setitem__("a", 2)),
    ({"a": 1}, lambda v: v.__delitem__("a")),
    ({"a": 1}, lambda v: v.update(a=2)),
    ({"a": 1}, lambda v: v.pop("a")),
    ({"a": 1}, lambda v: v.popitem()),
    ({"a": 1}, lambda v: v.setdefault("b", 2)),
    ({"a": 1}, lambda v: v.clear()),
    ({"a": 1}, lambda v: v.__ior__({"b": 1})),
    ({1}, lambda v: v.add(2)),
    ({1}, lambda v: v.discard(1)),
    ({1}, lambda v: v.remove(1)),
    ({1}, lambda v: v.pop()),
    ({1}, lambda v: v.clear()),
    ({1}, lambda v: v.update([2])),
    ({1}, lambda v: v.difference_update([1])),
    ({1}, lambda v: v.__isub__({1})),
    ({1}, lambda v: v.__iand__({2})),
    ({1}, lambda v: v.__ixor__({1})),
    (State(a=1), lambda v: setattr(v, "a", 2)),
    (State(a=1), lambda v: delattr(v, "a")),
    (State(a=1), lambda v: v.__setitem__("a", 2)),
    (State(a=1), lambda v: v.update(a=2)),
    (State(a=1), lambda v: v.pop("a")),
    (State(a=1), lambda v: v.clear()),
    (State(a=1), lambda v: v.setdefault("b", 2)),
    (State(a=1), lambda v: vars(v).update(a=2)),
    (History(), lambda v: setattr(v, "steps", 1)),
    (History(), lambda v: delattr(v, "steps")),
    (History(), lambda v: v.push()),
    (History(), lambda v: v()),
    (History(), lambda v: v.inner.values.append(1)),
    (History(), lambda v: v.values.append(1)),
    (History(), lambda v: v.__dict__.update(steps=1)),
    (deque([1]), lambda v: v.appendleft(1)),
    (deque([1]), lambda v: v.rotate()),
    (OrderedDict(a=1), lambda v: v.move_to_end("a")),
    (Counter("aab"), lambda v: v.subtract("a")),
    (Counter("aab"), lambda v: v.update("a")),
    (defaultdict(list), lambda v: v["missing"]),
    (UserList([1]), lambda v: v.append(1)),
]


@pytest.mark.parametrize("number", range(len(MUTATIONS)))
def test_a_view_cannot_be_written_through(view, number):
    value, mutate = MUTATIONS[number]
    before = copy.deepcopy(value)
    seen = view(value)
    with pytest.raises(ProtectedException, match=r"^Write access to Learner\.value[\w.\[\]]* disallowed\. Printer "):
        mutate(seen)
    assert value == before


def test_errors_name_path_and_deed(view):
    seen = view({"rows": [{"a": [1]}]})
    with denied("value.rows[0].a", "called .append() in on_step_end; to allow it, add this line to the") as caught:
        seen["rows"][0]["a"].append(1)
    assert str(caught.value).endswith('\n    "value.rows": Write(),')
    with denied("value.rows[0]", "wrote to it in on_step_end"):
        seen["rows"][0] = 1
    with denied("value.rows", "called .sort()"):
        seen["rows"].sort()
    with denied("value", "called .clear() in on_step_end; to allow it, change the entry in"):
        seen.clear()


def everything_below(value):
    """All containers that can be reached through a view, by every way of reading one."""
    if isinstance(value, View):
        yield value
    if isinstance(value, str):
        return
    if isinstance(value, Mapping):
        inside = [
            *value.values(),
            *(v for _, v in value.items()),
            *(value[k] for k in value),
            *(value.get(k) for k in value),
        ]
    elif dataclasses.is_dataclass(value):
        inside = [getattr(value, f.name) for f in dataclasses.fields(value)]
    elif isinstance(value, (Sequence, Set, tuple)):
        inside = list(value)
        if isinstance(value, Sequence):
            inside += [*reversed(value), *value[:], *(value[i] for i in range(len(value))), *(list(value) + [])]
    else:
        return
    for element in inside:
        assert not isinstance(element, (list, dict, set)), element
        yield from everything_below(element)


leaves = st.integers() | st.text(max_size=2) | st.none()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Inner, st.lists(inner, max_size=2))
        | st.builds(lambda values: State({f"k{i}": v for i, v in enumerate(values)}), st.lists(inner, max_size=2))
        | st.sets(st.integers(), max_size=3)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


class Owner:
    pass


@given(trees)
def test_views_stay_read_only_however_deep_one_goes(tree):
    owner = Owner()
    owner.value = tree

    class Reader(_printer()):
        def stateaccess(self):
            return {"value": Read()}

    guard, callback = Guard(), Reader()
    guard.arrange([callback])
    before = copy.deepcopy(tree)
    seen = guard.adapt(callback, "on_step_end", "learner")(owner).value
    for container in everything_below(seen):
        with pytest.raises(ProtectedException):
            container[0] = 1
        with pytest.raises(ProtectedException):
            container.attribute = 1
    assert tree == before
    assert seen == tree
    assert tree == seen
    assert copy.deepcopy(seen) == tree


def _printer():
    from fabric_lite.permissions import Callback

    return Callback


def test_views_are_live(view):
    value = {"a": [1]}
    seen = view(value)
    inner = seen["a"]
    value["a"].append(2)
    value["b"] = 3
    assert (inner, seen["b"]) == ([1, 2], 3)


def test_reading_a_list(view):
    seen = view([3, [1], "a"])
    assert (len(seen), seen[0], seen[-1], seen.index("a"), seen.count(3)) == (3, 3, "a", 2, 1)
    assert seen == [3, [1], "a"]
    assert [3, [1], "a"] == seen
    assert seen != [3]
    assert (3 in seen, [1] in seen, 4 in seen, seen[1] in seen) == (True, True, False, True)
    assert seen[1:] == [[1], "a"]
    assert isinstance(seen[1:], View)
    assert seen + [4] == [3, [1], "a", 4]
    assert [4] + seen == [4, 3, [1], "a"]
    assert type(seen + []) is type(seen.copy()) is list
    assert list(reversed(seen)) == ["a", [1], 3]
    assert (repr(seen), str(seen), f"{seen}") == ("[3, [1], 'a']",) * 3
    with denied("value[1]"):
        (seen + [])[1].append(1)
    with denied("value[1]"):
        seen.copy()[1].append(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(seen)
    match seen:
        case [first, *_]:
            assert first == 3
        case _:
            pytest.fail("a view is a sequence")


def test_reading_a_mapping(view):
    seen = view({"a": 1, "b": [2]})
    assert seen == {"a": 1, "b": [2]}
    assert dict(seen) == {**seen} == {"a": 1, "b": [2]}
    assert (seen.get("c"), seen.get("c", 1), "a" in seen, list(seen)) == (None, 1, True, ["a", "b"])
    assert seen | {"c": 3} == {"a": 1, "b": [2], "c": 3}
    assert {"c": 3} | seen == {"c": 3, "a": 1, "b": [2]}
    assert type(seen.copy()) is dict
    with denied("value.b"):
        seen.copy()["b"].append(1)
    with pytest.raises(KeyError, match="c"):
        seen["c"]
    match seen:
        case {"b": inner}:
            assert isinstance(inner, View)
        case _:
            pytest.fail("a view is a mapping")


def test_reading_a_set(view):
    seen = view({1, 2})
    assert seen == {1, 2}
    assert (1 in seen, len(seen), seen <= {1, 2, 3}, seen.isdisjoint({3})) == (True, 2, True, True)
    assert (seen | {3}, seen & {1}, seen - {1}, seen ^ {1, 3}) == ({1, 2, 3}, {1}, {2}, {2, 3})
    assert (seen.union([3]), seen.intersection([1]), seen.issubset([1, 2]), seen.copy()) == (
        {1, 2, 3},
        {1},
        True,
        {1, 2},
    )
    assert type(seen | {3}) is type(seen.copy()) is set


def test_reading_a_state(view):
    seen = view(State(loss=1, xs=[1]))
    assert (seen.loss, seen["loss"], seen.get("xs"), list(seen)) == (1, 1, [1], ["loss", "xs"])
    assert isinstance(seen, State)
    assert isinstance(seen.copy(), State)
    assert not isinstance(seen.copy(), View)
    assert vars(seen) == {"loss": 1, "xs": [1]}
    assert "loss" in dir(seen)
    assert not hasattr(seen, "ys")
    with denied("value.xs"):
        seen.copy().xs.append(1)
    with pytest.raises(AttributeError, match=re.escape("State has no entry 'los'; did you mean 'loss'?")):
        seen.los  # noqa: B018


def test_reading_a_dataclass(view):
    seen = view(History())
    assert isinstance(seen, History)
    assert (seen.steps, seen.last(), seen.values, seen.target) == (0, 2, [1, 2], History.target)
    assert (len(seen), seen[0], seen.double(2), seen.make()) == (2, 1, 4, History())
    assert seen == History()
    assert History() == seen
    assert seen != History(1)
    assert dataclasses.asdict(seen) == dataclasses.asdict(History())
    assert [f.name for f in dataclasses.fields(seen)] == ["steps", "inner", "target"]
    replaced = dataclasses.replace(seen, steps=5)
    assert type(replaced) is History
    with denied("value.inner.values"):
        replaced.inner.values.append(1)
    match seen:
        case History(steps, inner=Inner(values)):
            assert (steps, values) == (0, [1, 2])
        case _:
            pytest.fail("a view is matched like its object")


def test_elements_of_tuples_are_views(view):
    seen = view((1, [2], Point([3], 4)))
    assert type(seen) is tuple
    assert type(seen[2]) is Point
    assert seen == (1, [2], Point([3], 4))
    with denied("value[1]"):
        seen[1].append(1)
    with denied("value[2][0]"):
        seen[2].x.append(1)


def test_frozen_dataclasses_keep_their_hash(view):
    @dataclasses.dataclass(frozen=True)
    class Key:
        name: str

    seen = view([Key("a")])[0]
    assert {seen: 1} == {Key("a"): 1}
    assert view({Key("a"), Key("b")}) == {Key("a"), Key("b")}
    assert Key("a") in view({Key("a")}) | set()
    assert view(frozenset([Key("a")])) == {Key("a")}


def test_other_mappings(view):
    assert Counter("aab") == view(Counter("aab"))
    assert view(Counter("aab")).most_common(1) == [("a", 2)]
    assert view(Counter("aab"))["missing"] == 0
    assert view(defaultdict(list, a=[1])).get("missing") is None
    with denied("value.missing", "looked up a missing key, which a defaultdict adds, in on_step_end"):
        view(defaultdict(list))["missing"]
    with denied("value.a"):
        view(MappingProxyType({"a": [1]}))["a"].append(1)


def test_a_tensor_like_container_is_a_tensor(view):
    class TensorDict(MutableMapping):
        __torch_function__ = None
        __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = None

    value = TensorDict()
    assert view(value) is value


def test_copies(view):
    value = {"a": [1]}
    seen = view(value)
    assert copy.copy(seen) is seen
    deep = copy.deepcopy(seen)
    assert type(deep) is dict
    deep["a"].append(2)
    assert value == {"a": [1]}
    for dump in (pickle.dumps, lambda v: pickle.dumps([v])):
        with pytest.raises(ProtectedException) as caught:
            dump(seen)
        assert str(caught.value) == (
            "A read-only view of Learner.value cannot be pickled; pickle copy.deepcopy(...) of it, a copy of its own."
        )
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(seen)
    assert json.dumps(copy.deepcopy(seen)) == '{"a": [1]}'


def test_comparison_hands_out_nothing(view):
    class Nosy(list):
        seen: list = []

        def __eq__(self, other):
            self.seen.append(other)
            return False

        __hash__ = None

    class NosyObject:
        __eq__ = Nosy.__eq__
        __hash__ = None
        seen = Nosy.seen

    seen = view([1])
    assert seen != Nosy()
    assert seen != NosyObject()
    assert all(isinstance(other, View) for other in Nosy.seen)


def test_a_view_that_is_stored_stays_a_view(learner_class, protected, view):
    seen = view([1])
    learner = learner_class(kept=seen)
    assert protected(learner, {"kept": Read()}).kept is seen
    assert not isinstance(seen, Protected)
