"""How the processes of a run come to be: the seam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class _Launcher(ABC):
    """Starts the processes of a run and runs a function in each of them."""

    requires_function: bool = False
    """Whether `Fabric.launch` must be given the function to run, because processes cannot go on where it was called."""

    @property
    @abstractmethod
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook or at an interactive prompt."""

    @abstractmethod
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the processes and run a function in each.

        Args:
            function: The function.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returned in the process with rank 0.
        """
