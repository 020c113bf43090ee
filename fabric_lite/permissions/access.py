"""What a callback declares about state: `Read`, `Write`, and the tree that a ``stateaccess`` mapping stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Union

__all__ = ["Read", "StateAccess", "Write"]


@dataclass(frozen=True)
class Read:
    """The callback reads this path."""


@dataclass(frozen=True)
class Write:
    """The callback writes this path; it may read it, too."""


Mode = Read | Write
StateAccess = Mapping[str, Union[Read, Write, "StateAccess"]]
Path = tuple[object, ...]


class Node:
    """One path of a callback's access tree.

    Attributes:
        path: The parts of the path; empty for the root.
        mode: What holds for the path itself and for all below that is not among the children. None: nothing.
        children: The more specific entries.
        leaf: Whether there is a mode and nothing more specific.
        writable: Whether the mode is `Write`.
        declared: Of the root, the paths as they were written down.
    """

    __slots__ = ("children", "declared", "leaf", "mode", "path", "writable")

    def __init__(self, path: Path, mode: Mode | None = None) -> None:
        self.path = path
        self.children: dict[str, Node] = {}
        self.declared: frozenset[Path] = frozenset()
        self.settle(mode)

    def settle(self, mode: Mode | None) -> None:
        """Fix the mode, once the children are there."""
        self.mode = mode
        self.leaf = mode is not None and not self.children
        self.writable = isinstance(mode, Write)


def normalise(declared: object, callback: object) -> Node:
    """The access tree of what a ``stateaccess`` method returned.

    Nested and dotted forms may be mixed. Where a path and one below it are both declared, the more specific entry
    counts for its path.

    Args:
        declared: What ``callback.stateaccess()`` returned.
        callback: Whose it is, for the error messages.

    Raises:
        TypeError: If it is malformed; the message names callback and path.
    """
    name = f"{type(callback).__name__}.stateaccess()"
    if not isinstance(declared, Mapping):
        raise TypeError(
            f'{name} returned {declared!r}, which is no mapping; return one such as {{"step.loss": Read()}},'
            " or {} if it touches no state."
        )
    entries: dict[Path, Mode | None] = {}
    _collect(declared, (), entries, name)
    root = Node(())
    root.declared = frozenset(path for path, mode in entries.items() if mode is not None)
    for path, mode in entries.items():
        node = root
        for depth, part in enumerate(path, start=1):
            node = node.children.setdefault(str(part), Node(path[:depth]))
        node.mode = mode
    _inherit(root, None)
    return root


def _collect(declared: Mapping[object, object], above: Path, entries: dict[Path, Mode | None], name: str) -> None:
    """Flatten nested and dotted forms into ``entries``: path to mode, None for an empty mapping."""
    for key, leaf in declared.items():
        where = f" below {dotted(above)!r}" if above else ""
        if not isinstance(key, str):
            raise TypeError(f'{name}: the key {key!r}{where} is no string; a path is written like "step.loss".')
        path = (*above, *key.split("."))
        written = dotted(path)
        if "" in path:
            raise TypeError(f'{name}: the path {written!r} has an empty part; a path is written like "step.loss".')
        if isinstance(leaf, Mapping):
            entries.setdefault(path, None) if not leaf else _collect(leaf, path, entries, name)
        elif isinstance(leaf, (Read, Write)):
            if entries.get(path) not in (None, leaf):
                raise TypeError(f"{name}: {written!r} is given twice, as {entries[path]!r} and as {leaf!r}; keep one.")
            entries[path] = leaf
        elif leaf is Read or leaf is Write:
            raise TypeError(f"{name}: {written!r} is the class {leaf.__name__}; write {leaf.__name__}() instead.")
        else:
            raise TypeError(f"{name}: {written!r} is {leaf!r}; write Read(), Write() or a mapping of further names.")


def _inherit(node: Node, mode: Mode | None) -> None:
    """Give nodes without an entry the mode from above, and drop those that say nothing new."""
    mode = mode if node.mode is None else node.mode
    for child in node.children.values():
        _inherit(child, mode)
    if mode is not None:
        node.children = {key: child for key, child in node.children.items() if not child.leaf or child.mode != mode}
    node.settle(mode)


def entries(root: Node) -> Iterator[tuple[Path, Mode]]:
    """All declared paths with their modes, each before those below it."""
    todo: list[tuple[Node, Mode | None]] = [(root, None)]
    while todo:
        node, above = todo.pop()
        if node.mode is not None and node.mode != above:
            yield node.path, node.mode
        todo.extend((child, node.mode) for child in reversed(node.children.values()))


def dotted(path: Path) -> str:
    """The path as one writes it."""
    return ".".join(map(str, path))
