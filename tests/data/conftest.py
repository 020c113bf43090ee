"""Dataloaders as each of several processes sets them up, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fabric_lite import Fabric
from fabric_lite.strategies import ParallelStrategy


class Share(ParallelStrategy):
    """One of several processes, as far as data is concerned."""

    root_device = torch.device("cpu")  # type: ignore[assignment]
    global_rank = world_size = 0  # type: ignore[assignment]

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.global_rank, self.world_size = rank, world_size  # type: ignore[misc]

    def module_to_device(self, module: torch.nn.Module) -> None: ...

    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any: ...

    def barrier(self, name: str | None = None) -> None: ...

    def broadcast(self, obj: Any, src: int = 0) -> Any: ...


def set_up_shares(loader: DataLoader[Any], world_size: int, **kwargs: Any) -> list[Any]:
    """The loader as each of the processes sets it up."""
    loaders = []
    for rank in range(world_size):
        fabric = Fabric(accelerator="cpu", devices=1, strategy=Share(rank, world_size))
        fabric.launch()
        loaders.append(fabric.setup_dataloaders(loader, **kwargs))
    return loaders


def flat_samples(loader: Any) -> list[int]:
    """What one epoch yields, flat."""
    return [int(x) for batch in loader for x in torch.as_tensor(batch).reshape(-1)]


@pytest.fixture(scope="session")
def shares() -> Callable[..., list[Any]]:
    return set_up_shares


@pytest.fixture(scope="session")
def samples() -> Callable[[Any], list[int]]:
    return flat_samples
