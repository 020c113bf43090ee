"""Writing in the background: one thread at a time, whose errors are not lost."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TextIO

from fabric_lite.plugins.io.errors import CheckpointError
from fabric_lite.utilities.types import _PATH

# Here, and not in an object, because at the exit of the process there may be no object any more: threads that write,
# and failures that nobody has asked for. Neither keeps a Fabric alive.
_running: dict[threading.Thread, str] = {}  # with the paths they write to
_failures: list[SaveFuture] = []
_reports_in: set[int] = set()  # processes that report failures at their exit; one that was forked must see to it itself


class SaveFuture(Future[None]):
    """A checkpoint that is being written. `result` waits, and raises what went wrong.

    Attributes:
        path: Where.
    """

    def __init__(self, path: _PATH) -> None:
        super().__init__()
        self.path = path
        self._process = os.getpid()

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was not inherited: where a process was forked, nobody writes."""
        return self._process == os.getpid()

    def result(self, timeout: float | None = None) -> None:
        """Wait until the checkpoint is there, whole.

        Args:
            timeout: Give up after so many seconds.

        Raises:
            TimeoutError: If it takes longer.
            Exception: What went wrong.
        """
        super().result(_seen(self, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the checkpoint is there or its writing has failed.

        Args:
            timeout: Give up after so many seconds.

        Returns:
            What went wrong, if anything.

        Raises:
            TimeoutError: If it takes longer.
        """
        return super().exception(_seen(self, timeout))


def _seen(future: SaveFuture, timeout: float | None) -> float | None:
    """Wait, and take note that the outcome is asked for."""
    wait([future], timeout)
    if future in _failures:
        _failures.remove(future)
    return timeout if not future.done() else None


class BackgroundSaver:
    """Writes checkpoints in the background, one after the other."""

    def __init__(self) -> None:
        self._last: SaveFuture | None = None

    def __reduce__(self) -> Any:  # what is being written is, in this process
        return BackgroundSaver, ()

    def start(self, path: _PATH, write: Callable[[], None] | None) -> SaveFuture:
        """Start writing; `settle` must have been called.

        Args:
            path: Where.
            write: Writes. None if there is nothing to do in this process.

        Returns:
            Tells when it is done.
        """
        future = SaveFuture(path)
        future.set_running_or_notify_cancel()
        if write is None:
            future.set_result(None)
            return future
        _report_at_exit()
        # No daemon: the interpreter waits for it to end.
        thread = threading.Thread(target=_run, args=(future, [write]), name="fabric-lite-save", daemon=False)
        _running[thread] = str(path)
        self._last = future
        thread.start()
        return future

    def settle(self, path: _PATH) -> SaveFuture | None:
        """Wait until nothing is being written, and by others nothing to a path.

        Args:
            path: The path that is written to next.

        Returns:
            What has failed, if nobody has asked for it; it counts as asked for now.
        """
        _await(path)
        last, self._last = self._last, None
        if last is None or not last.is_of_this_process:
            return None
        wait([last])
        if last not in _failures:
            return None
        _failures.remove(last)
        return last

    def wait(self, path: _PATH) -> None:
        """Wait until nothing is being written, and by others nothing to a path.

        Args:
            path: If writing to it has failed and nobody has asked for it, that is raised.
        """
        _await(path)
        if self._last is not None and self._last.is_of_this_process:
            wait([self._last])
            if str(self._last.path) == str(path) and self._last in _failures:
                self._last.result()


def _await(path: _PATH) -> None:
    """Wait until no Fabric of this process writes to a path."""
    for thread, target in list(_running.items()):
        if target == str(path):
            thread.join()


def _run(future: SaveFuture, work: list[Callable[[], None]]) -> None:
    """Write, in a thread of its own."""
    try:
        work.pop()()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # in which there is the whole snapshot
        _failures.append(future)
        future.set_exception(error)
    else:
        future.set_result(None)
    finally:
        _running.pop(threading.current_thread(), None)


def raise_earlier(failed: SaveFuture, path: _PATH) -> None:
    """Raise what went wrong in the background, with a word on why it comes up here.

    Args:
        failed: The checkpoint that was not written.
        path: The one that was saved meanwhile.
    """
    error = failed.exception()
    if error is None:
        return
    if hasattr(error, "add_note"):
        error.add_note(
            f"This happened in the background, to `fabric.save_async({str(failed.path)!r}, ...)`, and nobody had asked"
            f" for its `result()`. The checkpoint {str(path)!r} is not concerned."
        )
    raise error


def _report_at_exit() -> None:
    """See to it that failures nobody asked for are reported when this process ends, also one of multiprocessing."""
    from multiprocessing.util import Finalize

    if os.getpid() not in _reports_in:
        _reports_in.clear()
        _reports_in.add(os.getpid())
        _failures.clear()
        _running.clear()
        Finalize(None, _report, exitpriority=-100)


def _report() -> None:
    for thread in list(_running):
        thread.join()
    failures = list(_failures)
    for future in failures:
        error = future.exception()
        print(f"fabric-lite: the checkpoint {str(future.path)!r} was not saved in the background:", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
    if failures:
        sys.stderr.flush()
        sys.stdout = _FailingAtExit(sys.stdout)


class _FailingAtExit:
    """Stands in for the standard output when the interpreter ends: if flushing that fails, so does the process.

    It is the only way to a status other than 0 that leaves out nothing of what others have left to do.
    """

    closed = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def flush(self) -> None:
        self._stream.flush()
        raise CheckpointError("a checkpoint was not saved in the background, see above")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
