"""What is wrong with a sharded checkpoint, in the words of this package."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from fabric_lite.plugins.io.errors import CheckpointError, UnsafeCheckpointError
from fabric_lite.utilities.types import _PATH


@contextmanager
def reading(path: _PATH) -> Iterator[None]:
    """Under it, errors of reading a folder name the checkpoint.

    Args:
        path: The checkpoint.

    Raises:
        UnsafeCheckpointError: If it has more in it than tensors and plain values.
        CheckpointError: If it is damaged.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        unsafe = "weights_only" in str(error)
        raise (UnsafeCheckpointError if unsafe else CheckpointError)(_sentence(path, error)) from error
    except BaseException as error:
        causes = _failures(error)
        if causes is None:
            raise
        unsafe = any(isinstance(cause, pickle.UnpicklingError) and "weights_only" in str(cause) for cause in causes)
        kind = UnsafeCheckpointError if unsafe else CheckpointError
        raise kind(_sentence(path, causes[0])) from causes[0]


@contextmanager
def writing(path: _PATH) -> Iterator[None]:
    """Under it, what went wrong in some process is an `OSError` in all of them.

    Args:
        path: The checkpoint.

    Raises:
        OSError: If the shards cannot be written.
    """
    try:
        yield
    except BaseException as error:
        causes = _failures(error)
        if causes is None:
            raise
        # torch's zip writer covers up why a write failed: "unexpected pos 704 vs 598"
        hint = " Is the disk full?" if "unexpected pos" in str(causes[0]) else ""
        raise OSError(f"The checkpoint {str(path)!r} was not written.{hint} {causes[0]}") from causes[0]


def _sentence(path: _PATH, cause: BaseException) -> str:
    text = str(cause)
    named = str(path) in text
    return text if named else f"The checkpoint {str(path)!r} is not loaded. {type(cause).__name__}: {text}"


def _failures(error: BaseException) -> list[BaseException] | None:
    """The errors of all processes that torch has gathered; None if it is another error."""
    if type(error).__name__ != "CheckpointException":  # which is no `Exception`, and takes long to import
        return None
    failures = getattr(error, "failures", {})
    return [failure[0] if isinstance(failure, tuple) else failure for failure in failures.values()] or [error]
