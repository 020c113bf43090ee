"""`Learner`: epochs and steps, with an event at each turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fabric_lite.events import (
    AbstractTrainingPhase,
    AbstractValidationPhase,
    Event,
    Phase,
    TrainingPhase,
    ValidationPhase,
)
from fabric_lite.fabric import Fabric
from fabric_lite.hooks import Callbacks
from fabric_lite.learner.prepare import (
    Gradients,
    OptimizerLike,
    default_optimizer,
    each_model,
    set_up,
    set_up_data,
)
from fabric_lite.learner.progress import Progress
from fabric_lite.learner.resume import Resumed, find_checkpoint
from fabric_lite.permissions import (
    CancelEpochException,
    CancelFittingException,
    CancelStepException,
    State,
    unwrap,
)
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.types import _PATH

_log = logging.getLogger(__name__)

# The hooks that the events of a Learner can reach, called or not: none of them is a misspelling.
_KNOWN = {
    name
    for event in Event
    for name in (
        event.value,
        *(f"on_{kind.name}_{event.value[3:]}" for kind in (AbstractTrainingPhase, AbstractValidationPhase)),
    )
}


class Learner:
    """Trains a model: holds the state of the training, and fires the events at which callbacks run.

    Device, precision, backward and the share of data of each process come from its `Fabric`. The callbacks are those
    of the Fabric, so that ``fabric.call`` reaches them, too.

    Args:
        model: A model, or several by name.
        lossfn: Computes the loss from predictions and targets.
        data: ``()``, ``(training,)``, ``(training, validation)``, or a mapping from phases or their names.
        optimizer: An optimizer, or a function that makes one from the parameters; for several models, a mapping of
            them, or one function. By default, Adam.
        callbacks: One, or a list of them.
        fabric: The Fabric; by default, one is made.
        usedefaultcallbacks: Whether to add `Recorder`, `Metrics`, `ProgressPrinter`, `MetricsPrinter` and
            `StopOnNaNLoss`, those that are not among the callbacks.

    Attributes:
        model: The model, set up; several are a `State`.
        optimizer: The optimizer, set up; several are a `State`.
        lossfn: The loss function.
        params: The parameters by name.
        data: What each phase goes through, by the phase's name.
        fabric: The Fabric.
        callbacks: The callbacks.
        step: The state of the current step, replaced at each: see `Event` for what is there when.
        cbstate: What callbacks share.
        progress: How far `fit` has come.
        stop_reason: Why fitting was cancelled; None if it was not.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        lossfn: Callable[..., Any],
        *,
        data: Any = (),
        optimizer: OptimizerLike | Mapping[str, OptimizerLike] | None = None,
        callbacks: Any = (),
        fabric: Fabric | None = None,
        usedefaultcallbacks: bool = True,
    ) -> None:
        self.fabric = Fabric() if fabric is None else fabric
        self.lossfn = lossfn
        chosen = default_optimizer if optimizer is None else optimizer
        self.model, self.optimizer, self.params = set_up(self.fabric, model, chosen)
        self.data = set_up_data(self.fabric, data)
        self.step = State()
        self.cbstate = State()
        self.progress = Progress()
        self.stop_reason: str | None = None
        self._resumed: Resumed | None = None
        self._phases: list[Phase] = []
        self._add(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks], usedefaultcallbacks)
        self.callbacks.attach(self)

    @property
    def callbacks(self) -> Callbacks:
        """The callbacks, to look through and to change."""
        return self.fabric.callbacks

    @property
    def models(self) -> Iterable[nn.Module]:
        """The models, also if there is one."""
        return each_model(self.model)

    @property
    def phase(self) -> Phase | None:
        """The phase of the surrounding context; None outside of one."""
        return self._phases[-1] if self._phases else None

    # -- the loop ------------------------------------------------------------------------------------------------

    def fit(self, epochs: int, resume: _PATH | None = None) -> None:
        """Train for some epochs, each followed by a validation if there is data for it.

        Args:
            epochs: How many; with ``resume``, how many in total.
            resume: A checkpoint of a `Checkpointer` to go on from, or ``"latest"`` for the newest one that is whole in
                the folder of the one among the callbacks; if there is none yet, training begins at the beginning.

        Raises:
            ValueError: If there is no training data, or no `Checkpointer` that knows where the latest checkpoint is.
        """
        if TrainingPhase.name not in self.data:
            raise ValueError(
                f"`learner.fit({epochs})` has nothing to train on. Make it `Learner(..., data=(training, validation))`,"
                " or go through your own data with `learner.run_epoch(TrainingPhase(), data)`."
            )
        checkpoint = find_checkpoint(self, resume)
        self.stop_reason = None
        try:
            self._cancellable(self._fit, epochs, checkpoint)
            self._phases.clear()
            self._cancellable(self.handle, Event.FIT_END)
        except BaseException as error:
            self._phases.clear()
            self.callbacks.call(Event.EXCEPTION.value, learner=self, event=Event.EXCEPTION, exception=error)
            raise
        self._warn_of_misspelt_hooks()

    def _fit(self, epochs: int, checkpoint: _PATH | None) -> None:
        self.progress.restart()
        self.handle(Event.FIT_BEGIN)
        if checkpoint is not None:
            self._resumed = Resumed(self, checkpoint)
        for _ in range(self.progress.epochs, epochs):
            for phase in (TrainingPhase(), ValidationPhase()):
                if phase.name in self.data and phase.name not in self.progress.finished:
                    self.run_epoch(phase)
            self.progress.finish_epoch()

    def _cancellable(self, function: Callable[..., None], *args: Any) -> None:
        """Call a part of `fit`, and take note of it if it is cancelled."""
        try:
            function(*args)
        except CancelFittingException as reason:
            self.stop_reason = str(reason) or type(reason).__name__
            _log.info("fitting was cancelled: %s", self.stop_reason)

    def run_epoch(self, phase: Phase, data: Iterable[Any] | None = None) -> None:
        """Go through data once.

        Args:
            phase: The phase.
            data: Batches; by default, the learner's data for this phase.

        Raises:
            ValueError: If there is no data for this phase.
        """
        name = next((name for name in phase.names() if name in self.data), None)
        if data is None and name is None:
            raise ValueError(
                f"There is no data for the phase {phase.name!r}, only for {', '.join(map(repr, self.data)) or 'none'}."
                " Pass it: `learner.run_epoch(phase, data)`."
            )
        depth = len(self._phases)
        try:
            phase.epoch(self, self.data[name] if data is None else data)
        except CancelEpochException as reason:
            _log.debug("an epoch was cancelled: %s", reason)
        finally:
            del self._phases[depth:]

    def run_step(self, phase: Phase, batch: Any) -> None:
        """Do one step of a phase.

        Args:
            phase: The phase.
            batch: A batch. It moves to the device of the Fabric, if it is not there.
        """
        depth = len(self._phases)
        try:
            phase.step(self, self.fabric.to_device(batch))
        except CancelStepException as reason:
            _log.debug("a step was cancelled: %s", reason)
        finally:
            del self._phases[depth:]

    # -- the same for a hand-written loop ------------------------------------------------------------------------

    @contextmanager
    def epoch_context(self, phase: Phase) -> Iterator[None]:
        """Fire the beginning and the end of an epoch. `CancelEpochException` ends the block.

        Args:
            phase: The phase.
        """
        with self._in(phase):
            phase.prepare(self)
            try:
                self.handle(Event.EPOCH_BEGIN)
            except CancelEpochException:
                self._end_epoch(phase)
                raise
            self.progress.begin()
            if self._resumed is not None:
                self._resumed.restore(self)
                self._resumed = None
            try:
                yield
            except CancelEpochException as reason:
                _log.debug("an epoch was cancelled: %s", reason)
            self._end_epoch(phase)

    def _end_epoch(self, phase: Phase) -> None:
        self.progress.finish(phase.name)
        self.handle(Event.EPOCH_END)

    @contextmanager
    def step_context(self, phase: Phase, **state: Any) -> Iterator[State]:
        """Fire the beginning and the end of a step. `CancelStepException` ends the block, and there is no end, then.

        Args:
            phase: The phase.
            **state: What the state of the step begins with, usually ``xs`` and ``ys``.

        Yields:
            The state of the step, which callbacks see as ``learner.step``.
        """
        with self._in(phase):
            self.step = State(**state)
            self.handle(Event.STEP_BEGIN)
            try:
                yield self.step
            except CancelStepException as reason:
                _log.debug("a step was cancelled: %s", reason)
                return
            self.handle(Event.STEP_END)

    def handle(self, event: str, **kwargs: Any) -> None:
        """Fire an event, in the phase of the surrounding context.

        Args:
            event: An `Event` or any other name.
            **kwargs: Passed to the callbacks that take them.
        """
        name = event.value if isinstance(event, Event) else event
        if self._phases:
            kwargs["phase"] = self._phases[-1]
        self.callbacks.dispatch(name, (), {"learner": self, "event": event, **kwargs})

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, with the events around it. They are in ``step.grads``, then.

        Args:
            loss: The loss.
        """
        self.handle(Event.BACKWARD_BEGIN)
        self.fabric.backward(loss)
        self.step.grads = Gradients(self.params)
        self.handle(Event.BACKWARD_END)

    @staticmethod
    def without_gradients() -> AbstractContextManager[Any]:
        """Under it, nothing is recorded for a backward."""
        return torch.no_grad()

    @contextmanager
    def _in(self, phase: Phase) -> Iterator[None]:
        self._phases.append(phase)
        try:
            yield
        finally:
            if self._phases:  # `fit` clears them when it ends
                self._phases.pop()

    # -- callbacks -----------------------------------------------------------------------------------------------

    def _add(self, callbacks: list[Any] | tuple[Any, ...], usedefaultcallbacks: bool) -> None:
        """Add callbacks to those of the Fabric, all at once: none of them need be valid alone."""
        added = [callback for callback in callbacks if callback not in self.callbacks]
        if usedefaultcallbacks:
            from fabric_lite.callbacks import default_callbacks

            there = tuple(type(unwrap(callback)) for callback in (*self.callbacks, *added))
            added += [new for new in default_callbacks() if not any(issubclass(kind, type(new)) for kind in there)]
        if added:
            self.callbacks.set([*self.callbacks.given, *added])

    def _warn_of_misspelt_hooks(self) -> None:
        misspelt = [found for found in self.callbacks.uncalled() if found.hook not in _KNOWN]
        if misspelt:
            rank_zero_warn("; ".join(map(str, misspelt)) + ". Is a name misspelt?", stacklevel=6)
