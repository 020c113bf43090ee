"""The graph against a brute-force oracle, on random sets of up to six callbacks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_lite.permissions import (
    Callback,
    CallbackGraph,
    CallbackGraphError,
    CyclicDependencyError,
    MissingStateError,
    NoConflict,
    Read,
    RunFirst,
    Unresolvable,
    Write,
    WriteConflictError,
)


class Random(Callback):
    def __init__(self, access, after, answers):
        self.access, self.after, self.answers = access, after, answers

    def stateaccess(self):
        return {".".join(path): mode for path, mode in self.access.items()}

    def runafter(self):
        return tuple(KINDS[number] for number in self.after)

    def resolveconflict(self, other):
        answer = self.answers.get(other.number)
        return {
            None: NotImplemented,
            "self": RunFirst(self),
            "other": RunFirst(other),
            "none": NoConflict(),
            "never": Unresolvable(),
        }[answer]


class Plain:
    pass


KINDS = [type(f"Random{number}", (Random,), {"number": number}) for number in range(6)]
PATHS = [("s", "a"), ("s", "a", "x"), ("s", "b"), ("cbstate", "h"), ("cbstate", "h", "y"), ("t",)]

declarations = st.none() | st.tuples(
    st.dictionaries(st.sampled_from(PATHS), st.sampled_from([Read(), Read(), Write()]), max_size=2),
    st.sets(st.integers(0, 5), max_size=1),
    st.dictionaries(st.integers(0, 5), st.sampled_from(["self", "other", "none", "never"]), max_size=3),
)


def build(declared):
    return [Plain() if one is None else KINDS[number](*one) for number, one in enumerate(declared)]


def touches(one, other):
    """(both write, the one writes what the other reads, the other way round), path against path."""
    both = forth = back = False
    for path, mode in one.items():
        for other_path, other_mode in other.items():
            end = min(len(path), len(other_path))
            if path[:end] == other_path[:end]:
                writes, other_writes = mode == Write(), other_mode == Write()
                both |= writes and other_writes
                forth |= writes and not other_writes
                back |= other_writes and not writes
    return both, forth, back


def effective(access):
    """Without the entries that repeat what a shorter one says."""

    def above(path):
        longer = [access[path[:end]] for end in range(len(path) - 1, 0, -1) if path[:end] in access]
        return longer[0] if longer else None

    return {path: mode for path, mode in access.items() if mode != above(path)}


class Oracle:
    """What the rules of the design say, word by word."""

    def __init__(self, callbacks):
        self.guarded = [i for i, callback in enumerate(callbacks) if isinstance(callback, Callback)]
        self.before = set()  # (earlier, later)
        self.conflicts, self.settled = set(), set()
        for i in self.guarded:
            for j in range(len(callbacks)):
                if i != j and any(isinstance(callbacks[j], KINDS[k]) for k in callbacks[i].after):
                    self.before.add((j, i))
        declared = set(self.before)
        for _ in callbacks:
            declared |= {(a, d) for a, b in declared for c, d in declared if b == c}
        access = {i: effective(callbacks[i].access) for i in self.guarded}
        for i, j in itertools.combinations(self.guarded, 2):
            both, forth, back = touches(access[i], access[j])
            if not (both or forth or back):
                continue
            if (i, j) in declared or (j, i) in declared:
                self.settled.add((i, j))
                continue
            answer, first = callbacks[i].answers.get(j), i
            if answer is None:
                answer, first = callbacks[j].answers.get(i), j
            if answer == "never" or (answer is None and both):
                self.conflicts.add((i, j))
            elif answer == "none":
                self.settled.add((i, j))
            elif answer is not None:
                other = i + j - first
                self.before.add((first, other) if answer == "self" else (other, first))
            else:
                self.before |= {(i, j)} if forth else set()
                self.before |= {(j, i)} if back else set()
        writes = [path for i in self.guarded for path, mode in access[i].items() if mode == Write()]
        self.missing = {
            (i, path)
            for i in self.guarded
            for path, mode in access[i].items()
            if mode == Read() and path[0] == "cbstate"
            if not any(path[: len(w)] == w[: len(path)] for w in writes)
        }
        orders = itertools.permutations(range(len(callbacks)))
        # Permutations come in lexicographic order: the first valid one takes the earliest given one at each place.
        self.order = next((o for o in orders if all(o.index(a) < o.index(b) for a, b in self.before)), None)

    @property
    def valid(self):
        return not self.conflicts and not self.missing and self.order is not None


@settings(max_examples=400, deadline=None)
@given(st.lists(declarations, max_size=6))
def test_a_valid_order_exists_if_and_only_if_the_stable_one_is_returned(declared):
    callbacks = build(declared)
    oracle = Oracle(callbacks)
    if not oracle.valid:
        with pytest.raises(CallbackGraphError) as caught:
            CallbackGraph(callbacks)
        kinds = [type(problem) for problem in caught.value.problems]
        assert kinds.count(WriteConflictError) == len(oracle.conflicts)
        assert kinds.count(MissingStateError) == len(oracle.missing)
        assert (CyclicDependencyError in kinds) == (oracle.order is None)
        assert type(caught.value) is kinds[0]
    else:
        graph = CallbackGraph(callbacks)
        assert [callbacks.index(callback) for callback in graph.order] == list(oracle.order)
        edges = {(callbacks.index(edge.before), callbacks.index(edge.after)) for edge in graph.edges}
        assert edges == oracle.before


@settings(max_examples=200, deadline=None)
@given(st.lists(declarations, max_size=6))
def test_every_overlap_is_ordered_resolved_or_reported(declared):
    callbacks = build(declared)
    oracle = Oracle(callbacks)
    try:
        graph, report = CallbackGraph(callbacks), ""
    except CallbackGraphError as error:
        graph, report = None, str(error)
    for i, j in itertools.combinations(oracle.guarded, 2):
        if any(touches(effective(callbacks[i].access), effective(callbacks[j].access))):
            ordered = {(i, j), (j, i)} & oracle.before
            if graph is not None:
                assert ordered or (i, j) in oracle.settled
                assert not graph.independent(callbacks[i], callbacks[j])
            elif (i, j) in oracle.conflicts:
                assert f"Random{i}" in report
                assert f"Random{j}" in report


@settings(max_examples=200, deadline=None)
@given(st.lists(declarations, max_size=6))
def test_independent_callbacks_share_no_path_of_edges(declared):
    callbacks = build(declared)
    try:
        graph = CallbackGraph(callbacks)
    except CallbackGraphError:
        return
    connected = {(callbacks.index(edge.before), callbacks.index(edge.after)) for edge in graph.edges}
    for _ in callbacks:
        connected |= {(a, d) for a, b in connected for c, d in connected if b == c}
    for i, j in itertools.permutations(range(len(callbacks)), 2):
        if graph.independent(callbacks[i], callbacks[j]):
            assert (i, j) not in connected
            assert isinstance(callbacks[i], Callback)
            assert isinstance(callbacks[j], Callback)
