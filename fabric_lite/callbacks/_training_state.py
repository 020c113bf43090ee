"""What has to be saved of a training so that it can go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabric_lite.utilities.seed import RNGState
from fabric_lite.utilities.types import _Stateful


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
        "precision": fabric.strategy.precision,
        "progress": getattr(learner, "progress", None),
        "data": {name: loader for name, loader in loaders.items() if isinstance(loader, _Stateful)},
        "rng": RNGState(),
        **(more or {}),
    }
    parts = {name: dict(part) if isinstance(part, Mapping) else part for name, part in parts.items()}
    return {name: part for name, part in parts.items() if part is not None and part != {}}
