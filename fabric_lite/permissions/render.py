"""The callback graph in words and pictures: its explanation, its drawings and the sentences of its errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from fabric_lite.permissions.access import Node, Path, Write, dotted, entries
from fabric_lite.permissions.overlaps import Pair, Touch


class Graph(Protocol):
    """What is rendered."""

    labels: list[str]
    trees: dict[int, Node]
    callbacks: tuple[object, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """The order, as places in the list that was given."""

    @property
    def pairs(self) -> list[Pair]:
        """The edges, as places."""

    def reason(self, before: int, after: int) -> str:
        """Why one runs before the other."""


def labels(callbacks: Iterable[object]) -> list[str]:
    """A name for each callback: its class, from the second of a class on with its number."""
    seen: Counter[str] = Counter()
    names = []
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def writes_reads(writer: str, reader: str, paths: Sequence[tuple[Path, Path]]) -> str:
    """Why a writer runs before a reader."""
    read = list(dict.fromkeys(dotted(path) for _, path in paths))
    written = list(dict.fromkeys(dotted(path) for path, _ in paths))
    verb = "creates" if all(path[0] == "cbstate" for path, _ in paths) else "writes"
    what = f"which {reader} reads" if read == written else f"and {reader} reads {_listed(read)}"
    return f"{writer} {verb} {_listed(written)}, {what}"


def explain(graph: Graph) -> str:
    """The order, with what each callback touches and why it comes after others."""
    if not graph.callbacks:
        return "There are no callbacks."
    reasons: dict[int, list[str]] = {}
    for before, after in graph.pairs:
        reasons.setdefault(after, []).append(f"after {graph.labels[before]}: {graph.reason(before, after)}")
    lines = ["The callbacks run in this order:"]
    for number, index in enumerate(graph.indices, start=1):
        tree = graph.trees.get(index)
        touches = "not guarded" if tree is None else _touches(tree)
        lines.append(f"{number:>3}. {graph.labels[index]} ({touches})")
        lines.extend(f"       {reason}" for reason in reasons.get(index, ()))
    if not graph.pairs and len(graph.callbacks) > 1:
        lines.append("None depends on another one; this is the order in which they were given.")
    return "\n".join(lines)


def to_mermaid(graph: Graph) -> str:
    """A Mermaid flowchart; nodes are numbered in the order given."""

    def quoted(text: str) -> str:
        return '"' + text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;") + '"'

    lines = ["flowchart TD"]
    for index in graph.indices:
        shape = f"[{quoted(graph.labels[index])}]" if index in graph.trees else f"([{quoted(graph.labels[index])}])"
        lines.append(f"    n{index}{shape}")
    lines.extend(f"    n{a} -->|{quoted(graph.reason(a, b))}| n{b}" for a, b in graph.pairs)
    return "\n".join(lines) + "\n"


def to_dot(graph: Graph) -> str:
    """A digraph for Graphviz; plain callbacks are drawn dashed."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = ["digraph callbacks {", "    node [shape=box];"]
    for index in graph.indices:
        style = "" if index in graph.trees else ", style=dashed"
        lines.append(f"    n{index} [label={quoted(graph.labels[index])}{style}];")
    lines.extend(f"    n{a} -> n{b} [label={quoted(graph.reason(a, b))}];" for a, b in graph.pairs)
    return "\n".join([*lines, "}"]) + "\n"


def conflict(names: tuple[str, str], touches: Sequence[Touch]) -> str:
    """The sentence for a conflict that nobody resolves."""
    first_class, later_class = (name.partition("#")[0] for name in names)
    return (
        f"{_touch(names, touches)}, and nothing says which of them runs first; remove one, or add to {first_class}:\n"
        f"    def resolveconflict(self, other):\n"
        f"        return RunFirst(self) if isinstance(other, {later_class}) else NotImplemented\n"
        f"(RunFirst(other) and NoConflict() are other answers)."
    )


def unresolvable(names: tuple[str, str], touches: Sequence[Touch], said_by: str) -> str:
    """The sentence for a conflict that cannot be resolved."""
    return f"{_touch(names, touches)}, and {said_by} says Unresolvable(): they cannot be used together; remove one."


def _touch(names: tuple[str, str], touches: Sequence[Touch]) -> str:
    """Who touches what; if both write something, that."""
    ours, theirs, we_write, they_write = max(touches, key=lambda touch: touch[2] and touch[3])
    verbs = {True: "writes", False: "reads"}
    return f"{names[0]} {verbs[we_write]} {dotted(ours)} and {names[1]} {verbs[they_write]} {dotted(theirs)}"


def stranger(said_by: str, named: object) -> str:
    """The sentence for a `RunFirst` that names neither of the two."""
    return f"{said_by} says RunFirst({named!r}), which is neither of the two; name self or other."


def missing(reader: str, path: Path, creator: str | None) -> str:
    """The sentence for an entry of ``cbstate`` that nobody writes."""
    how = f"add {creator}(), which creates" if creator else "add a callback that declares Write() on"
    return f"{reader} reads {dotted(path)}, which no callback writes; {how} {dotted(path[:2])}, or remove {reader}."


def circle(graph: Graph, places: Sequence[int]) -> str:
    """The sentence for callbacks that wait for each other; the last place is the first one again."""
    # A circle has no beginning of its own: start with the callback given first.
    start = places.index(min(places))
    turned = [*places[start:-1], *places[:start], places[start]]
    text = graph.labels[turned[0]]
    for before, after in pairwise(turned):
        text += f"\n    -> {graph.labels[after]} runs after it: {graph.reason(before, after)}"
    return f"These callbacks wait for each other; take one of the reasons away:\n    {text}"


def _touches(tree: Node) -> str:
    """What a callback declares, in words."""
    declared: Mapping[str, list[str]] = {"reads": [], "writes": []}
    for path, mode in entries(tree):
        declared["writes" if isinstance(mode, Write) else "reads"].append(dotted(path))
    return "; ".join(f"{verb} {_listed(paths)}" for verb, paths in declared.items() if paths) or "touches no state"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
