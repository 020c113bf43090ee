"""All of `fabric_lite.utilities.distributed` that communicates, on two real processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fabric_lite.testing import run_distributed
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

Results = list[dict[str, Any]]

# -- in each of two processes ----------------------------------------------------------------------------------------


class Environment:
    main_address = "nowhere"
    main_port = 1

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def global_rank(self) -> int:
        return self.rank

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


def everything(meeting_point: Path, folder: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    dist.barrier()
    _destroy_dist_connection()  # that of `run_distributed`, when all have it
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.chdir(folder)
    _init_dist_connection(Environment(rank), "gloo", init_method=f"file://{meeting_point}")
    _init_dist_connection(Environment(rank), "gloo")  # they are connected already
    results: dict[str, Any] = {
        "connection": (dist.get_rank(), dist.get_world_size(), dist.get_backend(), "MASTER_ADDR" in os.environ),
        "gathers": gathers(rank),
        "reductions": reductions(rank),
        "filesystems": filesystems(rank, folder),
        "barrier": barrier(rank),
    }
    _destroy_dist_connection()
    return {**results, "destroyed": not _distributed_is_initialized()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_distributed(everything, 2, tmp_path_factory.mktemp("meeting") / "point", tmp_path_factory.mktemp("work"))


# -- what they found -------------------------------------------------------------------------------------------------


def lists(tensors: Any) -> Any:
    return tensors.tolist() if isinstance(tensors, torch.Tensor) else [t.tolist() for t in tensors]


def test_connects_and_disconnects(ranks: Results) -> None:
    assert [rank["connection"] for rank in ranks] == [(0, 2, "gloo", False), (1, 2, "gloo", False)]
    assert all(rank["destroyed"] for rank in ranks)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("scalar", [0, 1]),
        ("equal", [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]),
        ("uneven", [[[0, 0, 0]], [[1, 1], [1, 1]]]),
        ("one is empty", [[], [7]]),
        ("bool", [[True], [True, True]]),
        ("group", [[0], [1]]),
        ("all", [[[0, 3], [1, 4], [2, 5]], [[1, 4], [2, 5], [3, 6]]]),
        ("with gradient", [[0, 0], [1, 1]]),
    ],
)
def test_gathers(case: str, expected: Any, ranks: Results) -> None:
    assert [lists(rank["gathers"][case]) for rank in ranks] == [expected, expected]


def test_gradients_flow_through_gathering_if_asked_for(ranks: Results) -> None:
    assert [rank["gathers"]["gradient"].tolist() for rank in ranks] == [[2, 2], [20, 20]]
    assert [rank["gathers"]["without gradient"] for rank in ranks] == [False, False]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("sum", [3]),
        ("Sum", [3]),
        ("mean", [1.5]),
        ("AVG", [1.5]),
        ("max", [2]),
        ("leaf", [1.5]),
        ("mean of integers", 2),
        ("operation", 6),
        ("group", 5),
    ],
)
def test_reduces(case: str, expected: Any, ranks: Results) -> None:
    assert [rank["reductions"][case].tolist() for rank in ranks] == [expected, expected]
    assert all(rank["reductions"]["in place"] for rank in ranks)


def test_an_unknown_reduction(ranks: Results) -> None:
    for rank in ranks:
        assert rank["reductions"]["unknown"].startswith(
            "There is no reduce operation 'median'. Choose one of: mean, sum,"
        )


@pytest.mark.parametrize(
    ("case", "shared"),
    [
        ("folder", True),
        ("text", True),
        ("file", True),
        ("current", True),
        ("url", True),
        ("other paths", False),
        ("other files", False),
    ],
)
def test_shared_filesystems(case: str, shared: bool, ranks: Results) -> None:
    assert [rank["filesystems"][case] for rank in ranks] == [shared, shared]


def test_the_check_for_sharing_leaves_nothing_behind(ranks: Results) -> None:
    assert ranks[0]["filesystems"]["left"] == []


def test_the_check_for_sharing_needs_a_folder(ranks: Results) -> None:
    for rank in ranks:
        assert rank["filesystems"]["missing"].startswith("FileNotFoundError: The path '")
        assert rank["filesystems"]["missing"].endswith(
            "missing' does not exist on every process. Make the folder first."
        )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody can write")
def test_all_ranks_fail_when_the_first_cannot_write(ranks: Results) -> None:
    for rank in ranks:
        assert rank["filesystems"]["unwritable"].startswith("OSError: Rank 0 cannot write to the folder '/proc'")


def test_the_infinite_barrier_takes_its_group_down(ranks: Results) -> None:
    assert [rank["barrier"] for rank in ranks] == [{"groups": (1, 0), "error": "failed inside"}] * 2
