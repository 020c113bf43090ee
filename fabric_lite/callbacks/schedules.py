"""Schedules: how a hyperparameter changes with time, made of pieces.

A schedule is called with a time, usually in epochs, and returns a value. Each has a length. Before its beginning it has
the value of the beginning, after its end that of the end.

    warmup = Linear(0.0, 0.1).over(5)           # from 0 to 0.1 in 5 epochs
    schedule = warmup.then(Cosine(0.1, 0.0).over(45))
    Scheduler({LearningRate: schedule})

Any other function from a time to a value serves as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Schedule:
    """Base of the pieces: one of your own says in `at` how it goes.

    Args:
        length: How long it lasts, usually in epochs.
    """

    length: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.length < math.inf:
            raise ValueError(f"{self!r} lasts {self.length!r}; the length of a schedule is positive and finite.")

    def at(self, fraction: float) -> float:
        """The value when a part of it is over.

        Args:
            fraction: Which part, from 0 to 1.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` does not say how it goes. Give it a method `at(self, fraction) -> float`."
        )

    def __call__(self, time: float) -> float:
        """The value at a time.

        Args:
            time: Since its beginning.
        """
        return self.at(min(max(time / self.length, 0.0), 1.0))

    def over(self, length: float) -> Schedule:
        """The same course, stretched or compressed to another length.

        Args:
            length: The length.
        """
        return replace(self, length=length)

    def then(self, other: Schedule) -> Schedule:
        """This one, followed by another one.

        Args:
            other: The other one.
        """
        return sequence(self, other)


@dataclass(frozen=True)
class Constant(Schedule):
    """One value.

    Args:
        value: The value.
    """

    value: float

    def at(self, fraction: float) -> float:
        """See `Schedule.at`."""
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line.

    Args:
        start: Value at the beginning.
        end: Value at the end.
    """

    start: float
    end: float

    def at(self, fraction: float) -> float:
        """See `Schedule.at`."""
        return self.start * (1 - fraction) + self.end * fraction


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a period of a cosine: flat at both ends.

    Args:
        start: Value at the beginning.
        end: Value at the end.
    """

    start: float
    end: float

    def at(self, fraction: float) -> float:
        """See `Schedule.at`."""
        weight = (1 + math.cos(math.pi * fraction)) / 2
        return self.start * weight + self.end * (1 - weight)


@dataclass(frozen=True)
class Exponential(Schedule):
    """The same factor in the same time: ``start * (end / start) ** fraction``.

    Args:
        start: Value at the beginning.
        end: Value at the end, of the same sign.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.start * self.end > 0:
            raise ValueError(f"{self!r}: no factor leads there. Both values must be positive, or both negative.")

    def at(self, fraction: float) -> float:
        """See `Schedule.at`."""
        return self.start * math.pow(self.end / self.start, fraction)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """What is left of the way falls with a power of the time that is left: ``(1 - fraction) ** power`` of it.

    Args:
        start: Value at the beginning.
        end: Value at the end.
        power: The power.
    """

    start: float
    end: float
    power: float = 2.0

    def at(self, fraction: float) -> float:
        """See `Schedule.at`."""
        return self.end + (self.start - self.end) * math.pow(1 - fraction, self.power)


@dataclass(frozen=True)
class Chain(Schedule):
    """Schedules one after the other; see `sequence`. At a joint, the later one counts.

    Args:
        pieces: The schedules.
    """

    pieces: tuple[Schedule, ...]

    def at(self, fraction: float) -> float:
        """See `Schedule.at`."""
        time = fraction * math.fsum(piece.length for piece in self.pieces)
        for piece in self.pieces[:-1]:
            if time < piece.length:
                return piece(time)
            time -= piece.length
        return self.pieces[-1](time) if fraction < 1 else self.pieces[-1].at(1.0)


def sequence(*pieces: Schedule | tuple[Schedule, float]) -> Schedule:
    """One schedule of several, each lasting its length.

    Args:
        *pieces: Schedules, or pairs of one and how long it lasts here.

    Returns:
        A schedule as long as all together.

    Raises:
        ValueError: If there is none.
    """
    schedules = tuple(piece[0].over(piece[1]) if isinstance(piece, tuple) else piece for piece in pieces)
    if not schedules:
        raise ValueError("`sequence()` got no schedules; pass at least one, or pairs `(schedule, length)`.")
    return Chain(schedules, length=math.fsum(piece.length for piece in schedules))


def onecycle(
    nepochs: float,
    max_val: float,
    *,
    start_val: float | None = None,
    end_val: float | None = None,
    pct_start: float = 0.25,
    div: float = 25.0,
    divfinal: float = 1e5,
) -> Schedule:
    """Up to a value along a cosine, and further down along another one.

    One cycle of L. N. Smith, "A disciplined approach to neural network hyper-parameters", arXiv:1803.09820, in the form
    that fastai and FluxTraining.jl give it.

    Args:
        nepochs: How long it lasts.
        max_val: The highest value.
        start_val: The value at the beginning; by default ``max_val / div``.
        end_val: The value at the end; by default ``max_val / divfinal``.
        pct_start: The part of the time, between 0 and 1, in which it rises.
        div: See `start_val`.
        divfinal: See `end_val`.

    Returns:
        The schedule.

    Raises:
        ValueError: If one of the two parts would last no time.
    """
    if not 0 < pct_start < 1:
        raise ValueError(
            f"`onecycle(pct_start={pct_start!r})`: it is the part of the time that rises, between 0 and 1."
        )
    start = max_val / div if start_val is None else start_val
    end = max_val / divfinal if end_val is None else end_val
    return sequence(
        (Cosine(start, max_val), nepochs * pct_start),
        (Cosine(max_val, end), nepochs * (1 - pct_start)),
    )
