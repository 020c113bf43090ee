"""When to stop: criteria that watch a sequence of losses, and combine.

Those of EarlyStopping.jl (https://github.com/JuliaAI/EarlyStopping.jl), by its documented definitions; `GL`, `PQ` and
`Patience` (there called GL, PQ and UP) are those of L. Prechelt, "Early Stopping - But When?", in: Neural Networks:
Tricks of the Trade, LNCS 1524, Springer 1998.

A criterion is fed with ``update(loss)`` for each loss on held-out data and ``update(loss, training=True)`` for each on
the training data; it answers whether to stop, and `Criterion.message` then says why. ``a | b`` stops when one of them
does, ``a & b`` when both do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from fabric_lite.callbacks.criterion import AllOf, AnyOf, Criterion, Warmup

__all__ = [
    "GL",
    "PQ",
    "AllOf",
    "AnyOf",
    "Criterion",
    "InvalidValue",
    "Never",
    "NumberLimit",
    "NumberSinceBest",
    "Patience",
    "Threshold",
    "TimeLimit",
    "Warmup",
]


class Never(Criterion):
    """Does not stop."""

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        return ""

    def __repr__(self) -> str:
        return "Never()"


class InvalidValue(Criterion):
    """Stops when a loss, one on the training data too, is NaN or infinite."""

    kept = ("invalid",)

    def __init__(self) -> None:
        self.invalid: float | None = None

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        if self.invalid is None and not math.isfinite(loss):
            self.invalid = loss
        return "" if self.invalid is None else f"there was a value of {self.invalid}"

    def seen_training(self, loss: float) -> str:
        """See `Criterion.seen_training`."""
        return self.seen(loss)

    def __repr__(self) -> str:
        return "InvalidValue()"


class Threshold(Criterion):
    """Stops when the loss is below a value.

    Args:
        value: The value.
    """

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        return f"{loss:.6g} is below {self.value:.6g}" if loss < self.value else ""

    def __repr__(self) -> str:
        return f"Threshold({self.value!r})"


class NumberLimit(Criterion):
    """Stops after so many losses, those on the training data not counted.

    Args:
        n: How many.
    """

    kept = ("count",)

    def __init__(self, n: int = 100) -> None:
        self.n = self._positive("n", n)
        self.count = 0

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        self.count += 1
        return f"{self.count} values were seen" if self.count >= self.n else ""

    def __repr__(self) -> str:
        return f"NumberLimit({self.n})"


class TimeLimit(Criterion):
    """Stops when so much time has passed since the start, or else since the first loss.

    Time in which the training was interrupted between `state_dict` and `load_state_dict` does not count.

    Args:
        seconds: How much.
        clock: Returns the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = self._positive("seconds", seconds)
        self.clock = clock
        self._began: float | None = None

    def start(self) -> None:
        """Let the time run, if it does not."""
        if self._began is None:
            self._began = self.clock()

    @property
    def elapsed(self) -> float | None:
        """Seconds since the start; None before it."""
        return None if self._began is None else self.clock() - self._began

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        elapsed = self.elapsed or 0.0
        return f"{elapsed:.1f} seconds have passed" if elapsed > self.seconds else ""

    def seen_training(self, loss: float) -> str:
        """See `Criterion.seen_training`."""
        return self.seen(loss)

    def state_dict(self) -> dict[str, Any]:
        """How much time has passed."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        elapsed = state["elapsed"]
        self._began = None if elapsed is None else self.clock() - elapsed

    def __repr__(self) -> str:
        return f"TimeLimit({self.seconds!r})"


class Patience(Criterion):
    """Stops after so many increases of the loss in a row, each compared with the loss before it (Prechelt's UP).

    For "so many epochs without a new best value", take `NumberSinceBest`.

    Args:
        n: How many.
    """

    kept = ("last", "increases")

    def __init__(self, n: int = 5) -> None:
        self.n = self._positive("n", n)
        self.last: float | None = None
        self.increases = 0

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        self.increases = self.increases + 1 if self.last is not None and loss > self.last else 0
        self.last = loss
        return f"{self.increases} increases in a row, up to {loss:.6g}" if self.increases >= self.n else ""

    def __repr__(self) -> str:
        return f"Patience({self.n})"


class NumberSinceBest(Criterion):
    """Stops when the lowest loss is so many losses ago.

    Args:
        n: How many.
    """

    kept = ("best", "since")

    def __init__(self, n: int = 6) -> None:
        self.n = self._positive("n", n)
        self.best: float | None = None
        self.since = 0

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        lowest = _lower(self.best, loss)
        self.since = 0 if self.best is None or lowest < self.best else self.since + 1
        self.best = lowest
        return f"none of the last {self.since} values was below {self.best:.6g}" if self.since >= self.n else ""

    def __repr__(self) -> str:
        return f"NumberSinceBest({self.n})"


class GL(Criterion):
    """Stops when the generalisation loss exceeds a threshold (Prechelt's GL).

    It is the loss's excess over the lowest one so far, E_opt, in percent: 100 (E - E_opt) / abs(E_opt).

    Args:
        alpha: The threshold, in percent.
    """

    kept = ("best",)

    def __init__(self, alpha: float = 2.0) -> None:
        self.alpha = self._positive("alpha", alpha)
        self.best: float | None = None

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        self.best = _lower(self.best, loss)
        excess = 100 * _excess(loss, self.best)
        return f"{loss:.6g} is {excess:.4g} % above the best, {self.best:.6g}" if excess > self.alpha else ""

    def __repr__(self) -> str:
        return f"GL({self.alpha!r})"


class PQ(Criterion):
    """Stops when generalisation loss per training progress exceeds a threshold (Prechelt's PQ).

    The progress is how much the mean of the last k losses on the training data exceeds the lowest of them, per mille:
    1000 (mean - min) / abs(min). Without progress it stops, too. It waits until it has seen k losses on the training
    data; all k of them count, however many there were between two losses on held-out data.

    Args:
        alpha: The threshold.
        k: How many losses on the training data.
        tol: A progress up to this counts as none.
    """

    kept = ("best", "losses")

    def __init__(self, alpha: float = 0.75, k: int = 5, tol: float = 2.0**-52) -> None:
        self.alpha, self.tol = self._positive("alpha", alpha), self._positive("tol", tol)
        if k < 2:
            raise ValueError(f"`PQ(k={k!r})` cannot see progress: it takes at least 2 losses on the training data.")
        self.k = k
        self.best: float | None = None
        self.losses: list[float] = []

    def seen(self, loss: float) -> str:
        """See `Criterion.seen`."""
        self.best = _lower(self.best, loss)
        if len(self.losses) < self.k:
            return ""
        progress = 1000 * _excess(sum(self.losses) / self.k, min(self.losses))
        if not progress > self.tol:
            return f"no progress in the last {self.k} losses on the training data"
        quotient = 100 * _excess(loss, self.best) / progress
        return f"generalisation loss per training progress is {quotient:.4g}" if quotient > self.alpha else ""

    def seen_training(self, loss: float) -> str:
        """See `Criterion.seen_training`."""
        self.losses = [*self.losses, loss][-self.k :]
        return ""

    def __repr__(self) -> str:
        return f"PQ({self.alpha!r}, k={self.k})"


def _lower(best: float | None, loss: float) -> float:
    """The lower one; a NaN is not lower than anything, nor anything higher than it."""
    return loss if best is None or math.isnan(best) or loss < best else best


def _excess(value: float, least: float) -> float:
    """By how much a value exceeds the least one, in terms of that."""
    if least == 0:
        return math.inf if value > 0 else 0.0
    return (value - least) / abs(least)
