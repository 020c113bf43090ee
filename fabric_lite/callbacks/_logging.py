"""What callbacks that log have in common: where to, and the number of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fabric_lite.permissions import Callback, Read, StateAccess


class LoggingCallback(Callback):
    """A callback that logs to the loggers that it is given, or else to those of the learner's `Fabric`.

    Args:
        *loggers: The loggers.

    Raises:
        TypeError: If one of them is none.
    """

    def __init__(self, *loggers: Any) -> None:
        for logger in loggers:
            if not hasattr(logger, "log_metrics"):
                raise TypeError(
                    f"`{type(self).__name__}` got {logger!r} as a logger, which has no `log_metrics`. Pass loggers,"
                    f' such as `{type(self).__name__}(..., CSVLogger("logs"))`, and other arguments by name.'
                )
        self.loggers = loggers

    def stateaccess(self) -> StateAccess:
        """The loggers of ``fabric``, if none were given."""
        return {} if self.loggers else {"fabric": Read()}

    def targets(self, learner: Any) -> Sequence[Any]:
        """The loggers to log to.

        Args:
            learner: The learner.

        Raises:
            ValueError: If there are none.
        """
        loggers = self.loggers or getattr(getattr(learner, "fabric", None), "loggers", ())
        if not loggers:
            raise ValueError(
                f"`{type(self).__name__}` has nowhere to log to: it was given no loggers, and the learner's `fabric`"
                f' has none. Write `{type(self).__name__}(..., CSVLogger("logs"))` or `Fabric(loggers=...)`.'
            )
        return loggers

    def writers(self, learner: Any, method: str) -> list[Any]:
        """The ``experiment`` of each logger that can do what plain metrics do not need.

        Args:
            learner: The learner.
            method: What the experiment must have, such as ``"add_histogram"``.

        Raises:
            TypeError: If one of the loggers that were given cannot do it; or, of those of ``fabric``, none can.
        """
        found = [(logger, getattr(logger, "experiment", None)) for logger in self.targets(learner)]
        able = [writer for _, writer in found if hasattr(writer, method)]
        unable = [type(logger).__name__ for logger, writer in found if not hasattr(writer, method)]
        if unable and (self.loggers or not able):
            raise TypeError(
                f"`{type(self).__name__}` cannot log to `{'`, `'.join(unable)}`: the `experiment` there has no"
                f' `{method}`. Write `{type(self).__name__}(..., TensorBoardLogger("logs"))`.'
            )
        return able


def steps_done(learner: Any, phase: Any) -> int:
    """The number of steps in a phase so far, of which `Recorder` keeps count.

    Args:
        learner: The learner.
        phase: The phase.
    """
    return int(learner.cbstate.history[phase].steps)


def every(freq: int | None, callback: object, name: str = "freq") -> int | None:
    """A frequency that was given, checked.

    Args:
        freq: How often; None for never.
        callback: Who was given it.
        name: What the argument is called.

    Raises:
        ValueError: If it is less than 1.
    """
    if freq is not None and freq < 1:
        raise ValueError(f"`{type(callback).__name__}({name}={freq!r})`: pass 1 or more, or None for never.")
    return freq
