"""Functions that do their work on one rank only.

The same as `lightning_utilities.core.rank_zero`, whose import costs a third of what ours may cost in all.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")

_log = logging.getLogger(__name__)

# LOCAL_RANK comes before SLURM_PROCID, which is also set when SLURM gave the machine but did not start the process.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def _get_rank() -> int | None:
    """The rank that a launcher put into the environment, or None if there was no launcher."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), None)


class _RankZeroOnly:
    """The decorator, and the rank of this process.

    Attributes:
        rank: Index of this process among all; a cluster environment sets it.
    """

    def __init__(self) -> None:
        self.rank = _get_rank() or 0

    def __call__(self, fn: Callable[_P, _T], default: _T | None = None) -> Callable[_P, _T | None]:
        """Make a function run on rank zero only.

        Args:
            fn: The function.
            default: What it returns on the other ranks.
        """

        @wraps(fn)
        def on_rank_zero(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
            return fn(*args, **kwargs) if self.rank == 0 else default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()


# A `stacklevel` means what it means to lightning-utilities, whose decorators put two more frames on the stack.
_FEWER = 2


def rank_zero_debug(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a message for debugging, on rank zero.

    Args:
        *args: As for `logging.Logger.debug`.
        stacklevel: Whose line is named: 4 for the caller's, 5 for that of its caller.
        **kwargs: As for `logging.Logger.debug`.
    """
    if rank_zero_only.rank == 0:
        _log.debug(*args, stacklevel=stacklevel - _FEWER, **kwargs)


def rank_zero_info(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a message for information, on rank zero.

    Args:
        *args: As for `logging.Logger.info`.
        stacklevel: Whose line is named: 4 for the caller's, 5 for that of its caller.
        **kwargs: As for `logging.Logger.info`.
    """
    if rank_zero_only.rank == 0:
        _log.info(*args, stacklevel=stacklevel - _FEWER, **kwargs)


def rank_zero_warn(message: str | Warning, stacklevel: int = 4, **kwargs: Any) -> None:
    """Warn, on rank zero.

    Args:
        message: The message.
        stacklevel: Whose line is named: 4 for the caller's, 5 for that of its caller.
        **kwargs: As for `warnings.warn`.
    """
    if rank_zero_only.rank == 0:
        warnings.warn(message, stacklevel=stacklevel - _FEWER, **kwargs)


def rank_zero_deprecation(message: str | Warning, stacklevel: int = 5, **kwargs: Any) -> None:
    """Warn of something deprecated, on rank zero.

    Args:
        message: The message.
        stacklevel: Whose line is named: 5 for the caller's, 6 for that of its caller.
        **kwargs: As for `warnings.warn`.
    """
    rank_zero_warn(message, stacklevel=stacklevel, category=kwargs.pop("category", DeprecationWarning), **kwargs)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """Put the rank in front of a message.

    Args:
        message: The message.
        rank: The rank; None to leave the message as it is.
    """
    return message if rank is None else f"[rank: {rank}] {message}"


class WarningCache(set[str]):
    """Remembers messages, and gives each one once."""

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Warn, on rank zero, unless it was done before.

        Args:
            message: The message.
            stacklevel: Whose line is named: 5 for the caller's.
            **kwargs: As for `warnings.warn`.
        """
        if message not in self:
            self.add(message)
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 6, **kwargs: Any) -> None:
        """Warn of something deprecated, on rank zero, unless it was done before.

        Args:
            message: The message.
            stacklevel: Whose line is named: 6 for the caller's.
            **kwargs: As for `warnings.warn`.
        """
        if message not in self:
            self.add(message)
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Log a message for information, on rank zero, unless it was done before.

        Args:
            message: The message.
            stacklevel: Whose line is named: 5 for the caller's.
            **kwargs: As for `logging.Logger.info`.
        """
        if message not in self:
            self.add(message)
            rank_zero_info(message, stacklevel=stacklevel, **kwargs)
