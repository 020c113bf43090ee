"""The exceptions of the permission layer.

Each stands below the one that it is a kind of:

    Exception
    ├── ProtectedException            a callback touched state that it did not declare
    ├── CallbackGraphError            a set of callbacks that cannot work together, found before anything runs
    │   ├── WriteConflictError        two callbacks write the same state and nothing says which runs first
    │   ├── MissingStateError         a callback reads an entry of ``cbstate`` that no callback writes
    │   └── CyclicDependencyError     callbacks that wait for each other
    └── FitException                  control flow: raised in a callback or a step, caught by the training loop
        ├── CancelStepException       leave this step
        ├── CancelEpochException      leave this epoch
        └── CancelFittingException    end fitting
"""

from __future__ import annotations

from collections.abc import Sequence


class ProtectedException(Exception):
    """A guarded callback read or wrote state that its ``stateaccess`` does not allow.

    It is not an `AttributeError`: ``hasattr`` and ``getattr`` with a default would swallow that, and the missing
    declaration would go unnoticed.
    """


class CallbackGraphError(Exception):
    """The callbacks cannot be put in an order.

    All problems of a set come in one report: the error that is raised has the class of the first problem and a
    message that lists them all; `problems` holds each of them.

    Attributes:
        problems: The single problems, in the order of the report. Empty for a problem that is in such a list itself.
    """

    def __init__(self, message: str, problems: Sequence[CallbackGraphError] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class WriteConflictError(CallbackGraphError):
    """Two callbacks touch the same state, at least one of them writes it, and nothing settles which runs first."""


class MissingStateError(CallbackGraphError):
    """A callback reads an entry of ``cbstate`` that no callback writes."""


class CyclicDependencyError(CallbackGraphError):
    """Callbacks wait for each other in a circle."""


def combined(problems: Sequence[CallbackGraphError]) -> CallbackGraphError:
    """One error for several problems, of the class of the first."""
    if len(problems) == 1:
        message = str(problems[0])
    else:
        listed = "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, start=1))
        message = f"{len(problems)} problems with these callbacks:\n{listed}"
    return type(problems[0])(message, problems)


class FitException(Exception):
    """Base of the exceptions that steer a training loop."""


class CancelStepException(FitException):
    """Leave the current step; the loop goes on with the next one."""


class CancelEpochException(FitException):
    """Leave the current epoch; the loop goes on with the next one."""


class CancelFittingException(FitException):
    """End fitting, in an orderly way."""
