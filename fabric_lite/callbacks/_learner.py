"""What callbacks ask of a learner that may not have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_first(learner: Any) -> bool:
    """Whether this is the first process, the one that prints. Without a Fabric, there is one.

    Args:
        learner: The learner.
    """
    fabric = getattr(learner, "fabric", None)
    return fabric is None or bool(fabric.is_global_zero)


def steps_in_epoch(learner: Any, phase: Any) -> int | None:
    """How many steps an epoch has; None if that is not known.

    Args:
        learner: The learner.
        phase: The phase.
    """
    data = getattr(learner, "data", None)
    loader: Any = data.get(phase.name) if isinstance(data, Mapping) and phase is not None else None
    try:
        return len(loader)
    except TypeError:  # there is none, or it has no length
        return None
