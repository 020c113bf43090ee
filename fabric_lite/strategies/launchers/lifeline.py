"""No process outlives the one that started it, however that one ends: the kernel sees to it, or a watching thread."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def end_with(starter: int) -> None:
    """Let this process end as soon as the one that started it has ended, a SIGKILL included.

    Args:
        starter: The id of the process that started this one.
    """
    if os.getppid() == starter and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != starter:  # it ended before we could ask
            os._exit(1)
        return
    # Elsewhere, or if somebody stands in between, as the server of the start method "forkserver".
    threading.Thread(target=_end_after, args=(starter,), name="fabric-lite-lifeline", daemon=True).start()


def _end_after(starter: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid == starter:
        parent.join()
    else:
        while _is_alive(starter):
            time.sleep(0.5)
    os._exit(1)


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        return os.getppid() == process  # a signal of 0 would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
