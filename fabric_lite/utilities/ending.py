"""Threads of libraries, which may need Python once more when the program ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")


def let_threads_finish(milliseconds: int = 1000) -> None:
    """Wait until no other thread runs; where that cannot be seen, for a moment.

    After the last collective, a thread of gloo still gives a tensor back to Python. If it comes to that only when the
    interpreter is being taken down, it aborts the process: with torch 2.13, in one of twelve short runs. A process
    group would wait for its threads, but not while something refers to it, such as a module in DDP.

    Args:
        milliseconds: How long to wait at most, for a thread of the user's may run for ever.
    """
    own = str(threading.get_native_id())
    for _ in range(milliseconds):
        time.sleep(0.001)  # meanwhile, others can have the interpreter
        if not any(_runs(task) for task in (_TASKS.iterdir() if _TASKS.is_dir() else ()) if task.name != own):
            break


def _runs(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it has ended meanwhile
        return False
