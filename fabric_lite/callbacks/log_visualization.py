"""`LogVisualization`: pictures of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fabric_lite.callbacks._logging import LoggingCallback, every, steps_done
from fabric_lite.permissions import Read, StateAccess

_CHANNELS = (1, 3, 4)


class LogVisualization(LoggingCallback):
    """Logs the picture that a function makes of the learner, as ``<phase>/<name>``.

    Reads ``cbstate.history`` and what the function reads: by default ``model``, ``params`` and ``step``, else what
    ``access`` says; ``fabric`` if no loggers are given.

    Args:
        fn: A function of the learner that returns a picture: a tensor or array of the shape ``(C, H, W)``,
            ``(H, W, C)`` or ``(H, W)``, with integers from 0 to 255 or floating-point numbers from 0 to 1, or a figure
            of matplotlib; None logs nothing.
        *loggers: Where to; by default, to those loggers of the learner's `Fabric` that take pictures.
        freq: Log at each so manieth training step. By default, at the end of each epoch, of any phase.
        name: Name of the picture; by default, that of the function.
        access: What the function reads, as in `fabric_lite.Callback.stateaccess`.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *loggers: Any,
        freq: int | None = None,
        name: str | None = None,
        access: StateAccess | None = None,
    ) -> None:
        super().__init__(*loggers)
        self.fn = fn
        self.freq = every(freq, self)
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.access = {"model": Read(), "params": Read(), "step": Read()} if access is None else access

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {**super().stateaccess(), "cbstate.history": Read(), **self.access}

    def on_train_step_end(self, learner: Any, phase: Any) -> None:
        """Log a picture, if it is time.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if self.freq is not None and (step := steps_done(learner, phase)) % self.freq == 0:
            self._log(learner, phase, step)

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Log a picture, unless that is done at steps.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if self.freq is None:
            self._log(learner, phase, int(learner.cbstate.history[phase].epochs))

    def _log(self, learner: Any, phase: Any, number: int) -> None:
        picture = self.fn(learner)
        if picture is None:
            return
        tag = f"{phase.name}/{self.name}"
        if hasattr(picture, "savefig"):
            for writer in self.writers(learner, "add_figure"):
                writer.add_figure(tag, picture, number)
            return
        order = self._order(picture)
        for writer in self.writers(learner, "add_image"):
            writer.add_image(tag, picture, number, dataformats=order)

    def _order(self, picture: Any) -> str:
        """Which dimension of an image is which."""
        shape = tuple(getattr(picture, "shape", ()))
        if len(shape) == 2:
            return "HW"
        if len(shape) == 3 and shape[0] in _CHANNELS:
            return "CHW"
        if len(shape) == 3 and shape[2] in _CHANNELS:
            return "HWC"
        what = f"a `{type(picture).__name__}`" + (f" of the shape {shape}" if shape else "")
        raise ValueError(
            f"`LogVisualization`: `{self.name}` returned {what}. Return a tensor or array of the shape (C, H, W),"
            " (H, W, C) or (H, W) with 1, 3 or 4 channels, or a figure of matplotlib."
        )
