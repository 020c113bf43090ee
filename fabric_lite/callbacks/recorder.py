"""`Recorder`: counts epochs and steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from fabric_lite.callbacks._by_phase import ByPhase
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.permissions import Callback, Read, StateAccess, Write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class History:
    """How far a phase has come.

    Attributes:
        epochs: Epochs completed.
        steps: Steps completed, in all epochs.
        stepsepoch: Steps completed in the current epoch; until the next one begins, in the last.
    """

    epochs: int = 0
    steps: int = 0
    stepsepoch: int = 0


class Histories(ByPhase[History]):
    """The `History` of each phase. A phase that was never there reads as zeros."""

    def __init__(self) -> None:
        super().__init__(lambda phase: History(), lambda phase, state: History(**state))
        self._metrics: Any = None

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the metrics of each epoch, if there are `Metrics` among the callbacks.

        Args:
            path: Of the image to write; its ending says in which format.

        Returns:
            The figure.

        Raises:
            RuntimeError: If there are no metrics.
            ModuleNotFoundError: If matplotlib is missing.
        """
        if self._metrics is None:
            raise RuntimeError(
                "`history.plot()` knows of no metrics. Add `Metrics()` to the callbacks of a learner that has"
                " `learner.callbacks`, or draw what you have: `fabric_lite.callbacks.plotting.plot_metrics(...)`."
            )
        from fabric_lite.callbacks.plotting import plot_metrics

        return plot_metrics(self._metrics, path)


class Recorder(Callback):
    """Counts epochs and steps of each phase, in ``cbstate.history[phase]``, a `History`.

    Steps rise at the end of a step, epochs at the end of an epoch; a cancelled step does not count, a cancelled epoch
    does. The entry of a phase is there from the beginning of its first epoch or step.

    It runs after all `Metrics`, which count on their own and do not need it.

    State access: writes ``cbstate.history``; reads ``callbacks``, if the learner has them, to find the metrics that
    ``history.plot()`` draws.
    """

    def __init__(self) -> None:
        self._histories = Histories()
        self._in_use = False

    def stateaccess(self) -> StateAccess:  # noqa: D102
        return {"cbstate": {"history": Write()}, "callbacks": Read()}

    def runafter(self) -> tuple[type, ...]:  # noqa: D102
        return (Metrics,)

    def init(self, learner: Any) -> None:  # noqa: D102
        histories = self._of(learner)
        callbacks: Any = getattr(learner, "callbacks", None)
        metrics = callbacks.get(Metrics) if hasattr(callbacks, "get") else None
        if metrics is not None:
            histories._metrics = metrics.epochs

    def on_epoch_begin(self, learner: Any, phase: Any) -> None:
        """Begin to count the steps of an epoch."""
        self._of(learner).begun(phase).stepsepoch = 0

    def on_step_begin(self, learner: Any, phase: Any) -> None:
        """Make sure that there is an entry."""
        self._of(learner).begun(phase)

    def on_step_end(self, learner: Any, phase: Any) -> None:
        """Count a step."""
        history = self._of(learner).begun(phase)
        history.steps += 1
        history.stepsepoch += 1

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Count an epoch."""
        self._of(learner).begun(phase).epochs += 1

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self._histories.state_dict(asdict)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._histories.load_state_dict(state)

    def _of(self, learner: Any) -> Histories:
        """The counts of a learner. The first one gets those that may have been loaded, another one its own."""
        found: Histories | None = getattr(learner.cbstate, "history", None)
        if found is None:
            found = Histories() if self._in_use else self._histories
            learner.cbstate.history = found
            self._in_use = True
        self._histories = found
        return found
