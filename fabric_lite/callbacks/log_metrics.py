"""`LogMetrics`: metrics on their way to loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fabric_lite.callbacks._logging import LoggingCallback, every
from fabric_lite.loggers.logger import log_to_all
from fabric_lite.permissions import Read, StateAccess


class LogMetrics(LoggingCallback):
    """Logs what `Metrics` computes.

    At the end of each epoch, as ``train/Loss``, ``validation/Loss`` … with the number of the epoch; every few training
    steps, as ``train/step/Loss`` … with the number of the step. Two names, as a curve has one kind of number on its
    axis. Only when a value is logged is it read from its device.

    Reads ``cbstate.metricsepoch``; ``cbstate.metricsstep`` if steps are logged; ``fabric`` if no loggers are given.

    Args:
        *loggers: Where to; by default, to the loggers of the learner's `Fabric`.
        freq: Log each so manieth training step; None leaves steps out.
    """

    def __init__(self, *loggers: Any, freq: int | None = 10) -> None:
        super().__init__(*loggers)
        self.freq = every(freq, self)

    def stateaccess(self) -> StateAccess:
        """See the class."""
        steps = {} if self.freq is None else {"metricsstep": Read()}
        return {**super().stateaccess(), "cbstate": {"metricsepoch": Read(), **steps}}

    def on_train_step_end(self, learner: Any, phase: Any) -> None:
        """Log the values of the step, if it is time.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if self.freq is None:
            return
        series = learner.cbstate.metricsstep.get(phase, {})
        # the length first: to look at a value is to wait for it
        due = {name: values for name, values in series.items() if len(values) % self.freq == 0}
        self._log(learner, f"{phase.name}/step", due)

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Log the values of the epoch.

        Args:
            learner: The learner.
            phase: The phase.
        """
        self._log(learner, phase.name, learner.cbstate.metricsepoch.get(phase, {}))

    def on_fit_end(self, learner: Any) -> None:
        """Let the loggers write down what they hold.

        Args:
            learner: The learner.
        """
        for logger in self.targets(learner):
            getattr(logger, "save", lambda: None)()

    def _log(self, learner: Any, prefix: str, series: Mapping[str, Sequence[tuple[int, Any]]]) -> None:
        """Log the newest values: not those that were not computed this time."""
        latest = {name: values[-1] for name, values in series.items() if len(values)}
        number = max((at for at, _ in latest.values()), default=0)
        values = {f"{prefix}/{name}": value for name, (at, value) in latest.items() if at == number}
        if values:
            log_to_all(self.targets(learner), values, number)
