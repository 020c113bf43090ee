"""`SanityCheck`: looks for the usual mistakes before the training begins."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from fabric_lite.callbacks._trial import NO_BATCH, Trial, first_batch, training_data
from fabric_lite.callbacks.to_device import ToDevice
from fabric_lite.events import AbstractTrainingPhase
from fabric_lite.permissions import Callback, Read, Resolution, RunFirst, StateAccess, Write
from fabric_lite.utilities.rank_zero import rank_zero_warn


class SanityCheckException(ValueError):
    """A training that cannot work as it is; the message lists what to change."""


class SanityCheck(Callback):
    """Tries one training step before the first, and reports all that is wrong with it, with what to write.

    When fitting begins, it looks at the training data and takes a batch of it. In a loop without ``on_fit_begin``, or
    with data that can be gone through only once, it takes the batch of the first training step. It checks, in turn:
    there is data; a batch is a pair; the model runs on it, and gives no NaN; the loss is one number with a gradient;
    the gradients reach the parameters; the optimizer has them. It warns of shapes that a loss would broadcast, and of
    parameters that nothing trains.

    Afterwards everything is as before: gradients, buffers such as those of a BatchNorm, training mode, random
    generators, the position of the data. What a model or dataset keeps in attributes of its own it cannot put back.
    Several models are not tried: only their phase can run them.

    State access: reads ``data``, ``lossfn``, ``optimizer``, ``fabric``, ``step.xs`` and ``step.ys``; writes ``model``,
    whose gradients and buffers change in between. What the loop does not have is not checked.

    Raises:
        SanityCheckException: In the first event, if there is a problem; on all processes if there is one on any.
    """

    def __init__(self) -> None:
        self._done = False

    def stateaccess(self) -> StateAccess:  # noqa: D102
        return {
            "data": Read(),
            "model": Write(),
            "lossfn": Read(),
            "optimizer": Read(),
            "fabric": Read(),
            "step": {"xs": Read(), "ys": Read()},
        }

    def resolveconflict(self, other: object) -> Resolution:  # noqa: D102
        return RunFirst(other if isinstance(other, ToDevice) else self)

    def init(self, learner: Any) -> None:  # noqa: D102
        self._done = False

    def on_fit_begin(self, learner: Any) -> None:
        """Check with a batch of the training data."""
        if self._done:
            return
        data = training_data(learner)
        if isinstance(data, Iterator):  # taking a batch would lose it
            return
        problems: list[str] = []
        batch: Any = NO_BATCH
        if data is None or (hasattr(data, "__len__") and len(data) == 0):
            what = "There is no training data." if data is None else "The training data is empty: it has no batches."
            problems.append(f"{what} Write `Learner(model, lossfn, data=(training, validation))`, each with batches.")
        else:
            batch = self._take(data, problems)
        self._check(learner, batch, problems)

    def on_step_begin(self, learner: Any, phase: Any = None) -> None:
        """Check with the batch of this step, if there was no occasion before."""
        if self._done or not (phase is None or isinstance(phase, AbstractTrainingPhase)):
            return
        xs, ys = getattr(learner.step, "xs", None), getattr(learner.step, "ys", None)
        self._check(learner, NO_BATCH if xs is None or ys is None else copy.deepcopy((xs, ys)), [])

    @staticmethod
    def _take(data: Any, problems: list[str]) -> Any:
        try:
            batch = first_batch(data)
            # A list of batches comes as a read-only view, which a model does not take for a list.
            batch = batch if batch is NO_BATCH else copy.deepcopy(batch)
        except Exception as error:
            problems.append(
                f"The training data cannot be read: {type(error).__name__}: {error}. Try `next(iter(data))` on its own."
            )
            return NO_BATCH
        if batch is NO_BATCH:
            problems.append("The training data is empty: it has no batches. Is `drop_last=True` too strict for it?")
        elif not isinstance(batch, (tuple, list)) or len(batch) != 2:
            problems.append(
                f"A batch of the training data is {_shown(batch)}, not a pair. Return `(x, y)` from the dataset's"
                " `__getitem__`, or write a phase whose `step(self, learner, batch)` takes such a batch."
            )
        else:
            return batch
        return NO_BATCH

    def _check(self, learner: Any, batch: Any, problems: list[str]) -> None:
        """Try a step, and report."""
        self._done = True
        model, lossfn = getattr(learner, "model", None), getattr(learner, "lossfn", None)
        if callable(getattr(model, "named_parameters", None)):
            trial = Trial(model, lossfn, getattr(learner, "optimizer", None), getattr(learner, "fabric", None))
            # One process must not wait in the model for another that has nothing to run it on.
            if not trial.anywhere(batch is NO_BATCH):
                trial.run(*batch)
            trial.look_at_optimizer()
            problems += trial.problems
            for warning in trial.warnings:
                rank_zero_warn(f"SanityCheck: {warning}")
            failed = trial.anywhere(bool(problems))
        else:
            failed = bool(problems)
        if failed:
            self._done = False
            listed = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, start=1))
            found = listed or "Another process found them: see its report."
            raise SanityCheckException(f"This training cannot work as it is. SanityCheck found:\n{found}")


def _shown(batch: Any) -> str:
    """What a batch is, in a few words."""
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {kind} with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {kind} of {len(batch)}"
    return f"one {kind}"
