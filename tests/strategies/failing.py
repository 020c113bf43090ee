"""A script whose processes fail in the way that its arguments say; `test_failures.py` runs it and looks what is left.

python failing.py START_METHOD WHAT RANK OTHERS FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from fabric_lite import Fabric
from fabric_lite.strategies import DDPStrategy

START_METHOD, WHAT, RANK, OTHERS, FOLDER = sys.argv[1:6]
DEVICES = int(os.environ.get("TEST_DEVICES", "2"))


def fail() -> None:
    match WHAT:
        case "raise":
            raise ValueError("the first failure")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "exit 0":
            sys.exit(0)
        case "wait":
            time.sleep(600)


def train(fabric: Fabric) -> None:
    fabric.barrier()
    Path(FOLDER, f"port {os.environ['MASTER_PORT']}").touch()
    Path(FOLDER, f"reached {fabric.global_rank}").touch()
    fabric.barrier()  # or the failure of one would end another before it has said that it is there
    if fabric.global_rank == int(RANK):
        fail()
        fabric.barrier("theirs")
    if OTHERS == "busy":
        time.sleep(600)
    fabric.barrier("ours")
    fabric.barrier("ours, too")


if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=DEVICES, strategy=DDPStrategy(start_method=START_METHOD))
    if START_METHOD == "popen":
        fabric.launch()
        train(fabric)
    else:
        fabric.launch(train)
