"""Times the sides of a comparison in turns, and makes rows of a table of it."""

from __future__ import annotations

import random
from statistics import median, quantiles
from timeit import Timer
from typing import Literal, NamedTuple


def in_turns(sides: dict[str, Timer], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Time each side for a moment, then the next one, many times over.

    Whatever slows the machine down meanwhile thus slows all of them down, and the times of one round can be compared.
    The order is drawn anew in each round, because a side also pays for what the one before it left in the caches. The
    garbage collector is off while a side runs (`timeit` sees to it).

    Args:
        sides: What to time.
        rounds: How often each has its turn.
        seconds: How long a turn takes, about.

    Returns:
        For each side the seconds per call, round by round.
    """
    numbers = {name: _calls_in(seconds, timer) for name, timer in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    draw = random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            times[name].append(sides[name].timeit(numbers[name]) / numbers[name])
    return times


def _calls_in(seconds: float, timer: Timer) -> int:
    number = 1
    while (taken := min(timer.repeat(3, number))) < seconds:
        number *= 2
    return max(1, round(number * seconds / taken))


class Times(NamedTuple):
    """Seconds per call.

    Attributes:
        rounds: Round by round.
        best: The least.
    """

    rounds: list[float]
    best: float

    @classmethod
    def of(cls, rounds: list[float]) -> Times:
        """The times of one side."""
        return cls(rounds, min(rounds))

    def __str__(self) -> str:
        return f"{show_time(median(self.rounds))} ({show_time(self.best)})"


class Bar(NamedTuple):
    """What has to hold.

    Attributes:
        text: For people.
        limit: The largest value that holds.
        of: Whether it is the ratio that has to stay below, or our own time in seconds.
    """

    text: str
    limit: float
    of: Literal["ratio", "ours"] = "ratio"


class Row(NamedTuple):
    """One comparison with one peer, as the table shows it. Without a bar, ``holds`` is None."""

    figure: str
    ours: str
    peer: str
    theirs: str
    ratio: str
    bar: str
    holds: bool | None


def compare(figure: str, ours: Times, peer: str, theirs: Times, bar: Bar | None = None) -> Row:
    """Compare round by round.

    Args:
        figure: What was measured.
        ours: Our times.
        peer: Who did the same.
        theirs: Its times.
        bar: What has to hold, if anything.

    Returns:
        The row, with the median of the ratios and the two values between which the middle half of them lies.
    """
    middle, shown = ratio(ours.rounds, theirs.rounds)
    if bar is None:
        return Row(figure, str(ours), peer, str(theirs), shown, "", None)
    held = (middle if bar.of == "ratio" else median(ours.rounds)) <= bar.limit
    return Row(figure, str(ours), peer, str(theirs), shown, bar.text, held)


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, str]:
    """The ratio of two measurements, round by round.

    Args:
        ours: Ours.
        theirs: Those of the peer.

    Returns:
        The median, and how the table shows it.
    """
    ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return middle, f"{middle:.3g} ({low:.3g}–{high:.3g})"


def show_time(seconds: float) -> str:
    """Three digits and a unit."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next((known for known in units if abs(seconds) >= known[1]), ("ns", 1e-9))
    value = seconds / size
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"
