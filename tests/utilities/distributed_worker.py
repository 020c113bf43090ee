"""One of two processes: runs all of `fabric_lite.utilities.distributed` that communicates, and saves what came out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fabric_lite.utilities.distributed import (
    ReduceOp,
    _all_gather_ddp_if_available,
    _destroy_dist_connection,
    _distributed_is_initialized,
    _gather_all_tensors,
    _InfiniteBarrier,
    _init_dist_connection,
    _sync_ddp,
    _sync_ddp_if_available,
    is_shared_filesystem,
)


class Environment:
    main_address = "nowhere"
    main_port = 1

    def global_rank(self) -> int:
        return int(sys.argv[1])

    def world_size(self) -> int:
        return 2


class Strategy:
    world_size = 2

    def __init__(self, rank: int) -> None:
        self.is_global_zero = rank == 0

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        objects = [obj]
        dist.broadcast_object_list(objects, src)
        return objects[0]

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        votes = torch.tensor(int(decision))
        dist.all_reduce(votes)
        return bool(votes == 2 if all else votes > 0)


class StrategyWithoutSharing(Strategy):
    """Rank 1 sees other files than rank 0 at the same path."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        obj = super().broadcast(obj, src)
        if not self.is_global_zero and isinstance(obj, Path) and obj.name.startswith("."):
            return obj.with_name("elsewhere")
        return obj


def gathers(rank: int) -> dict[str, Any]:
    leaf = torch.full((2,), float(rank), requires_grad=True)
    gathered = _all_gather_ddp_if_available(leaf, sync_grads=True)
    (gathered * torch.tensor([[1.0], [10.0]])).sum().backward()
    transposed = torch.arange(6).reshape(2, 3).t()
    return {
        "scalar": _gather_all_tensors(torch.tensor(rank)),
        "equal": _gather_all_tensors(torch.full((2, 2), rank)),
        "uneven": _gather_all_tensors(torch.full((rank + 1, 3 - rank), float(rank))),
        "one is empty": _gather_all_tensors(torch.full((rank,), 7)),
        "bool": _gather_all_tensors(torch.ones(rank + 1, dtype=torch.bool)),
        "group": _gather_all_tensors(torch.tensor([rank]), group=dist.group.WORLD),
        "all": _all_gather_ddp_if_available(transposed + rank, group=dist.group.WORLD),
        "with gradient": gathered.detach(),
        "gradient": leaf.grad,
        "without gradient": _all_gather_ddp_if_available(leaf).requires_grad,
    }


def reductions(rank: int) -> dict[str, Any]:
    number = torch.tensor([rank + 1.0])
    leaf = torch.tensor([rank + 1.0], requires_grad=True)
    results: dict[str, Any] = {
        "in place": _sync_ddp(number) is number,
        "sum": number,
        "leaf": _sync_ddp(leaf, reduce_op="mean").detach(),
        "mean of integers": _sync_ddp(torch.tensor(rank + 2), reduce_op="mean"),
        "operation": _sync_ddp(torch.tensor(rank + 2), reduce_op=ReduceOp.PRODUCT),  # type: ignore[arg-type]
        "group": _sync_ddp(torch.tensor(rank + 2), group=dist.group.WORLD),
    }
    for name in ("mean", "AVG", "Sum", "max"):
        results[name] = _sync_ddp_if_available(torch.tensor([rank + 1.0]), reduce_op=name)
    try:
        _sync_ddp(torch.tensor(1), reduce_op="median")
    except ValueError as error:
        results["unknown"] = str(error)
    return results


def filesystems(rank: int, folder: Path) -> dict[str, Any]:
    strategy = Strategy(rank)
    file = folder / "file.txt"
    if rank == 0:
        file.touch()
    dist.barrier()
    results: dict[str, Any] = {
        "folder": is_shared_filesystem(strategy, folder),
        "text": is_shared_filesystem(strategy, str(folder)),
        "file": is_shared_filesystem(strategy, file),
        "current": is_shared_filesystem(strategy),
        "url": is_shared_filesystem(strategy, "s3://bucket"),
        "other paths": is_shared_filesystem(strategy, folder / f"rank{rank}"),
        "other files": is_shared_filesystem(StrategyWithoutSharing(rank), folder, timeout=0),
        "left": sorted(path.name for path in folder.iterdir() if path.name.startswith(".shared")),
    }
    for name, path in (("missing", folder / "missing"), ("unwritable", Path("/proc"))):
        try:
            is_shared_filesystem(strategy, path)
        except OSError as error:
            results[name] = f"{type(error).__name__}: {error}"
    return results


def barrier(rank: int) -> dict[str, Any]:
    groups = dist.distributed_c10d._world.pg_map
    before = len(groups)
    with _InfiniteBarrier() as wait:
        inside = len(groups)
        wait()
    try:
        with _InfiniteBarrier():
            raise KeyError("failed inside")
    except KeyError as error:
        return {"groups": (inside - before, len(groups) - before), "error": error.args[0]}


def main() -> None:
    rank, meeting_point, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.chdir(folder)
    _init_dist_connection(Environment(), "gloo", init_method=f"file://{meeting_point}")
    _init_dist_connection(Environment(), "gloo")  # they are connected already
    results: dict[str, Any] = {
        "connection": (dist.get_rank(), dist.get_world_size(), dist.get_backend(), "MASTER_ADDR" in os.environ),
        "gathers": gathers(rank),
        "reductions": reductions(rank),
        "filesystems": filesystems(rank, folder),
        "barrier": barrier(rank),
    }
    _destroy_dist_connection()
    results["destroyed"] = not _distributed_is_initialized()
    torch.save(results, f"{meeting_point}.rank{rank}")


if __name__ == "__main__":
    main()
