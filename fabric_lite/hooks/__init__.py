"""The hook bus: calls a method by its name on every callback that has one. Free of torch."""

from fabric_lite.hooks.callbacks import Callbacks, Handle, IncompatibleState, Uncalled
from fabric_lite.hooks.dispatch import Call, Executor, Guard, Independence
from fabric_lite.hooks.signature import Accepted, accepted

__all__ = [
    "Accepted",
    "Call",
    "Callbacks",
    "Executor",
    "Guard",
    "Handle",
    "IncompatibleState",
    "Independence",
    "Uncalled",
    "accepted",
]
