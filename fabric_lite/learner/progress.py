"""How far a `Learner` has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Progress:
    """How far `Learner.fit` has come. It is part of a checkpoint, so that another process goes on from there.

    Attributes:
        epochs: How many epochs are complete, each with all of its phases.
        finished: Names of the phases of the next one that are through.
        within: Whether a phase is under way.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin at the beginning."""
        self.epochs = 0
        self.finished: list[str] = []
        self.within = False

    def begin(self) -> None:
        """A phase has begun."""
        self.within = True

    def finish(self, phase: str) -> None:
        """A phase is through.

        Args:
            phase: Its name.
        """
        self.finished.append(phase)
        self.within = False

    def finish_epoch(self) -> None:
        """All phases of an epoch are through."""
        self.epochs += 1
        self.finished.clear()

    def state_dict(self) -> dict[str, Any]:
        """The attributes."""
        return {"epochs": self.epochs, "finished": list(self.finished), "within": self.within}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the attributes.

        Args:
            state: From `state_dict`.
        """
        self.epochs, self.finished, self.within = state["epochs"], list(state["finished"]), state["within"]
