"""What the tests share that run the same few lines on Lightning Fabric and on fabric-lite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.fabric
import lightning.fabric.loggers
import pytest
import torch
from torch import nn

import fabric_lite
import fabric_lite.loggers
import fabric_lite.plugins.environments


def freeze(value: Any) -> Any:
    """A value in which every tensor is its type, shape and bytes: `==` then compares bit by bit, NaNs included."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), str(value.device), value.requires_grad, data
    if isinstance(value, Mapping):
        return {key: freeze(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [freeze(each) for each in value]
    return value


@pytest.fixture(scope="session")
def frozen() -> Callable[[Any], Any]:
    return freeze


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The models are tiny: on a busy machine, threads that wait for each other take longer than the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Case:
    """A library, and short names for what the tables of errors need of it."""

    def __init__(self, library: ModuleType, folder: Path) -> None:
        self.library = library
        self.folder = folder
        self.plugins = library.plugins
        self.environments = library.plugins.environments
        self.strategies = library.strategies
        self.accelerators = library.accelerators

    def fabric(self, **arguments: Any) -> Any:
        return self.library.Fabric(**arguments)

    @property
    def cpu(self) -> Any:
        return self.library.Fabric(accelerator="cpu", devices=1)

    @property
    def wrapped(self) -> Any:
        return self.cpu.setup(nn.Linear(1, 1))

    @property
    def half(self) -> Any:
        """A precision with a scaler."""
        return self.plugins.MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))

    def saved(self, **state: Any) -> Path:
        self.cpu.save(self.folder / "state.ckpt", state)
        return self.folder / "state.ckpt"


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, Case]:
    return Case(lightning.fabric, tmp_path), Case(fabric_lite, tmp_path)
