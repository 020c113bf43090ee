"""`StopOnNaNLoss`: ends a training that has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fabric_lite.events import AbstractTrainingPhase
from fabric_lite.permissions import Callback, CancelFittingException, Read, StateAccess


class StopOnNaNLoss(Callback):
    """Cancels fitting when the training loss is NaN.

    It looks before the backward, so that the parameters stay as they were before this step, or at the end of the step
    in a loop that has no ``on_backward_begin``. On a device other than the CPU, where reading a value would make the
    device wait, it looks at the loss of the step before. Several processes stop together, at the step in which one of
    them had a NaN.

    State access: reads ``step.loss`` and ``fabric``. Without ``fabric``, there is one process.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._looked = False
        self._waiting: tuple[int, Tensor] | None = None

    def stateaccess(self) -> StateAccess:  # noqa: D102
        return {"step.loss": Read(), "fabric": Read()}

    def on_backward_begin(self, learner: Any, phase: Any = None) -> None:
        """Look at the loss."""
        if _trains(phase):
            self._looked = self._look(learner) or self._looked

    def on_step_end(self, learner: Any, phase: Any = None) -> None:
        """Look at the loss, if there was no occasion before."""
        if _trains(phase):
            if not self._looked:
                self._look(learner)
            self._looked = False
            self._steps += 1

    def on_epoch_end(self, phase: Any = None) -> None:
        """Look at the last loss."""
        if _trains(phase):
            self._settle()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._steps, self._looked, self._waiting = state["steps"], False, None

    def _look(self, learner: Any) -> bool:
        """Look at the loss, and return whether there was one."""
        loss = getattr(learner.step, "loss", None)
        if loss is None:
            return False
        fabric: Any = getattr(learner, "fabric", None)
        step = self._steps + 1
        if not isinstance(loss, Tensor):
            loss = torch.tensor(float(loss))
        several = getattr(fabric, "world_size", 1) > 1
        if loss.device.type == "cpu" and not several:
            if math.isnan(loss.detach().sum()):
                raise _reason(step)
            return True
        nan = torch.isnan(loss.detach()).any().float()
        if several:
            nan = fabric.all_reduce(nan, reduce_op="max")
        self._settle()
        self._waiting = step, nan
        if nan.device.type == "cpu":
            self._settle()
        return True

    def _settle(self) -> None:
        """Read the answer that is waiting."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and bool(waiting[1]):
            raise _reason(waiting[0])


def _reason(step: int) -> CancelFittingException:
    return CancelFittingException(
        f"The training loss is NaN in step {step}. A lower learning rate, clipped gradients (`fabric.clip_gradients`)"
        " or a look at the data of this step may help."
    )


def _trains(phase: Any) -> bool:
    """Whether a phase is a training; a loop that names none is taken for one."""
    return phase is None or isinstance(phase, AbstractTrainingPhase)
