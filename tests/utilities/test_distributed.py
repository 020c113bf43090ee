from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler, SequentialSampler

import fabric_lite
from fabric_lite.utilities.distributed import (
    DistributedSamplerWrapper,
    _all_gather_ddp_if_available,
    _destroy_dist_connection,
    _distributed_is_initialized,
    _get_default_process_group_backend_for_device,
    _InfiniteBarrier,
    _init_dist_connection,
    _is_dtensor,
    _set_num_threads_if_needed,
    _suggested_max_num_threads,
    _sync_ddp_if_available,
    is_shared_filesystem,
)

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What `distributed_worker.py` found out on each of two processes."""
    folder = tmp_path_factory.mktemp("work")
    meeting_point = tmp_path_factory.mktemp("meeting") / "point"
    worker = Path(__file__).with_name("distributed_worker.py")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    env = {**variables, "PYTHONPATH": str(Path(fabric_lite.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-W", "error", worker, str(rank), meeting_point, folder] for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(f"{meeting_point}.rank{rank}") for rank in (0, 1)]


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


def test_one_process_shares_with_nobody_else(tmp_path: Path) -> None:
    assert is_shared_filesystem(SimpleNamespace(), tmp_path)  # type: ignore[arg-type]
    assert is_shared_filesystem(SimpleNamespace(world_size=1))  # type: ignore[arg-type]


def test_collectives_without_processes() -> None:
    x = torch.ones(2)
    assert _sync_ddp_if_available(x) is x
    assert _all_gather_ddp_if_available(x) is x
    with _InfiniteBarrier() as barrier:
        barrier()


class Environment:
    main_address = "127.0.0.1"
    main_port = 0  # any that is free

    def global_rank(self) -> int:
        return 0

    def world_size(self) -> int:
        return 1


@pytest.fixture
def disconnect() -> Iterator[None]:
    yield
    _destroy_dist_connection()


@pytest.mark.usefixtures("disconnect")
def test_meets_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    _init_dist_connection(Environment(), "gloo")
    assert _distributed_is_initialized()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "0")
    _destroy_dist_connection()
    assert not _distributed_is_initialized()
    _destroy_dist_connection()  # there is nothing left to do


def test_a_torch_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"no `torch\.distributed`\. Install another one, or write `Fabric\(devices=1\)`"
    ):
        _init_dist_connection(Environment(), "gloo")
    assert not _distributed_is_initialized()


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl"), ("meta", "gloo")])
def test_backend_for_a_device(device: str, backend: str) -> None:
    assert _get_default_process_group_backend_for_device(torch.device(device)) == backend


class Letters:
    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.epoch = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.letters[self.epoch :] + self.letters[: self.epoch])

    def __len__(self) -> int:
        return len(self.letters)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@given(length=st.integers(1, 30), processes=st.integers(1, 5), shuffle=st.booleans())
def test_every_index_goes_to_some_process(length: int, processes: int, shuffle: bool) -> None:
    sampler = SequentialSampler(range(length))
    shares = [
        list(DistributedSamplerWrapper(sampler, num_replicas=processes, rank=rank, shuffle=shuffle))
        for rank in range(processes)
    ]
    assert {len(share) for share in shares} == {-(-length // processes)}
    assert {index for share in shares for index in share} == set(range(length))


def test_the_sampler_decides_on_the_order_in_each_epoch() -> None:
    sampler = DistributedSamplerWrapper(Letters("abcd"), num_replicas=2, rank=1, shuffle=False)
    assert len(sampler) == 2
    assert list(sampler) == ["b", "d"]
    sampler.set_epoch(1)
    assert list(sampler) == ["c", "a"]
    assert sampler.epoch == 1


def test_a_random_sampler_is_drawn_anew() -> None:
    sampler = DistributedSamplerWrapper(RandomSampler(range(100)), num_replicas=2, rank=0, shuffle=False)
    assert list(sampler) != list(sampler)


def test_an_endless_sampler_ends_at_its_length() -> None:
    class Endless:
        def __iter__(self) -> Iterator[int]:
            return iter(int, 1)

        def __len__(self) -> int:
            return 4

    assert list(DistributedSamplerWrapper(Endless(), num_replicas=2, rank=0)) == [0, 0]


def test_a_sampler_without_length() -> None:
    with pytest.raises(TypeError, match=r"The sampler generator has no length.*use_distributed_sampler=False"):
        DistributedSamplerWrapper((i for i in range(3)), num_replicas=2, rank=0)


@pytest.mark.parametrize(("cpus", "processes", "expected"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_suggests_threads(cpus: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert _suggested_max_num_threads(processes) == expected


def test_suggests_nothing_for_no_process() -> None:
    with pytest.raises(ValueError, match="`num_processes` must be at least 1, got 0"):
        _suggested_max_num_threads(0)


def test_sets_the_threads_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    _set_num_threads_if_needed(2)
    assert numbers == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    _set_num_threads_if_needed(2)
    assert numbers == [3]
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.usefixtures("disconnect")
def test_recognises_dtensors() -> None:
    assert not _is_dtensor(torch.ones(1))
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    _init_dist_connection(Environment(), "gloo")
    assert not _is_dtensor(torch.ones(1))
    assert _is_dtensor(distribute_tensor(torch.ones(1), init_device_mesh("cpu", (1,))))
