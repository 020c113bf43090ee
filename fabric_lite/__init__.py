"""fabric-lite: devices, precision and an open hook bus for hand-written PyTorch training loops."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

from fabric_lite.__about__ import __version__ as __version__
from fabric_lite.fabric import Fabric
from fabric_lite.utilities.lazy import names_on_demand as _names_on_demand
from fabric_lite.utilities.seed import seed_everything
from fabric_lite.wrappers import is_wrapped

if _TYPE_CHECKING:
    from fabric_lite.events import (
        AbstractTrainingPhase,
        AbstractValidationPhase,
        Event,
        Phase,
        TrainingPhase,
        ValidationPhase,
    )
    from fabric_lite.learner import Learner
    from fabric_lite.permissions import (
        Callback,
        CallbackGraph,
        CallbackGraphError,
        CancelEpochException,
        CancelFittingException,
        CancelStepException,
        ConditionalCallback,
        CyclicDependencyError,
        FitException,
        MissingStateError,
        NoConflict,
        Protected,
        ProtectedException,
        Read,
        RunFirst,
        SerialExecutor,
        State,
        ThreadedExecutor,
        Unresolvable,
        Write,
        WriteConflictError,
        throttle,
    )

__all__ = [
    "AbstractTrainingPhase",
    "AbstractValidationPhase",
    "Callback",
    "CallbackGraph",
    "CallbackGraphError",
    "CancelEpochException",
    "CancelFittingException",
    "CancelStepException",
    "ConditionalCallback",
    "CyclicDependencyError",
    "Event",
    "Fabric",
    "FitException",
    "Learner",
    "MissingStateError",
    "NoConflict",
    "Phase",
    "Protected",
    "ProtectedException",
    "Read",
    "RunFirst",
    "SerialExecutor",
    "State",
    "ThreadedExecutor",
    "TrainingPhase",
    "Unresolvable",
    "ValidationPhase",
    "Write",
    "WriteConflictError",
    "is_wrapped",
    "seed_everything",
    "throttle",
]

_EVENTS = ("AbstractTrainingPhase", "AbstractValidationPhase", "Event", "Phase", "TrainingPhase", "ValidationPhase")
_HOMES = {
    **{name: "permissions" for name in __all__ if name not in ("Fabric", "is_wrapped", "seed_everything")},
    **dict.fromkeys(_EVENTS, "events"),
    "Learner": "learner",
    **dict.fromkeys(("callbacks", "learner", "loggers", "permissions"), ""),
}

# Plain callbacks and loops without loggers do not pay for what they do not use.
__getattr__ = _names_on_demand(__name__, _HOMES)
