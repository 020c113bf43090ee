"""Who holds a proxy: what a denial needs to know in order to say who did what, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Literal

from fabric_lite.permissions.access import Node, Path, dotted
from fabric_lite.permissions.errors import ProtectedException


class Holder:
    """One guarded callback, attached to one learner.

    Attributes:
        callback: The callback's class name.
        tree: What the callback declared.
        root: The learner's class name.
        learner: Returns the learner, or None when it is gone.
        hook: The hook that was last begun.
    """

    __slots__ = ("callback", "hook", "learner", "root", "tree")

    def __init__(self, callback: str, tree: Node, root: str, learner: Callable[[], object | None]) -> None:
        self.callback = callback
        self.tree = tree
        self.root = root
        self.learner = learner
        self.hook = "init"

    def dotted(self, path: Path) -> str:
        """The path as one reads it: ``Learner.step.loss``, a key that is no string in brackets."""
        return self.root + "".join(f".{part}" if isinstance(part, str) else f"[{part!r}]" for part in path)

    def denied(self, right: Literal["Read", "Write"], path: Path, did: str | None = None) -> ProtectedException:
        """The exception for an access that was not declared.

        Args:
            right: What was missing.
            path: Where.
            did: What the callback did there, if it is not just reading or writing.
        """
        did = did or ("read it" if right == "Read" else "wrote to it")
        message = f"{right} access to {self.dotted(path)} disallowed. {self.callback} {did} in {self.hook}"
        named = _nameable(path)
        if not named:
            return ProtectedException(f"{message}; the learner as a whole cannot be had, take the values you need.")
        how = "change the entry in" if named in self.tree.declared else "add this line to"
        return ProtectedException(
            f"{message}; to allow it, {how} the mapping that {self.callback}.stateaccess() returns:\n"
            f'    "{dotted(named)}": {right}(),'
        )

    def gone(self) -> ReferenceError:
        """The exception for a proxy that was kept longer than its learner."""
        return ReferenceError(
            f"{self.callback} kept a proxy of a {self.root} that no longer exists; use the one that the hook is given."
        )


def _nameable(path: Path) -> Path:
    """The front part of a path that can be declared: up to the first key that no dotted path can name."""
    return tuple(takewhile(lambda part: isinstance(part, str) and part and "." not in part, path))
