"""What `Metrics` measures: functions of predictions and targets, the loss, and objects that accumulate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fabric_lite.events import AbstractTrainingPhase, Phase
from fabric_lite.utilities.apply_func import move_data_to_device

Points = Sequence[tuple[float, float]]
_ACCUMULATES = ("update", "compute", "reset")


class Metric:
    """One thing to measure.

    Args:
        fn: A function of predictions and targets that returns one number, or an object with the methods ``update``,
            ``compute`` and ``reset``, such as those of torchmetrics: its ``compute`` gives the value of the epoch.
        name: Under which the values are found; by default that of the function, or the class.
        phase: The class of the phases to measure in, or a tuple of them; by default all.
        device: Where to move predictions and targets before; by default they stay where they are.
        statistic: Computes the value of an epoch from all pairs ``(value, weight)`` of its steps, on several processes
            from those of all; by default it is the weighted mean.

    Raises:
        TypeError: If it cannot be measured with.
    """

    def __init__(
        self,
        fn: Any,
        name: str | None = None,
        phase: type[Phase] | tuple[type[Phase], ...] | None = None,
        device: Any = None,
        statistic: Callable[[list[tuple[float, float]]], float] | None = None,
    ) -> None:
        self.accumulates = all(callable(getattr(fn, method, None)) for method in _ACCUMULATES)
        if isinstance(fn, type):
            raise TypeError(f"{fn.__name__} is a class; pass an object of it, `{fn.__name__}(...)`.")
        if not self.accumulates and not callable(fn):
            raise TypeError(
                f"{fn!r} is no metric. Pass a function of predictions and targets, or an object with the methods"
                " `update`, `compute` and `reset`, such as those of the package torchmetrics:"
                ' pip install "torch-fabric-lite[metrics]".'
            )
        if self.accumulates and statistic is not None:
            raise TypeError(
                f"Metric({type(fn).__name__}(...), statistic=...): its `compute` is the statistic. Pass none."
            )
        self.fn = fn
        self.name = name or _name_of(fn)
        self.phase = phase
        self.device = device
        self.statistic = statistic

    def applies(self, phase: Any) -> bool:
        """Whether to measure in a phase.

        Args:
            phase: The phase.
        """
        return self.phase is None or isinstance(phase, self.phase)

    def for_one_phase(self) -> Metric:
        """A metric that shares no state with this one: each phase has its own."""
        own = copy.copy(self)
        if self.accumulates:
            own.fn = copy.deepcopy(self.fn)
        return own

    def begin(self) -> None:
        """An epoch begins."""
        if self.accumulates:
            self.fn.reset()

    def measure(self, step: Any, phase: Any) -> Any:
        """The value of a step; None if it has none.

        Args:
            step: The state of the step.
            phase: The phase, for the error.

        Raises:
            RuntimeError: If there are no predictions or targets.
        """
        preds, ys = getattr(step, "preds", None), getattr(step, "ys", None)
        if preds is None or ys is None:
            raise RuntimeError(
                f"The metric {self.name!r} needs `step.preds` and `step.ys`, and a step of {phase!r} ended without"
                f" {'`step.preds`' if preds is None else '`step.ys`'}. Set it in the step, or measure in other phases"
                f" only: `Metric({self.name}, phase=ValidationPhase)`."
            )
        if self.device is not None:
            preds, ys = move_data_to_device(preds, self.device), move_data_to_device(ys, self.device)
        if not self.accumulates:
            return self.fn(preds, ys)
        if isinstance(preds, Tensor) and callable(getattr(self.fn, "to", None)):
            self.fn = self.fn.to(preds.device)
        if callable(self.fn):  # of torchmetrics: updates, and returns the value of this batch
            return self.fn(preds, ys)
        self.fn.update(preds, ys)
        return None

    def total(self, points: Points) -> tuple[float, float]:
        """What processes add up for the value of an epoch: a weighted sum, and the weight.

        Args:
            points: Values and weights of this process.
        """
        return sum(value * weight for value, weight in points), sum(weight for _, weight in points)

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """


class Loss(Metric):
    """The loss of each step. A step without one is left out."""

    def __init__(self) -> None:
        super().__init__(_unused, "Loss")

    def measure(self, step: Any, phase: Any) -> Any:  # noqa: D102
        return getattr(step, "loss", None)


class SmoothLoss(Metric):
    """The training loss, exponentially smoothed: its value for an epoch is the one at the end.

    With the losses l₁ … lₜ, it is (1-β) Σ βᵗ⁻ⁱ lᵢ / (1-βᵗ): the weights add up to one from the first step on.

    Args:
        beta: How slowly it moves, from 0 (not smoothed) to below 1.

    Raises:
        ValueError: If it is not in this range.
    """

    def __init__(self, beta: float = 0.98) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"SmoothLoss(beta={beta!r}): beta is from 0 to below 1, as in SmoothLoss(beta=0.98).")
        super().__init__(_unused, "SmoothLoss", phase=AbstractTrainingPhase)
        self.beta = beta
        self._average: Any = 0.0
        self._count = 0

    def measure(self, step: Any, phase: Any) -> Any:  # noqa: D102
        loss = getattr(step, "loss", None)
        if loss is None:
            return None
        if isinstance(loss, Tensor):
            loss = float(loss.detach()) if loss.device.type == "cpu" else loss.detach()
        self._count += 1
        self._average = self.beta * self._average + (1 - self.beta) * loss
        return self._average / (1 - self.beta**self._count)

    def total(self, points: Points) -> tuple[float, float]:  # noqa: D102
        return (points[-1][0], 1.0) if points else (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"average": float(self._average), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._average, self._count = state["average"], state["count"]


def as_number(value: Any, name: str) -> Any:
    """A value that is one number, on whatever device.

    Args:
        value: What a metric returned.
        name: Its name.

    Raises:
        TypeError: If it is not one number.
    """
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value.detach()
        raise TypeError(
            f"The metric {name!r} gave a tensor of shape {tuple(value.shape)}. It has to be one number: reduce it, for"
            " example with `.mean()`."
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"The metric {name!r} gave {type(value).__name__}. It has to be one number, or a tensor of one element."
        ) from error


def samples(step: Any) -> int:
    """How many samples a step has: the first dimension of targets, predictions or inputs; 1 if none has any.

    Args:
        step: The state of the step.
    """
    found = (_length(getattr(step, name, None)) for name in ("ys", "preds", "xs"))
    return next((length for length in found if length is not None), 1)


def _length(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() else None
    if isinstance(value, Mapping):
        return next((n for n in map(_length, value.values()) if n is not None), None)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if value and isinstance(value[0], Mapping):  # a mapping for each sample
            return len(value)
        return next((n for n in map(_length, value) if n is not None), None)
    return None


def _name_of(fn: Any) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def _unused(preds: Any, ys: Any) -> float:
    """In the place of a function, for what is read from the step instead."""
    return 0.0
