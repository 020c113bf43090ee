"""`Traces` keeps what functions of the learner compute at each step; `LogTraces` logs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fabric_lite.callbacks._logging import LoggingCallback, every, steps_done
from fabric_lite.events import AbstractTrainingPhase, Phase
from fabric_lite.loggers.logger import log_to_all
from fabric_lite.permissions import Callback, NoConflict, Read, Resolution, StateAccess, Write


class Traces(Callback):
    """Keeps what functions compute at the end of each step, in ``cbstate.traces``: name to list of ``(step, value)``.

    Tensors are kept as detached copies, on their device.

    Writes ``cbstate.traces``; reads ``cbstate.history`` and what the functions read: by default ``model``, ``params``
    and ``step``, else what ``access`` says.

    Args:
        functions: Functions of the learner, by name.
        phase: The class of the phases at whose steps they are called.
        access: What the functions read, as in `fabric_lite.Callback.stateaccess`.

    Attributes:
        traces: The same lists.

    Example:
        >>> Traces({"mean_output": lambda learner: learner.step.preds.mean()}).traces
        {'mean_output': []}
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[[Any], Any]],
        phase: type[Phase] = AbstractTrainingPhase,
        access: StateAccess | None = None,
    ) -> None:
        self.functions = dict(functions)
        self.phase = phase
        self.access = {"model": Read(), "params": Read(), "step": Read()} if access is None else access
        self.traces: dict[str, list[tuple[int, Any]]] = {name: [] for name in self.functions}

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"cbstate.history": Read(), "cbstate.traces": Write(), **self.access}

    def resolveconflict(self, other: object) -> Resolution:
        """Several may write traces, each its own.

        Args:
            other: The other callback.

        Raises:
            ValueError: If it has a name in common.
        """
        if not isinstance(other, Traces):
            return super().resolveconflict(other)
        if common := self.traces.keys() & other.traces.keys():
            raise ValueError(
                f"Two `Traces` have the name {', '.join(map(repr, sorted(common)))}. Give one of them another name:"
                ' `Traces({"another_name": function})`.'
            )
        return NoConflict()

    def init(self, learner: Any) -> None:
        """Make the lists known to other callbacks.

        Args:
            learner: The learner.
        """
        cbstate = learner.cbstate
        if "traces" not in cbstate:
            cbstate.traces = {}
        cbstate.traces.update(self.traces)

    def on_step_end(self, learner: Any, phase: Any) -> None:
        """Call the functions.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if not isinstance(phase, self.phase):
            return
        step = steps_done(learner, phase)
        for name, function in self.functions.items():
            value = function(learner)
            self.traces[name].append((step, value.detach().clone() if isinstance(value, Tensor) else value))

    def state_dict(self) -> dict[str, Any]:
        """The traces."""
        return {"traces": {name: list(values) for name, values in self.traces.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with saved traces, those of functions that are still there.

        Args:
            state: From `state_dict`.
        """
        for name, values in self.traces.items():
            values[:] = [(step, value) for step, value in state["traces"].get(name, ())]


class LogTraces(LoggingCallback):
    """Logs what `Traces` keeps, as ``traces/<name>`` with the number of the step. The values must be single numbers.

    Reads ``cbstate.traces``; ``fabric`` if no loggers are given.

    Args:
        *loggers: Where to; by default, to the loggers of the learner's `Fabric`.
        freq: Log at each so manieth step.
    """

    def __init__(self, *loggers: Any, freq: int = 1) -> None:
        super().__init__(*loggers)
        self.freq = every(freq, self) or 1
        self._logged: dict[str, int] = {}

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {**super().stateaccess(), "cbstate.traces": Read()}

    def on_step_end(self, learner: Any) -> None:
        """Log the newest values, if it is time.

        Args:
            learner: The learner.
        """
        fresh: dict[int, dict[str, Any]] = {}
        for name, values in learner.cbstate.traces.items():
            if values and values[-1][0] % self.freq == 0 and self._logged.get(name) != values[-1][0]:
                step, value = values[-1]
                self._logged[name] = step
                fresh.setdefault(step, {})[f"traces/{name}"] = value
        for step, metrics in fresh.items():
            log_to_all(self.targets(learner), metrics, step)
