"""Watches over the processes that this one started, and over this one: none of them goes on without the others."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any, NoReturn

from fabric_lite.strategies.launchers.workers import GRACE, signal_name

_LOOK_EVERY = 0.1
_INTERRUPTED = 128 + signal.SIGINT


class _Watch(threading.Thread):
    """Ends all processes of this machine when one of them has failed.

    - Another one fails: this one has a moment to notice by itself (a lost connection raises), then it is ended, too.
    - This one fails: the others are ended at once.
    - This one ends well: it waits for the others, and if one of them fails then, its exit code is not 0.
    - Ctrl-C while this one is inside of a call that Python cannot interrupt (a collective): all are ended.

    Args:
        processes: The other processes, by local rank from 1.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        super().__init__(name="fabric-lite-watch", daemon=True)
        self._processes = processes
        self._failed = False
        self._script = _Script()
        self._interrupt = _Interrupt()

    def start(self) -> None:
        """Begin, and see to the end of this process."""
        self._script.listen()
        self._interrupt.listen()
        # What is registered first runs last: at that time the process group has been taken down.
        atexit.register(self._leave)
        super().start()

    def run(self) -> None:
        """Look until all have ended well, or something has failed."""
        while any(code != 0 for code in [process.poll() for process in self._processes]):
            if any(process.returncode for process in self._processes):
                self._failed = True
                for rank, process in enumerate(self._processes, 1):
                    if process.returncode:
                        _say(f"local rank {rank} {_describe(process)}; the others are ended, too.")
                _wait_for_main_thread()
                self._end_others()
                _end_main_thread(1)
                return
            if self._script.has_failed:
                self._end_others()
                return
            if self._interrupt.is_stuck:
                self._failed = True
                _say("Ctrl-C; the processes are ended.")
                self._end_others()
                _wait_for_main_thread()
                _end_main_thread(_INTERRUPTED)
                return
            self._interrupt.wait(_LOOK_EVERY)

    def _end_others(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _leave(self) -> None:
        """What this process does at its end."""
        try:
            self.join()
        except KeyboardInterrupt:
            self._end_others()
            _exit_now(_INTERRUPTED)
        if self._failed:
            _exit_now(self._script.exit_code or 1)


class _Script:
    """Notices that the script of this process fails, by an exception or by `sys.exit`.

    Python keeps the exception that ends a program, but not the code of a `SystemExit`. So `sys.exit` makes way for a
    function that keeps it: in the process that waits for others, from the launch on, and nowhere else.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._error_before: BaseException | None = None

    def listen(self) -> None:
        self._error_before = getattr(sys, "last_value", None)
        original = sys.exit

        def exit(status: Any = None, /) -> NoReturn:
            self.exit_code = status if isinstance(status, int) else int(status is not None)
            original(status)

        sys.exit = exit

    @property
    def has_failed(self) -> bool:
        """Whether the main thread has come to its end, and not well."""
        if threading.main_thread().is_alive():
            return False
        return self.exit_code != 0 or getattr(sys, "last_value", None) is not self._error_before


class _Interrupt:
    """Notices a Ctrl-C of which the main thread does not hear, because it is inside of a call of foreign code."""

    def __init__(self) -> None:
        self._pipe: int | None = None
        self._since: float | None = None
        self._place: tuple[int, int] | None = None

    def listen(self) -> None:
        """Have each signal written into a pipe, unless somebody else has that already."""
        if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        if before == -1:
            self._pipe = reader
        else:
            signal.set_wakeup_fd(before)
            os.close(reader)
            os.close(writer)

    def wait(self, seconds: float) -> None:
        """Wait, but only until a signal comes.

        Args:
            seconds: How long.
        """
        if self._pipe is None:
            time.sleep(seconds)
        elif (
            wait([self._pipe], seconds)
            and signal.SIGINT in os.read(self._pipe, 4096)
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._since, self._place = time.monotonic(), _place_of_main_thread()

    @property
    def is_stuck(self) -> bool:
        """Whether the main thread stands for some time now where it stood at the Ctrl-C."""
        if self._since is not None and _place_of_main_thread() != self._place:
            self._since = None
        return self._since is not None and time.monotonic() - self._since > GRACE


def _place_of_main_thread() -> tuple[int, int] | None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return None if frame is None else (id(frame), frame.f_lasti)


def _wait_for_main_thread() -> None:
    """Give it time to end by itself."""
    deadline = time.monotonic() + GRACE
    while threading.main_thread().is_alive() and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY / 2)


def _end_main_thread(exit_code: int) -> None:
    """End this process, unless its interpreter is on its way out by itself: it may have files to write."""
    if threading.main_thread().is_alive():
        _exit_now(exit_code)


def _describe(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    ended = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"(process {process.pid}) {ended}"


def _say(sentence: str) -> None:
    print(f"fabric-lite: {sentence}", file=sys.stderr, flush=True)


def _exit_now(code: int) -> NoReturn:
    """End this process with an exit code, which nothing can change any more once the script has ended."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)
