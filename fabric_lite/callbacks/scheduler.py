"""Set hyperparameters by schedule, or step a scheduler of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fabric_lite.callbacks._learner import steps_in_epoch
from fabric_lite.callbacks.hyperparameters import HyperParameter, LearningRate, Momentum, optimizers_of
from fabric_lite.events import Phase, ValidationPhase
from fabric_lite.permissions import Callback, NoConflict, Read, Resolution, StateAccess, Write
from fabric_lite.permissions.access import dotted, entries, normalise

TimeTo = Callable[[float], Any]


class Scheduler(Callback):
    """Changes hyperparameters in the course of the training.

        Scheduler({LearningRate: onecycle(10, 0.1), Momentum: Constant(0.9)})
        Scheduler(StepLR(optimizer, step_size=3))
        Scheduler(partial(OneCycleLR, max_lr=0.1, total_steps=100), every="step")
        Scheduler(ReduceLROnPlateau, monitor="Loss")

    Schedules are asked before each training step for the value at that time in epochs, fractions included where the
    length of the training data is known; where it is not, the time is the number of epochs that are over.
    A scheduler of torch is stepped at the end of a training step or epoch, when the optimizer has made its step; one
    that follows a metric, at the end of the epoch that measured it.

    State access: writes what the hyperparameters write (for a scheduler of torch, ``optimizer``); reads ``data``, and
    ``cbstate.metricsepoch`` if it follows a metric. In a hand-written loop ``data`` may be missing.

    Args:
        schedule: Schedules by hyperparameter (a class stands for its instance without arguments), a scheduler of torch,
            or a function that makes one from the optimizer.
        every: When a scheduler of torch is stepped.
        monitor: The metric that a scheduler of torch follows. For `ReduceLROnPlateau`, by default the loss.
        phase: The phase whose metric it is.
        optimizer: Name of the optimizer that the function gets, where there are several.

    Raises:
        TypeError: If it is none of these.
        ValueError: If `every` is something else.
    """

    def __init__(
        self,
        schedule: Mapping[Any, TimeTo] | LRScheduler | Callable[[Any], LRScheduler],
        *,
        every: Literal["epoch", "step"] = "epoch",
        monitor: str | None = None,
        phase: Phase | type[Phase] = ValidationPhase,
        optimizer: str | None = None,
    ) -> None:
        if every not in ("epoch", "step"):
            raise ValueError(f"`Scheduler(every={every!r})`: choose 'epoch' or 'step'.")
        self.schedules: dict[HyperParameter, TimeTo] = {}
        self.scheduler: LRScheduler | None = None
        self._make: Callable[[Any], LRScheduler] | None = None
        if isinstance(schedule, Mapping):
            self.schedules = {_parameter(key): _callable(key, value) for key, value in schedule.items()}
        elif isinstance(schedule, LRScheduler):
            self.scheduler = schedule
        elif callable(schedule):
            self._make = schedule
        else:
            raise TypeError(
                f"`Scheduler({schedule!r})`: pass a mapping such as `{{LearningRate: onecycle(10, 0.1)}}`, a scheduler"
                " of torch, or a function that makes one from the optimizer."
            )
        self.every = every
        self.monitor = "Loss" if monitor is None and _is_plateau(schedule) else monitor
        self.phase = phase if isinstance(phase, type) else type(phase)
        self.optimizer = optimizer
        self.epoch = 0
        self.step = 0
        self._resumed = False
        self._pending: Mapping[str, Any] | None = None

    def stateaccess(self) -> StateAccess:
        """See the class."""
        access: dict[str, Read | Write] = {"data": Read()}
        if self.monitor is not None:
            access["cbstate.metricsepoch"] = Read()
        for parameter in self.parameters:
            for path, mode in entries(normalise(parameter.stateaccess(), parameter)):
                if not isinstance(access.get(dotted(path)), Write):
                    access[dotted(path)] = mode
        return access

    @property
    def parameters(self) -> tuple[HyperParameter, ...]:
        """What it changes; a scheduler of torch may change learning rate and momentum."""
        name = self.optimizer
        return tuple(self.schedules) or (LearningRate(name), Momentum(name))

    def resolveconflict(self, other: object) -> Resolution:
        """Two that change different hyperparameters get along.

        Args:
            other: The other callback.
        """
        if isinstance(other, Scheduler) and not set(self.parameters) & set(other.parameters):
            return NoConflict()
        return NotImplemented  # type: ignore[no-any-return]

    def init(self, learner: Any) -> None:
        """Make the scheduler of torch, if it is to be made.

        Args:
            learner: The learner.
        """
        if self._make is None or self.scheduler is not None:
            return
        found = optimizers_of(learner, self.optimizer)
        if len(found) != 1:
            raise ValueError(
                f"`Scheduler({self._make!r})` needs one optimizer, and there are {len(found)}. Name it:"
                " `Scheduler(..., optimizer=...)`."
            )
        settings = [_settings(group) for group in found[0].param_groups]
        self.scheduler = self._make(found[0])
        if isinstance(self.scheduler, ReduceLROnPlateau) and self.monitor is None:
            raise ValueError(
                "`Scheduler(...)` was given a function that makes a `ReduceLROnPlateau`, which follows a metric. Name"
                ' it: `Scheduler(..., monitor="Loss")`.'
            )
        if self._pending is not None:
            # Being made, it began anew; the optimizer has been restored before.
            self.scheduler.load_state_dict(dict(self._pending))
            self._pending = None
            for group, before in zip(found[0].param_groups, settings, strict=True):
                _restore(group, before)

    def on_train_epoch_begin(self) -> None:
        """Count steps from the beginning, unless the epoch is resumed in its midst."""
        if not self._resumed:
            self.step = 0
        self._resumed = False

    def on_train_step_begin(self, learner: Any, phase: Any = None) -> None:
        """Set hyperparameters.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if self.schedules:
            length = steps_in_epoch(learner, phase)
            time = self.epoch + (min(self.step / length, 1.0) if length else 0.0)
            for parameter, schedule in self.schedules.items():
                parameter.set(learner, schedule(time))
        self.step += 1

    def on_train_step_end(self) -> None:
        """Step a scheduler of torch that goes by steps."""
        if self.scheduler is not None and self.every == "step" and self.monitor is None:
            self.scheduler.step()

    def on_train_epoch_end(self, learner: Any, phase: Any = None) -> None:
        """Count the epoch; step a scheduler of torch that goes by epochs.

        Args:
            learner: The learner.
            phase: The phase.
        """
        self.epoch += 1
        self.step = 0
        if self.scheduler is not None and self.every == "epoch" and self.monitor is None:
            self.scheduler.step()
        self.on_epoch_end(learner, phase)

    def on_epoch_end(self, learner: Any, phase: Any = None) -> None:
        """Step a scheduler of torch that follows a metric.

        Args:
            learner: The learner.
            phase: The phase.
        """
        if self.scheduler is None or self.monitor is None or not isinstance(phase, self.phase):
            return
        metrics = learner.cbstate.metricsepoch[phase]
        if self.monitor not in metrics:
            raise KeyError(
                f"`Scheduler(monitor={self.monitor!r})` follows a metric that {phase!r} does not have, only"
                f" {', '.join(map(repr, metrics)) or 'none'}."
            )
        self.scheduler.step(float(metrics[self.monitor].last))  # type: ignore[arg-type]  # a plateau's takes metrics

    def state_dict(self) -> dict[str, Any]:
        """The time, and the state of a scheduler of torch."""
        state: dict[str, Any] = {"epoch": self.epoch, "step": self.step}
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.state_dict()
        elif self._pending is not None:
            state["scheduler"] = dict(self._pending)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.epoch, self.step, self._resumed = state["epoch"], state["step"], True
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))
        else:
            self._pending = state.get("scheduler")


def _parameter(key: Any) -> HyperParameter:
    parameter = key() if isinstance(key, type) and issubclass(key, HyperParameter) else key
    if not isinstance(parameter, HyperParameter):
        raise TypeError(
            f"`Scheduler({{{key!r}: ...}})`: a key is a `HyperParameter` such as `LearningRate`; for an attribute of"
            ' the learner, `Attribute("lossfn.label_smoothing")`.'
        )
    return parameter


def _callable(key: Any, schedule: Any) -> TimeTo:
    if not callable(schedule):
        raise TypeError(
            f"`Scheduler({{{key!r}: {schedule!r}}})`: a schedule is called with a time; for one value pass"
            f" `Constant({schedule!r})`."
        )
    return schedule  # type: ignore[no-any-return]


def _is_plateau(schedule: Any) -> bool:
    made = schedule.func if isinstance(schedule, partial) else schedule
    return isinstance(made, ReduceLROnPlateau) or (isinstance(made, type) and issubclass(made, ReduceLROnPlateau))


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what a parameter group holds besides the parameters."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}


def _restore(group: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, Tensor) and isinstance(group[key], Tensor):
            group[key].copy_(value)
        else:
            group[key] = value
