"""The events of a training."""

from __future__ import annotations

from enum import Enum


class Event(str, Enum):
    """The events that a `Learner` fires, by the names of their hooks. Any other name works as an event, too.

    Which state exists from which event on, in ``learner.step``: ``xs`` and ``ys`` from the beginning of the step,
    ``preds`` from `LOSS_BEGIN`, ``loss`` from `BACKWARD_BEGIN` (in validation, at `STEP_END`), ``grads`` from
    `BACKWARD_END`. `FIT_BEGIN`, `FIT_END` and `EXCEPTION` belong to no phase; in validation, there is no backward.
    """

    FIT_BEGIN = "on_fit_begin"
    EPOCH_BEGIN = "on_epoch_begin"
    STEP_BEGIN = "on_step_begin"
    LOSS_BEGIN = "on_loss_begin"
    BACKWARD_BEGIN = "on_backward_begin"
    BACKWARD_END = "on_backward_end"
    STEP_END = "on_step_end"
    EPOCH_END = "on_epoch_end"
    FIT_END = "on_fit_end"
    EXCEPTION = "on_exception"

    def __str__(self) -> str:
        return self.value
