"""What a command says when it cannot do what it was asked for."""

from __future__ import annotations


class CommandError(Exception):
    """A command cannot do what it was asked for: its message is printed, and the exit status is 2."""
