"""`LogHistograms`: how parameters and gradients are distributed."""

from __future__ import annotations

from typing import Any

from fabric_lite.callbacks._logging import LoggingCallback, every, steps_done
from fabric_lite.permissions import Read, StateAccess


class LogHistograms(LoggingCallback):
    """Logs a histogram of each parameter, as ``params/<name>``, and of its gradient, as ``grads/<name>``.

    Each reads its tensor from the device, so choose ``freq`` with care.

    Reads ``params`` (in a loop that has none, the parameters of ``model``) and ``cbstate.history``; ``fabric`` if no
    loggers are given.

    Args:
        *loggers: Where to; by default, to those loggers of the learner's `Fabric` that take histograms.
        freq: Log at each so manieth training step.
    """

    def __init__(self, *loggers: Any, freq: int = 100) -> None:
        super().__init__(*loggers)
        self.freq = every(freq, self) or 1

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {**super().stateaccess(), "params": Read(), "model": Read(), "cbstate": {"history": Read()}}

    def on_train_step_end(self, learner: Any, phase: Any) -> None:
        """Log the histograms, if it is time.

        Args:
            learner: The learner.
            phase: The phase.
        """
        step = steps_done(learner, phase)
        if step % self.freq:
            return
        writers = self.writers(learner, "add_histogram")
        params = getattr(learner, "params", None)
        for name, parameter in dict(learner.model.named_parameters() if params is None else params).items():
            for writer in writers:
                writer.add_histogram(f"params/{name}", parameter.detach(), step)
                if parameter.grad is not None:
                    writer.add_histogram(f"grads/{name}", parameter.grad.detach(), step)
