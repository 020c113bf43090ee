"""Callbacks that declare what state they touch, are checked against each other, and are held to their word."""

from fabric_lite.permissions.access import Read, StateAccess, Write
from fabric_lite.permissions.callback import Callback, NoConflict, Resolution, RunFirst, Unresolvable
from fabric_lite.permissions.conditions import Condition, ConditionalCallback, Throttle, is_guarded, throttle, unwrap
from fabric_lite.permissions.errors import (
    CallbackGraphError,
    CancelEpochException,
    CancelFittingException,
    CancelStepException,
    CyclicDependencyError,
    FitException,
    MissingStateError,
    ProtectedException,
    WriteConflictError,
)
from fabric_lite.permissions.executors import SerialExecutor, ThreadedExecutor
from fabric_lite.permissions.graph import CallbackGraph, Edge
from fabric_lite.permissions.guard import Guard
from fabric_lite.permissions.protected import Protected
from fabric_lite.permissions.state import State
from fabric_lite.permissions.strict import MutationCheck

__all__ = [
    "Callback",
    "CallbackGraph",
    "CallbackGraphError",
    "CancelEpochException",
    "CancelFittingException",
    "CancelStepException",
    "Condition",
    "ConditionalCallback",
    "CyclicDependencyError",
    "Edge",
    "FitException",
    "Guard",
    "MissingStateError",
    "MutationCheck",
    "NoConflict",
    "Protected",
    "ProtectedException",
    "Read",
    "Resolution",
    "RunFirst",
    "SerialExecutor",
    "State",
    "StateAccess",
    "ThreadedExecutor",
    "Throttle",
    "Unresolvable",
    "Write",
    "WriteConflictError",
    "is_guarded",
    "throttle",
    "unwrap",
]
