"""`GradientNorm`: how large the gradients are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fabric_lite.callbacks._logging import LoggingCallback, every, steps_done
from fabric_lite.loggers.logger import log_to_all
from fabric_lite.permissions import Read, StateAccess, Write


class GradientNorm(LoggingCallback):
    """Computes the norm of all gradients together, after each backward, into ``cbstate.gradientnorm``.

    It is a tensor on the device. Sharded gradients count as a whole, and those that the gradient scaler of
    ``"16-mixed"`` has scaled as what they stand for.

    Writes ``cbstate.gradientnorm``; reads ``step.grads`` (in a loop that has none, the gradients of ``params``, or of
    the parameters of ``model``), ``fabric``; ``cbstate.history`` if it logs.

    Args:
        *loggers: Where to log ``train/GradientNorm``; by default, to the loggers of the learner's `Fabric`, if
            ``freq`` is given.
        norm_type: Which norm; ``float("inf")`` for the largest element.
        freq: Log at each so manieth training step. By default, at each if there are loggers, else never.
    """

    def __init__(self, *loggers: Any, norm_type: float = 2.0, freq: int | None = None) -> None:
        super().__init__(*loggers)
        self.norm_type = norm_type
        self.freq = every(1 if freq is None and loggers else freq, self)

    def stateaccess(self) -> StateAccess:
        """See the class."""
        history: StateAccess = {} if self.freq is None else {"cbstate.history": Read()}
        reads = {"step.grads": Read(), "params": Read(), "model": Read(), "fabric": Read()}
        return {**reads, "cbstate.gradientnorm": Write(), **history}

    def on_backward_end(self, learner: Any) -> None:
        """Compute the norm.

        Args:
            learner: The learner.
        """
        norm = torch.nn.utils.get_total_norm([grad.detach() for grad in _gradients(learner)], self.norm_type)
        if hasattr(norm, "full_tensor"):  # of a DTensor: what all processes have together
            norm = norm.full_tensor()
        strategy = getattr(getattr(learner, "fabric", None), "strategy", None)
        scaler = getattr(getattr(strategy, "precision", None), "scaler", None)
        learner.cbstate.gradientnorm = norm if scaler is None else norm / scaler.get_scale()

    def on_train_step_end(self, learner: Any, phase: Any) -> None:
        """Log the norm, if it is time.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if self.freq is None or (step := steps_done(learner, phase)) % self.freq:
            return
        log_to_all(self.targets(learner), {f"{phase.name}/GradientNorm": learner.cbstate.gradientnorm}, step)


def _gradients(learner: Any) -> Iterable[Tensor]:
    """The gradients that there are, from where the loop has them."""
    grads = getattr(getattr(learner, "step", None), "grads", None)
    if grads is not None:
        return list(grads.values())
    params = getattr(learner, "params", None)
    found = learner.model.parameters() if params is None else params.values()
    return [parameter.grad for parameter in found if parameter.grad is not None]
