"""Which callbacks touch the same state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fabric_lite.permissions.access import Node, Path, Write, entries

Pair = tuple[int, int]


#: Two overlapping paths: that of the callback given first, that of the one given later, and whether each writes it.
Touch = tuple[Path, Path, bool, bool]


#: A path, the callbacks that declared it, and whether as `Write`.
_Declared = tuple[Path, Sequence[int], bool]


class Declarations:
    """The declared paths of all guarded callbacks, indexed by path.

    Two paths overlap if one is a prefix of the other, so each path is looked up with its own prefixes only: the work
    grows with the number of declared paths and overlaps, not with the number of pairs of callbacks.

    Args:
        trees: The access tree of each guarded callback, by its place in the list.
    """

    def __init__(self, trees: Mapping[int, Node]) -> None:
        self.reads: dict[Path, list[int]] = {}
        self.writes: dict[Path, list[int]] = {}
        for index, tree in trees.items():
            for path, mode in entries(tree):
                (self.writes if isinstance(mode, Write) else self.reads).setdefault(path, []).append(index)

    def overlaps(self) -> dict[Pair, list[Touch]]:
        """Where each two callbacks touch the same state and at least one of them writes."""
        found: dict[Pair, list[Touch]] = {}
        for path, writers in self.writes.items():
            for end in range(1, len(path)):
                _note(found, (path, writers, True), (path[:end], self.reads.get(path[:end], ()), False))
                _note(found, (path, writers, True), (path[:end], self.writes.get(path[:end], ()), True))
            _note(found, (path, writers, True), (path, self.reads.get(path, ()), False))
            for place, writer in enumerate(writers):
                _note(found, (path, (writer,), True), (path, writers[place + 1 :], True))
        for path, readers in self.reads.items():
            for end in range(1, len(path)):
                _note(found, (path, readers, False), (path[:end], self.writes.get(path[:end], ()), True))
        return found

    def unwritten(self, root: str) -> list[tuple[Path, int]]:
        """The paths below ``root`` that are read though nobody writes there, each with a reader."""
        written = {path[:end] for path in self.writes for end in range(1, len(path) + 1)}
        return [
            (path, reader)
            for path, readers in self.reads.items()
            if path[0] == root and len(path) > 1 and path not in written
            if not any(path[:end] in self.writes for end in range(1, len(path)))
            for reader in readers
        ]


def _note(found: dict[Pair, list[Touch]], ours: _Declared, theirs: _Declared) -> None:
    """Note that those who declared one path meet those who declared an overlapping one."""
    path, members, writes = ours
    other_path, others, other_writes = theirs
    for one in members:
        for other in others:
            if one < other:
                found.setdefault((one, other), []).append((path, other_path, writes, other_writes))
            elif other < one:
                found.setdefault((other, one), []).append((other_path, path, other_writes, writes))
