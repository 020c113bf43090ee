"""Says who is missing when a process waits long for the others to save."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SECONDS = 60.0


@contextmanager
def said_who_is_missing(call: str, rank: int, world_size: int) -> Iterator[None]:
    """Under it, a process that waits long says which others have not come to the same call, and the usual reason.

    The environment variable ``FABRIC_LITE_SAVE_WARN_SECONDS`` says what is long; one minute by default.

    Args:
        call: What all processes have to call, as ``fabric.save``.
        rank: Of this process.
        world_size: How many there are. If it is the only one, nothing happens.
    """
    if world_size == 1 or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    store = torch.distributed.distributed_c10d._get_default_store()
    # How often each process has called; of what came to the same number, none is missing.
    mine = store.add(f"fabric_lite/{call}/{rank}", 1)

    def say() -> None:
        others = [other for other in range(world_size) if other != rank]
        missing = [other for other in others if store.add(f"fabric_lite/{call}/{other}", 0) < mine]
        if missing:
            ranks = f"Rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            print(
                f"fabric-lite: rank {rank} has waited {seconds:g} s in `{call}`. {ranks} did not call it yet. All ranks"
                f" have to call it, and the first one writes: if there is an `if rank == 0:` or `if"
                " fabric.is_global_zero:` around it, take it away.",
                file=sys.stderr,
                flush=True,
            )

    seconds = float(os.environ.get("FABRIC_LITE_SAVE_WARN_SECONDS", _SECONDS))
    timer = threading.Timer(seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
