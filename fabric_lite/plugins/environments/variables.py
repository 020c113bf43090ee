"""Reading what a launcher or a scheduler left in the environment."""

from __future__ import annotations

import os


class MissingVariableError(KeyError, ValueError):
    """A variable that a cluster environment needs is not set."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the repr of its message


def read(name: str, remedy: str) -> str:
    """The value of a variable.

    Args:
        name: Of the variable.
        remedy: What to do if it is not there: a sentence.

    Returns:
        The value, without white space around it.

    Raises:
        MissingVariableError: If it is not set, or empty.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise MissingVariableError(f"The environment variable `{name}` is not set. {remedy}")
    return value


def read_number(name: str, remedy: str) -> int:
    """The value of a variable that holds an integer.

    Args:
        name: Of the variable.
        remedy: What to do if it is not there: a sentence.

    Returns:
        The number.

    Raises:
        MissingVariableError: If it is not set, or empty.
        ValueError: If it is no integer.
    """
    value = read(name, remedy)
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"The environment variable `{name}={value}` is not an integer. {remedy}") from None
