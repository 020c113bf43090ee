"""The phases of a training: what an epoch and a step of each consist of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar

from fabric_lite.events.event import Event


class Phase:
    """A phase of a training. A custom one overrides `step`, and may have a name of its own.

    Phases of one class are equal, and hash alike.

    Attributes:
        name: What hooks for this phase are called: with the name ``"train"``, ``on_train_step_end`` is called for the
            event ``on_step_end`` if a callback has it. A subclass tries its own name first, then those of its parents.
    """

    name: ClassVar[str] = ""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The name of this phase and those of its parents, the most specific first."""
        return tuple(dict.fromkeys(name for base in cls.__mro__ if (name := vars(base).get("name"))))

    def prepare(self, learner: Any) -> None:
        """Runs before the first event of an epoch.

        Args:
            learner: The learner.
        """

    def epoch(self, learner: Any, data: Iterable[Any]) -> None:
        """Go through the data once.

        Args:
            learner: The learner.
            data: Batches.
        """
        with learner.epoch_context(self):
            for batch in data:
                learner.run_step(self, batch)

    def step(self, learner: Any, batch: Any) -> None:
        """Do what there is to do with one batch.

        Args:
            learner: The learner.
            batch: A pair of inputs and targets, unless the phase takes something else.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` does not say what a step is. Give it a method `step(self, learner, batch)`."
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AbstractTrainingPhase(Phase):
    """A phase that trains."""

    name = "train"

    def prepare(self, learner: Any) -> None:
        """Put the models into training mode.

        Args:
            learner: The learner.
        """
        for model in learner.models:
            model.train()


class TrainingPhase(AbstractTrainingPhase):
    """Trains one model with one optimizer: forward, loss, backward, step of the optimizer."""

    def step(self, learner: Any, batch: Any) -> None:
        """Train on one batch.

        Args:
            learner: The learner.
            batch: A pair of inputs and targets.
        """
        xs, ys = _pair(self, batch)
        with learner.step_context(self, xs=xs, ys=ys) as state:
            learner.optimizer.zero_grad()
            state.preds = learner.model(state.xs)
            learner.handle(Event.LOSS_BEGIN)
            state.loss = learner.lossfn(state.preds, state.ys)
            learner.backward(state.loss)
            learner.optimizer.step()


class AbstractValidationPhase(Phase):
    """A phase that looks at how good the model is."""

    name = "validation"

    def prepare(self, learner: Any) -> None:
        """Put the models into evaluation mode.

        Args:
            learner: The learner.
        """
        for model in learner.models:
            model.eval()


class ValidationPhase(AbstractValidationPhase):
    """Computes predictions and loss, without gradients."""

    def step(self, learner: Any, batch: Any) -> None:
        """Look at one batch.

        Args:
            learner: The learner.
            batch: A pair of inputs and targets.
        """
        xs, ys = _pair(self, batch)
        with learner.without_gradients(), learner.step_context(self, xs=xs, ys=ys) as state:
            state.preds = learner.model(state.xs)
            learner.handle(Event.LOSS_BEGIN)
            state.loss = learner.lossfn(state.preds, state.ys)


@lru_cache(maxsize=1024)
def method_names(hook: str, kind: type[Phase]) -> tuple[str, ...]:
    """The methods that a hook reaches in a phase, the most specific first.

    Args:
        hook: Name of the event, such as ``"on_step_end"``.
        kind: Class of the phase.

    Returns:
        The names: of each callback, the first that it has is called.
    """
    if not hook.startswith("on_"):
        return (hook,)
    return (*(f"on_{name}_{hook[3:]}" for name in kind.names()), hook)


def _pair(phase: Phase, batch: Any) -> tuple[Any, Any]:
    """The inputs and targets of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a `{type(batch).__name__}`"
        raise ValueError(
            f"`{type(phase).__name__}` takes batches that are a pair of inputs and targets, but got {what}. Make the"
            " data yield pairs, or override `step(self, learner, batch)` in a phase of your own."
        )
    return batch[0], batch[1]
