"""Processes that run one function together: the first failure is the one that is told, and it ends them all."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fabric_lite.strategies.launchers.lifeline import end_with

# How long a process that was asked to end may take before it is killed.
GRACE = 3.0
# Within this time of a failure others may come to light that happened before.
_SETTLING = 0.3
# Processes of the processes may hold our pipes open, so that an end does not show there.
_LOOK_EVERY = 0.2


# What takes long to import, and is there already when a fork server starts a process.
_PRELOAD = [
    "fabric_lite.strategies.launchers.multiprocessing",
    "fabric_lite.utilities.distributed",
    "torch._dynamo",  # each optimizer imports it
    "torch.distributed.fsdp",
]
_PRELOAD_IF_HERE = ["lightning_utilities.core.apply_func", "numpy", "pytest"]


class NotEnded(Exception):
    """Some processes are still at work after the time that they had.

    Args:
        ranks: Which ones.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__(ranks)
        self.ranks = ranks


class _Report(NamedTuple):
    """What a process says at its end: when that was, and either why it failed or what it returns."""

    time: float
    failure: str | None
    result: bytes


@dataclass(eq=False)
class _Worker:
    rank: int
    process: BaseProcess
    pipe: Connection
    report: _Report | None = None
    silent: bool = False

    def listen(self) -> None:
        """Take in the report, if there is one."""
        if self.report is None and not self.silent and self.pipe.poll():
            try:
                self.report = self.pipe.recv()
            except (EOFError, OSError):
                self.silent = True

    @property
    def signals(self) -> Connection | int:
        """What becomes readable when something happens to it."""
        return self.process.sentinel if self.report is not None or self.silent else self.pipe

    @property
    def is_known(self) -> bool:
        """Whether there is nothing more to learn of how it ended."""
        return self.report is not None or self.has_ended

    @property
    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    @property
    def has_failed(self) -> bool:
        if self.report is not None and self.report.failure is not None:
            return True
        return self.process.exitcode not in (None, 0)


def get_context(start_method: str) -> BaseContext:
    """How processes are started.

    Args:
        start_method: The name of it.

    Returns:
        What the standard library has for it; with ``"forkserver"``, processes start with torch imported, unless this
        program has chosen what is imported.
    """
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        chosen = getattr(multiprocessing.forkserver._forkserver, "_preload_modules", None)
        if chosen in (None, ["__main__"]):
            here = [name for name in _PRELOAD_IF_HERE if name in sys.modules]
            context.set_forkserver_preload(["__main__", *_PRELOAD, *here])
    return context


def run_workers(
    context: BaseContext, work: Callable[[int], Any], processes: int, timeout: float | None = None
) -> list[Any]:
    """Run a function in several processes, and wait for all of them. None of them is left afterwards.

    Args:
        context: How processes are started.
        work: The function; it gets the rank.
        processes: How many.
        timeout: How many seconds they may take together; None for as long as they like.

    Returns:
        What the function returned, by rank; None where it ended by ``sys.exit()``.

    Raises:
        TypeError: If the function cannot be sent to the processes.
        ProcessRaisedException: If the function raised in a process; the message has the traceback of the first one.
        ProcessExitedException: If a process ended otherwise, for example by a signal.
        NotEnded: If there was not enough time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    workers: list[_Worker] = []
    try:
        for rank in range(processes):
            workers.append(_start(context, work, rank))
        _wait_for(workers, deadline)
        return [pickle.loads(worker.report.result) if worker.report else None for worker in workers]
    finally:
        _end(workers)


def _start(context: BaseContext, work: Callable[[int], Any], rank: int) -> _Worker:
    receiver, sender = context.Pipe(duplex=False)
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=_work, args=(rank, work, sender, os.getpid()), name=f"rank {rank}"
    )
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        receiver.close()
        raise TypeError(
            f"The function or its arguments cannot be sent to another process: {error} Pass a function that is defined"
            " at the top of a module, and arguments that pickle; make the rest inside of the function."
        ) from error
    finally:
        sender.close()
    return _Worker(rank, process, receiver)


def _work(rank: int, work: Callable[[int], Any], pipe: Connection, starter: int) -> None:
    """What a process does."""
    end_with(starter)
    failure, result = None, b""
    try:
        value = work(rank)
        try:
            result = pickle.dumps(value)
        except Exception as error:
            raise TypeError(f"What rank {rank} returns cannot be sent back, a `{type(value).__name__}`.") from error
    except SystemExit as error:
        result = pickle.dumps(None)
        failure = traceback.format_exc() if error.code not in (None, 0) else None
    except BaseException:
        failure = traceback.format_exc()
    with suppress(OSError):  # nobody listens any more
        pipe.send(_Report(time.monotonic(), failure, result))
    pipe.close()
    if failure is not None:
        sys.exit(1)


def _wait_for(workers: list[_Worker], deadline: float | None) -> None:
    """Return when all have ended, or raise."""
    while not any(worker.has_failed for worker in workers):
        left = [worker for worker in workers if not worker.has_ended]
        if not left:
            break
        patience = _LOOK_EVERY if deadline is None else min(_LOOK_EVERY, deadline - time.monotonic())
        if patience < 0:
            raise NotEnded([worker.rank for worker in left])
        _listen(workers, patience)
    else:
        settled = time.monotonic() + _SETTLING
        while (patience := settled - time.monotonic()) > 0 and not all(worker.is_known for worker in workers):
            _listen(workers, patience)
    _listen(workers, 0.0)
    failed = [worker for worker in workers if worker.has_failed]
    if failed:
        raise _describe(min(failed, key=_time_of_failure), len(workers))


def _listen(workers: list[_Worker], patience: float) -> None:
    """Wait until something happens to a process, and take in the reports."""
    wait([worker.signals for worker in workers if not worker.has_ended], patience)
    for worker in workers:
        worker.listen()


def _time_of_failure(worker: _Worker) -> float:
    # Who ended without a word was not brought down by the others: these say that they lost somebody.
    return worker.report.time if worker.report is not None and worker.report.failure is not None else 0.0


def _describe(worker: _Worker, processes: int) -> Exception:
    rank, pid, code = worker.rank, worker.process.pid or 0, worker.process.exitcode or 0
    if worker.report is not None and worker.report.failure is not None:
        return ProcessRaisedException(
            f"rank {rank} of {processes} failed first. Its traceback:\n\n{worker.report.failure}", rank, pid
        )
    if code < 0:
        name = signal_name(-code)
        return ProcessExitedException(
            f"rank {rank} of {processes} (process {pid}) was ended by {name}.", rank, pid, code, name
        )
    hint = " It had not run anything yet: what it printed says why." if worker.report is None else ""
    return ProcessExitedException(
        f"rank {rank} of {processes} (process {pid}) ended with exit code {code}.{hint}", rank, pid, code
    )


def signal_name(number: int) -> str:
    """What people call a signal.

    Args:
        number: Its number.

    Returns:
        For example ``"SIGKILL"``.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(workers: list[_Worker]) -> None:
    """End the processes that still run, and give back what was held for them."""
    for worker in workers:
        if not worker.has_ended:
            worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if not worker.has_ended:
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        worker.pipe.close()
