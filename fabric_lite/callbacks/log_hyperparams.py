"""`LogHyperParams`: what a training was started with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fabric_lite.callbacks._logging import LoggingCallback
from fabric_lite.permissions import Read, StateAccess


class LogHyperParams(LoggingCallback):
    """Logs hyperparameters when fitting begins; in a loop without ``on_fit_begin``, when the first epoch begins.

    By itself it finds the class of the model, the name of the loss function, and the class and defaults of the
    optimizer; of several models or optimizers, those of each by name.

    Reads ``model``, ``lossfn`` and ``optimizer`` (the loop need not have them); ``fabric`` if no loggers are given.

    Args:
        *loggers: Where to; by default, to the loggers of the learner's `Fabric`.
        params: More hyperparameters by name, in any nesting. They go before those that were found.
    """

    def __init__(self, *loggers: Any, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(*loggers)
        self.params = dict(params or {})
        self._logged = False

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {**super().stateaccess(), "model": Read(), "lossfn": Read(), "optimizer": Read()}

    def on_fit_begin(self, learner: Any) -> None:
        """Log the hyperparameters.

        Args:
            learner: The learner.
        """
        self._logged = True
        for logger in self.targets(learner):
            if hasattr(logger, "log_hyperparams"):  # which a logger need not have
                logger.log_hyperparams({**found(learner), **self.params})

    def on_epoch_begin(self, learner: Any) -> None:
        """Log the hyperparameters, if that has not been done.

        Args:
            learner: The learner.
        """
        if not self._logged:
            self.on_fit_begin(learner)


def found(learner: Any) -> dict[str, Any]:
    """The hyperparameters that a learner shows.

    Args:
        learner: The learner.

    Returns:
        Names and plain values by name; nothing for what it does not have.
    """
    parts = {
        "model": _each(getattr(learner, "model", None), lambda model: _class_name(getattr(model, "module", model))),
        "lossfn": _each(getattr(learner, "lossfn", None), lambda fn: getattr(fn, "__name__", None) or _class_name(fn)),
        "optimizer": _each(getattr(learner, "optimizer", None), _optimizer),
    }
    return {name: part for name, part in parts.items() if part is not None}


def _each(value: Any, describe: Any) -> Any:
    """A description of one object, or of each of several by name."""
    if value is None:
        return None
    return {name: describe(one) for name, one in value.items()} if isinstance(value, Mapping) else describe(value)


def _optimizer(optimizer: Any) -> dict[str, Any]:
    defaults = {
        name: value.tolist() if isinstance(value, Tensor) else value for name, value in optimizer.defaults.items()
    }
    return {"name": _class_name(optimizer), **{name: value for name, value in defaults.items() if value is not None}}


def _class_name(value: Any) -> str:
    # a wrapped optimizer passes for the one inside
    return str(value.__class__.__name__)
