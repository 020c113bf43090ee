"""A criterion for stopping, and how criteria combine. The criteria themselves are in `criteria`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


class Criterion:
    """Base of the criteria: one of your own says in `seen` what a loss does to it.

    Attributes:
        kept: Names of the attributes that make up the state.
        message: Why it stops; empty while it does not.
    """

    kept: tuple[str, ...] = ()
    message = ""

    def start(self) -> None:
        """Called when the training begins; more than once does no harm."""

    def update(self, loss: float, training: bool = False) -> bool:
        """Take a loss into account.

        Args:
            loss: The loss.
            training: Whether it was measured on the training data.

        Returns:
            Whether to stop.
        """
        self.start()
        reason = self.seen_training(loss) if training else self.seen(loss)
        self.message = f"{self!r}: {reason}" if reason else ""
        return bool(reason)

    def seen(self, loss: float) -> str:
        """Take a loss on held-out data into account.

        Args:
            loss: The loss.

        Returns:
            Why to stop; an empty string to go on.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` does not say when to stop. Give it a method `seen(self, loss) -> str`."
        )

    def seen_training(self, loss: float) -> str:
        """The same, for a loss on the training data. Most criteria do not care.

        Args:
            loss: The loss.
        """
        return ""

    def __or__(self, other: Criterion) -> Criterion:
        return AnyOf(self, other) if isinstance(other, Criterion) else NotImplemented

    def __and__(self, other: Criterion) -> Criterion:
        return AllOf(self, other) if isinstance(other, Criterion) else NotImplemented

    def state_dict(self) -> dict[str, Any]:
        """What it has seen so far."""
        return {name: copy.copy(getattr(self, name)) for name in self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name in self.kept:
            setattr(self, name, copy.copy(state[name]))

    def _positive(self, name: str, value: float) -> Any:
        """The value of an argument, if it is positive."""
        if not value > 0:
            raise ValueError(f"`{type(self).__name__}({name}={value!r})` would stop at once; pass a positive number.")
        return value


class _Combined(Criterion):
    """Several criteria, each of which is fed with every loss."""

    def __init__(self, *criteria: Criterion) -> None:
        self.criteria: list[Criterion] = []
        for one in criteria:
            self.criteria += one.criteria if isinstance(one, _Combined) and type(one) is type(self) else [one]

    def start(self) -> None:
        """See `Criterion.start`."""
        for criterion in self.criteria:
            criterion.start()

    def update(self, loss: float, training: bool = False) -> bool:
        """See `Criterion.update`."""
        done = [criterion.message for criterion in self.criteria if criterion.update(loss, training)]
        self.message = "; ".join(done) if self._stops(len(done)) else ""
        return self._stops(len(done))

    def _stops(self, number: int) -> bool:
        """Whether so many that would stop are enough."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The states of all."""
        return {"criteria": [criterion.state_dict() for criterion in self.criteria]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        saved = state["criteria"]
        if len(saved) != len(self.criteria):
            raise ValueError(f"The saved state has {len(saved)} criteria, {self!r} has {len(self.criteria)}.")
        for criterion, part in zip(self.criteria, saved, strict=True):
            criterion.load_state_dict(part)


class AnyOf(_Combined):
    """Stops when one of several criteria does: ``a | b``.

    Args:
        criteria: The criteria.
    """

    def _stops(self, number: int) -> bool:
        return number > 0

    def __repr__(self) -> str:
        return " | ".join(f"({c!r})" if isinstance(c, _Combined) else repr(c) for c in self.criteria)


class AllOf(_Combined):
    """Stops when all of several criteria would at the same loss: ``a & b``.

    Args:
        criteria: The criteria.
    """

    def _stops(self, number: int) -> bool:
        return 0 < number == len(self.criteria)

    def __repr__(self) -> str:
        return " & ".join(f"({c!r})" if isinstance(c, _Combined) else repr(c) for c in self.criteria)


class Warmup(Criterion):
    """Keeps the first losses from a criterion.

    Losses on the training data are kept from it just as long, but are not counted.

    Args:
        criterion: The criterion.
        n: How many losses.
    """

    def __init__(self, criterion: Criterion, n: int = 1) -> None:
        self.criterion = criterion
        self.n = self._positive("n", n)
        self.count = 0

    def start(self) -> None:
        """See `Criterion.start`."""
        self.criterion.start()

    def update(self, loss: float, training: bool = False) -> bool:
        """See `Criterion.update`."""
        warm = self.count >= self.n
        self.count += not training
        done = warm and self.criterion.update(loss, training)
        self.message = self.criterion.message if done else ""
        return done

    def state_dict(self) -> dict[str, Any]:
        """How many it has kept, and the state of the criterion."""
        return {"count": self.count, "criterion": self.criterion.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.count = state["count"]
        self.criterion.load_state_dict(state["criterion"])

    def __repr__(self) -> str:
        return f"Warmup({self.criterion!r}, {self.n})"
