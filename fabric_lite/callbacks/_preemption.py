"""Signals by which a cluster announces that it takes the machine away."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)


class Preemption:
    """Takes note of signals, and hands them on to the handlers that were there before.

    Args:
        names: Names of signals, such as ``"SIGTERM"``.

    Attributes:
        received: Number of the signal that came; 0 if none has.

    Raises:
        ValueError: If there is no such signal.
    """

    def __init__(self, names: Sequence[str]) -> None:
        known = signal.Signals.__members__
        for name in names:
            if name not in known and name != "SIGUSR1":  # which Windows does not have
                raise ValueError(f"There is no signal {name!r}. Choose among {', '.join(known)}.")
        self.names = [name for name in names if name in known]
        self.received = 0
        self._previous: dict[int, Any] = {}

    def heed(self) -> None:
        """Begin to take note of the signals. Only the main thread of a program can."""
        self.received = 0
        if threading.current_thread() is not threading.main_thread():
            _log.info("%s are not heeded: this is not the main thread", ", ".join(self.names))
            return
        for name in self.names:
            number = signal.Signals[name].value
            if number not in self._previous:
                self._previous[number] = signal.signal(number, self._take_note)

    def release(self) -> None:
        """Put the previous handlers back, where no other one has come since."""
        while self._previous:
            number, previous = self._previous.popitem()
            if signal.getsignal(number) == self._take_note:
                signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)
