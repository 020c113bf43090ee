"""How the callbacks of one hook are run: one after the other, or at the same time where nothing forbids it."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any

from fabric_lite.hooks.dispatch import Call, Independence

__all__ = ["SerialExecutor", "ThreadedExecutor"]

#: Set in the threads of a pool: a hook called from there runs serially, since waiting for the pool could take forever.
_in_worker: contextvars.ContextVar[bool] = contextvars.ContextVar("fabric_lite_in_worker", default=False)


class SerialExecutor:
    """One call after the other; an exception ends it."""

    def run(self, calls: Sequence[Call], graph: Independence) -> None:
        """Make the calls in order."""
        for call in calls:
            call()


class ThreadedExecutor:
    """Runs guarded callbacks at the same time where no path of the graph connects them; plain ones run alone.

    It pays where callbacks wait for a disk or a network. What callbacks do to shared state, and the exception that is
    raised, are the same as with `SerialExecutor`: when one fails, those before it in serial order still run, those
    after it that have not begun do not, and of several exceptions the first in serial order is raised. Context
    variables are seen in the threads; changes to them are not seen outside.

    The threads start with the first hook that has use for them, and end with `close` or with the executor. A hook that
    a callback calls from one of them runs serially there.

    Args:
        max_workers: How many threads; as many as `concurrent.futures.ThreadPoolExecutor` takes by default.
        context: Called for each call in the calling thread; the context manager that it returns is entered in the
            thread of the call. It carries over what libraries keep per thread.
    """

    def __init__(
        self, max_workers: int | None = None, context: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"ThreadedExecutor got max_workers={max_workers!r}; it needs at least 1.")
        self.max_workers = max_workers
        self.context = context
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._finalizer: weakref.finalize[..., Any] | None = None

    def run(self, calls: Sequence[Call], graph: Independence) -> None:
        """Make the calls, at the same time where the graph allows it."""
        if len(calls) < 2 or _in_worker.get():
            SerialExecutor().run(calls, graph)
            return
        waits = [
            {earlier for earlier in range(place) if not graph.independent(calls[earlier].callback, call.callback)}
            for place, call in enumerate(calls)
        ]
        _Run(calls, waits, self._submit).finish()

    def close(self) -> None:
        """End the threads; the next hook that needs some starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if pool is not None and self._process == os.getpid():
            pool.shutdown()

    def _submit(self, call: Call) -> Future[None]:
        carried = self.context() if self.context is not None else contextlib.nullcontext()
        return self._threads().submit(contextvars.copy_context().run, _work, call, carried)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            # A forked process has the pool, but not its threads.
            if self._pool is None or self._process != os.getpid():
                if self._finalizer is not None:
                    self._finalizer.detach()
                self._pool = ThreadPoolExecutor(self.max_workers, thread_name_prefix="fabric-lite-callback")
                self._process = os.getpid()
                self._finalizer = weakref.finalize(self, self._pool.shutdown, wait=False)
            return self._pool

    def __reduce__(self) -> tuple[Any, ...]:
        return ThreadedExecutor, (self.max_workers, self.context)


def _work(call: Call, carried: AbstractContextManager[Any]) -> None:
    """What runs in a thread."""
    _in_worker.set(True)
    with carried:
        call()


class _Run:
    """One hook in the making.

    Args:
        calls: The calls, in serial order.
        waits: For each the places of those that it waits for, all of them before it.
        submit: Starts a call in a thread.
    """

    def __init__(
        self, calls: Sequence[Call], waits: Sequence[set[int]], submit: Callable[[Call], Future[None]]
    ) -> None:
        self.calls = calls
        self.waits = waits
        self.submit = submit
        self.todo = list(range(len(calls)))
        self.done: set[int] = set()
        self.running: dict[Future[None], int] = {}
        self.failed = len(calls)  # The first in serial order that has failed: none after it begins.
        self.error: BaseException | None = None

    def finish(self) -> None:
        """Make all calls that are to be made, and raise what serial execution would have raised."""
        try:
            while self._start() or self.running:
                self._collect()
        finally:
            # An exception of our own, such as Ctrl-C: nothing is left running behind the caller's back.
            for future in self.running:
                future.cancel()
            wait(self.running)
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # The traceback leads here: no cycle.

    def _start(self) -> bool:
        """Begin what waits for nothing any more. Whether a call was made in this thread, and the next can be due."""
        ready = [place for place in self.todo if place < self.failed and self.waits[place] <= self.done]
        for place in ready:
            self.todo.remove(place)
        if len(ready) == 1 and not self.running:
            # Alone: no thread needed.
            try:
                self.calls[ready[0]]()
            except BaseException as error:
                self._note(ready[0], error)
            else:
                self.done.add(ready[0])
            return True
        for place in ready:
            self.running[self.submit(self.calls[place])] = place
        return False

    def _collect(self) -> None:
        """Wait until a call ends, and take note of how."""
        if not self.running:
            return
        for future in wait(self.running, return_when=FIRST_COMPLETED).done:
            place = self.running.pop(future)
            error = future.exception()
            if error is None:
                self.done.add(place)
            else:
                self._note(place, error)

    def _note(self, place: int, error: BaseException) -> None:
        if place < self.failed:
            self.failed, self.error = place, error
