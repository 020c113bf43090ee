"""A script, also run as a module, whose processes write down what they know of each other.

python launched.py FOLDER [ARGUMENT ...]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from fabric_lite import Fabric

VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def train(fabric: Fabric, offset: int) -> int:
    total = fabric.all_reduce(torch.tensor(float(fabric.global_rank)), reduce_op="sum")
    again = Fabric(accelerator="cpu", devices=fabric.world_size // fabric._connector.num_nodes, strategy="ddp")
    known = {
        "ranks": [fabric.global_rank, fabric.local_rank, fabric.node_rank, fabric.world_size],
        "variables": {name: os.environ[name] for name in VARIABLES},
        "arguments": sys.argv[2:],
        "optimize": sys.flags.optimize,
        "total": total.item(),
        "threads": torch.get_num_threads(),
        "started": len(fabric.strategy.launcher.procs),
        "launched by somebody": again.strategy.cluster_environment.creates_processes_externally,
    }
    Path(sys.argv[1], f"rank {fabric.global_rank}.json").write_text(json.dumps(known))
    return offset + fabric.global_rank


if __name__ == "__main__":
    nodes = int(os.environ.get("TEST_NODES", "1"))
    fabric = Fabric(accelerator="cpu", devices=2 // nodes, num_nodes=nodes, strategy="ddp")
    sys.stdout.write(f"returned {fabric.launch(train, 10)}\n")
