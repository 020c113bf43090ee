from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler, SequentialSampler

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
