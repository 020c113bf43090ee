"""The dependencies between callbacks, checked and put in order before anything runs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from fabric_lite.permissions import render
from fabric_lite.permissions.access import Node, Path, normalise
from fabric_lite.permissions.callback import Callback, NoConflict, Resolution, RunFirst
from fabric_lite.permissions.conditions import unwrap
from fabric_lite.permissions.errors import (
    CallbackGraphError,
    CyclicDependencyError,
    MissingStateError,
    WriteConflictError,
    combined,
)
from fabric_lite.permissions.overlaps import Declarations, Pair, Touch

__all__ = ["CallbackGraph", "Edge"]


class Edge(NamedTuple):
    """One callback runs before another one, and why."""

    before: object
    after: object
    reason: str


class CallbackGraph:
    """The callbacks, and which of them must run before which.

    Every callback is a node. Edges come from what guarded callbacks declare: ``runafter``, the state that they touch,
    and how they resolve conflicts; a plain callback can only be named in a ``runafter``. The order is as given, but for
    what the edges demand.

    Args:
        callbacks: The callbacks, in the order given.
        creators: Entry of ``cbstate`` to the name of the callback that creates it, for the error that misses it.
        trees: The access trees of callbacks that have been asked already, by ``id``; the others are asked.

    Raises:
        CallbackGraphError: If they cannot work together. It reports all problems at once.
        TypeError: If a ``stateaccess``, ``runafter`` or ``resolveconflict`` is malformed.
    """

    def __init__(
        self,
        callbacks: Iterable[object],
        creators: Mapping[str, str] | None = None,
        trees: Mapping[int, Node] | None = None,
    ) -> None:
        self.callbacks = tuple(callbacks)
        self.creators = dict(creators or {})
        self._inner = [unwrap(callback) for callback in self.callbacks]
        self.labels = render.labels(self._inner)
        known = trees or {}
        self.trees: dict[int, Node] = {}
        for index, inner in enumerate(self._inner):
            if isinstance(inner, Callback):
                self.trees[index] = known.get(id(inner)) or normalise(inner.stateaccess(), inner)
        self._reasons: dict[Pair, str | list[tuple[Path, Path]]] = {}
        self._no_conflict: list[Pair] = []
        declarations = Declarations(self.trees)
        self._declared_edges()
        problems = self._settle(declarations.overlaps())
        problems += self._missing(declarations)
        self._indices = self._sorted(problems)
        if problems:
            raise combined(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return CallbackGraph, (self.callbacks, self.creators)

    @cached_property
    def order(self) -> tuple[Any, ...]:
        """The callbacks in the order in which they run."""
        return tuple(self.callbacks[index] for index in self._indices)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Which callback runs before which, each with the reason."""
        return tuple(Edge(self.callbacks[a], self.callbacks[b], self.reason(a, b)) for a, b in sorted(self._reasons))

    def independent(self, one: object, other: object) -> bool:
        """Whether two callbacks may run at the same time, for an executor.

        They may if both are guarded and no path of edges connects them. Two that said `NoConflict` about state that
        both touch may run in any order, but not at once.
        """
        a, b = self._places.get(id(one)), self._places.get(id(other))
        if a is None or b is None or self._inner[a] is self._inner[b]:
            return False
        return not (self._behind[a] >> b & 1 or self._behind[b] >> a & 1)

    def explain(self) -> str:
        """The order and the reason for every edge, as text for a person."""
        return render.explain(self)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        return render.to_mermaid(self)

    def to_dot(self) -> str:
        """The graph in Graphviz's language."""
        return render.to_dot(self)

    @property
    def indices(self) -> tuple[int, ...]:
        """The order, as places in the list that was given."""
        return self._indices

    @property
    def pairs(self) -> list[Pair]:
        """The edges, as places in the list that was given."""
        return sorted(self._reasons)

    def reason(self, before: int, after: int) -> str:
        """Why one callback, given by its place, runs before another one."""
        found = self._reasons[before, after]
        if isinstance(found, str):
            return found
        return render.writes_reads(self.labels[before], self.labels[after], found)

    @cached_property
    def _places(self) -> dict[int, int]:
        """The place of each guarded callback, by ``id``."""
        return {id(self.callbacks[index]): index for index in self.trees}

    @cached_property
    def _behind(self) -> list[int]:
        """For each callback the set of those that must be done before it, as bits."""
        place = {index: rank for rank, index in enumerate(self._indices)}
        before: list[list[int]] = [[] for _ in self.callbacks]
        for a, b in (*self._reasons, *self._no_conflict):
            first, second = (a, b) if place[a] < place[b] else (b, a)
            before[second].append(first)
        behind = [0] * len(self.callbacks)
        for index in self._indices:
            for earlier in before[index]:
                behind[index] |= behind[earlier] | 1 << earlier
        return behind

    def _declared_edges(self) -> None:
        """An edge for each ``runafter``."""
        by_class: dict[type, list[int]] = {}
        for index, inner in enumerate(self._inner):
            by_class.setdefault(type(inner), []).append(index)
        named: dict[type, list[int]] = {}  # by what a runafter names: the callbacks that this means
        for index in self.trees:
            for kind in _runafter(self._inner[index]):
                if kind not in named:
                    named[kind] = [i for cls, members in by_class.items() if issubclass(cls, kind) for i in members]
                for earlier in named[kind]:
                    if earlier != index:
                        self._reasons[earlier, index] = f"{self.labels[index]}.runafter() names {kind.__name__}"

    def _settle(self, overlaps: dict[Pair, list[Touch]]) -> list[CallbackGraphError]:
        """An edge, or an exemption, for each two callbacks that touch the same state; those without are problems."""
        problems: list[CallbackGraphError] = []
        declared = _Reach(len(self.callbacks), self._reasons)
        for pair in sorted(overlaps):
            if declared.connects(*pair):
                continue  # A declared order settles the matter, and nobody is asked.
            touches = overlaps[pair]
            answer, asked = self._resolution(*pair)
            if isinstance(answer, NoConflict):
                self._no_conflict.append(pair)
            elif isinstance(answer, RunFirst):
                chosen = [index for index in pair if self._inner[index] is unwrap(answer.callback)]
                if chosen:
                    edge = pair if chosen[0] == pair[0] else (pair[1], pair[0])
                    self._reasons[edge] = f"{self._asking(asked)} says RunFirst({self.labels[chosen[0]]})"
                else:
                    problems.append(WriteConflictError(render.stranger(self._asking(asked), answer.callback)))
            elif answer is not None:
                names = self.labels[pair[0]], self.labels[pair[1]]
                problems.append(WriteConflictError(render.unresolvable(names, touches, self._asking(asked))))
            elif any(first_writes and later_writes for _, _, first_writes, later_writes in touches):
                names = self.labels[pair[0]], self.labels[pair[1]]
                problems.append(WriteConflictError(render.conflict(names, touches)))
            else:
                self._writer_first(pair, touches)
        return problems

    def _writer_first(self, pair: Pair, touches: list[Touch]) -> None:
        """The edge of two callbacks of which one reads what the other writes; two edges if it is so both ways."""
        first, later = pair
        for first_path, later_path, first_writes, _ in touches:
            edge = (first, later) if first_writes else (later, first)
            paths = (first_path, later_path) if first_writes else (later_path, first_path)
            known = self._reasons.setdefault(edge, [])
            if isinstance(known, list):
                known.append(paths)

    def _resolution(self, first: int, later: int) -> tuple[Resolution | None, Pair]:
        """What the first that has an answer says, and who was asked about whom; None if neither has one."""
        for asked in ((first, later), (later, first)):
            answer = self._inner[asked[0]].resolveconflict(self._inner[asked[1]])
            if isinstance(answer, Resolution):
                return answer, asked
            if answer is not NotImplemented:
                raise TypeError(
                    f"{self._asking(asked)} returned {answer!r}; return RunFirst(callback), NoConflict(),"
                    " Unresolvable() or NotImplemented."
                )
        return None, (first, later)

    def _asking(self, asked: Pair) -> str:
        return f"{self.labels[asked[0]]}.resolveconflict({self.labels[asked[1]]})"

    def _missing(self, declarations: Declarations) -> list[CallbackGraphError]:
        """A problem for each read of ``cbstate`` that no callback writes."""
        return [
            MissingStateError(render.missing(self.labels[reader], path, self.creators.get(str(path[1]))))
            for path, reader in declarations.unwritten("cbstate")
        ]

    def _sorted(self, problems: list[CallbackGraphError]) -> tuple[int, ...]:
        """Kahn's algorithm, of the ready ones always the one given first. Circles are added to the problems."""
        left = dict.fromkeys(range(len(self.callbacks)))
        while True:
            sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(left, ()))
            for before, after in self._reasons:
                if before in left and after in left:
                    sorter.add(after, before)
            try:
                sorter.prepare()
                break
            except CycleError as error:
                circle: list[int] = error.args[1]
                problems.append(CyclicDependencyError(render.circle(self, circle)))
                # Go on without it: there may be others.
                for index in circle:
                    left.pop(index, None)
        order: list[int] = []
        ready = list(sorter.get_ready())
        heapq.heapify(ready)
        while ready:
            index = heapq.heappop(ready)
            order.append(index)
            sorter.done(index)
            for follower in sorter.get_ready():
                heapq.heappush(ready, follower)
        return tuple(order)


class _Reach:
    """Which callbacks a path of edges connects: sets as bits, found for a callback when it is asked for."""

    def __init__(self, size: int, edges: Iterable[Pair]) -> None:
        self._next = [0] * size
        for before, after in edges:
            self._next[before] |= 1 << after
        self._found: dict[int, int] = {}

    def connects(self, one: int, other: int) -> bool:
        return bool(self._from(one) >> other & 1 or self._from(other) >> one & 1)

    def _from(self, start: int) -> int:
        found = self._found.get(start)
        if found is None:
            found = todo = self._next[start]
            while todo:
                index = todo.bit_length() - 1
                todo ^= 1 << index
                new = self._found.get(index, self._next[index]) & ~found
                found |= new
                todo |= new
            self._found[start] = found
        return found


def _runafter(callback: Any) -> tuple[type, ...]:
    types = callback.runafter()
    if not isinstance(types, (tuple, list)) or not all(isinstance(kind, type) for kind in types):
        raise TypeError(
            f"{type(callback).__name__}.runafter() returned {types!r}; return a tuple of types, such as (Recorder,)."
        )
    return tuple(types)
