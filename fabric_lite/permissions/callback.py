"""The base class of guarded callbacks, and the answers to a conflict between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabric_lite.permissions.access import StateAccess

__all__ = ["Callback", "NoConflict", "Resolution", "RunFirst", "Unresolvable"]


class Resolution:
    """What `Callback.resolveconflict` answers."""


@dataclass(frozen=True)
class RunFirst(Resolution):
    """The given one of the two callbacks runs first."""

    callback: object


@dataclass(frozen=True)
class NoConflict(Resolution):
    """Any order of the two is fine."""


@dataclass(frozen=True)
class Unresolvable(Resolution):
    """The two cannot be used together."""


class Callback:
    """A guarded callback: it declares what state it touches, and is held to it.

    Hooks are methods of any name; those that take a ``learner`` get it as a `Protected` proxy, which allows what
    `stateaccess` declares and nothing else. The declarations of all callbacks are checked against each other before
    anything runs, and put them in a valid order.
    """

    needs_guard = True  # what the hook bus looks for: it does not import this package for plain callbacks

    def stateaccess(self) -> StateAccess:
        """The state that this callback touches, as in ``{"step": {"loss": Read()}}`` or ``{"step.loss": Read()}``.

        Asked once, when the callback is added.
        """
        return {}

    def runafter(self) -> tuple[type, ...]:
        """The types whose instances run before this callback; subclasses count."""
        return ()

    def resolveconflict(self, other: object) -> Resolution:
        """How to settle that this callback and another one touch the same state and at least one writes it.

        Args:
            other: The other callback.

        Returns:
            `RunFirst` of one of the two, `NoConflict` or `Unresolvable`. NotImplemented leaves it to the other one.
        """
        return NotImplemented  # type: ignore[no-any-return]

    def init(self, learner: Any) -> None:
        """Called once when the callback meets a learner. It must be idempotent."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
