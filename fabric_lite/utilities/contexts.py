"""Context managers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


@contextmanager
def entered_together(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter several contexts when this one is entered, and leave them in the reverse order.

    Args:
        *contexts: The contexts.
    """
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
