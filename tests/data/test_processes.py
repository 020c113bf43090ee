"""Dataloaders with workers on two real processes: who sees which sample, with which random numbers, and who warns."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, get_worker_info

from fabric_lite import Fabric
from fabric_lite.testing import run_distributed

Results = list[dict[str, Any]]
SIZE = 11


class Draws(Dataset[tuple[int, int, float]]):
    """Each sample comes with its index, its worker, and a random number."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[int, int, float]:
        worker: Any = get_worker_info()
        return index, worker.id, random.random()


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class OwnShare(Stream):
    """Knows what its process and its worker are to yield."""

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.num_replicas = fabric.global_rank, fabric.world_size

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        count, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        return iter(range(self.rank * count + number, 8, self.num_replicas * count))


def warned(function: Any, *args: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args)
    return result, [str(warning.message) for warning in caught if "stream" in str(warning.message)]


def everything() -> dict[str, Any]:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    fabric.seed_everything(6, verbose=False)
    # The processes come from a server, and their own children would, too, which takes long.
    workers: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
    kwargs: dict[str, Any] = {"batch_size": 2, "persistent_workers": True, **workers}
    shuffled = fabric.setup_dataloaders(DataLoader(Draws(), shuffle=True, **kwargs))
    epochs = []
    for _ in range(2):
        batches = [[part.tolist() for part in batch] for batch in shuffled]
        epochs.append([sample for batch in batches for sample in zip(*batch, strict=True)])
    torch.manual_seed(fabric.global_rank)  # the processes have nothing in common any more
    subset = fabric.setup_dataloaders(DataLoader(list(range(20)), sampler=SubsetRandomSampler(range(4, 16))))  # type: ignore[arg-type]
    streams, warnings_of_one = warned(fabric.setup_dataloaders, DataLoader(Stream()))
    shared, warnings_of_other = warned(fabric.setup_dataloaders, DataLoader(OwnShare(fabric), **workers))
    del shuffled
    return {
        "epochs": epochs,
        "subset": [[int(x) for x in subset] for _ in range(2)],
        "stream": [int(x) for x in streams],
        "shared": sorted(int(x) for x in shared),
        "warnings": (warnings_of_one, warnings_of_other),
    }


@pytest.fixture(scope="module")
def ranks() -> Results:
    return run_distributed(everything, 2)


def test_workers_load_the_share_of_their_process(ranks: Results) -> None:
    for epoch in range(2):
        first, second = ([index for index, _, _ in each["epochs"][epoch]] for each in ranks)
        assert len(first) == len(second) == 6
        assert sorted({*first, *second}) == list(range(SIZE))  # one is there twice, so that both have as many
    assert ranks[0]["epochs"][0] != ranks[0]["epochs"][1]


def test_no_two_workers_draw_the_same_numbers(ranks: Results) -> None:
    draws = [(rank, worker, x) for rank, each in enumerate(ranks) for epoch in each["epochs"] for _, worker, x in epoch]
    assert {(rank, worker) for rank, worker, _ in draws} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len({x for _, _, x in draws}) == len(draws)


def test_a_random_sampler_is_shared_out_whatever_the_generators_say(ranks: Results) -> None:
    for epoch in range(2):
        assert sorted(ranks[0]["subset"][epoch] + ranks[1]["subset"][epoch]) == list(range(4, 16))
    assert ranks[0]["subset"][0] != ranks[0]["subset"][1]


def test_streams(ranks: Results) -> None:
    assert [each["stream"] for each in ranks] == [[0, 1, 2], [0, 1, 2]]
    assert [each["shared"] for each in ranks] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_one_process_warns_once_of_a_stream_that_all_read(ranks: Results) -> None:
    ((first,), none), (second, nothing) = (each["warnings"] for each in ranks)
    assert (none, second, nothing) == ([], [], [])
    assert first.startswith("Each process reads the whole of the stream `Stream`. Yield a share of it in each")
