"""What has to be saved of a training so that it can go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fabric_lite.permissions import unwrap
from fabric_lite.utilities.seed import RNGState
from fabric_lite.utilities.types import _Stateful


class CallbacksOfEachRank:
    """The callbacks whose state differs from process to process, such as metrics in the middle of an epoch.

    Args:
        callbacks: All callbacks.
    """

    differs_by_rank = True

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks

    @classmethod
    def among(cls, callbacks: Iterable[Any]) -> CallbacksOfEachRank | None:
        """Those that say so; None if there are none."""
        found = [callback for callback in map(unwrap, callbacks) if getattr(callback, "differs_by_rank", False)]
        return cls(found) if found else None

    def state_dict(self) -> dict[str, Any]:
        """Their states, by number."""
        return {str(number): callback.state_dict() for number, callback in enumerate(self.callbacks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give them their states.

        Args:
            state: From `state_dict`.
        """
        for number, callback in enumerate(self.callbacks):
            if str(number) in state:
                callback.load_state_dict(state[str(number)])


def training_state(learner: Any, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The objects that make up a training, by the names under which they are saved.

    Args:
        learner: A `Learner`, or what a loop passes as ``learner``: of ``optimizer``, ``data`` and ``progress``, what it
            has.
        more: More objects.

    Returns:
        For `Fabric.save` and `Fabric.load`.
    """
    fabric = learner.fabric
    data = getattr(learner, "data", None)
    loaders = data if isinstance(data, Mapping) else {}
    parts = {
        "model": learner.model,
        "optimizer": getattr(learner, "optimizer", None),
        "callbacks": fabric.callbacks,
        "callbacks of each rank": CallbacksOfEachRank.among(fabric.callbacks),
        "precision": fabric.strategy.precision,
        "progress": getattr(learner, "progress", None),
        "data": {name: loader for name, loader in loaders.items() if isinstance(loader, _Stateful)},
        "rng": RNGState(),
        **(more or {}),
    }
    parts = {name: dict(part) if isinstance(part, Mapping) else part for name, part in parts.items()}
    return {name: part for name, part in parts.items() if part is not None and part != {}}
