"""A small learner, and a callback that notes down every event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.events import Event, Phase
from fabric_lite.learner import Learner


def on_cpu(**options: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **options)


def batches(number: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(number, 8, 3, generator=generator)
    return [(x, x.sum(dim=1, keepdim=True).sin()) for x in xs]


def a_learner(*callbacks: Any, **options: Any) -> Learner:
    """Two batches for training and one for validation, and no callbacks but those that are asked for."""
    defaults: dict[str, Any] = {
        "data": (batches(2), batches(1, seed=1)),
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.1),
        "callbacks": callbacks,
        "fabric": None if "fabric" in options else on_cpu(),
        "usedefaultcallbacks": False,
    }
    torch.manual_seed(0)
    return Learner(options.pop("model", None) or nn.Linear(3, 1), nn.functional.mse_loss, **{**defaults, **options})


class Recording:
    """Notes down each event with its phase: ``train:step_end``, ``fit_begin``."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def note(self, event: str, phase: Phase | None = None) -> None:
        name = str(event).removeprefix("on_")
        self.seen.append(name if phase is None else f"{phase.name}:{name}")


for event in Event:

    def method(self: Recording, event: str, phase: Phase | None = None) -> None:
        self.note(event, phase)

    setattr(Recording, event.value, method)


class Raising:
    """Raises an exception at the first of an event in a phase."""

    def __init__(self, at: str, error: BaseException) -> None:
        phase, _, name = at.rpartition(":")
        self.left = [error]
        hook = f"on_{phase}_{name}" if phase else f"on_{name}"
        setattr(self, hook, self.raise_once)

    def raise_once(self) -> None:
        if self.left:
            raise self.left.pop()


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def raising() -> type[Raising]:
    return Raising


@pytest.fixture
def make() -> Callable[..., Learner]:
    return a_learner


@pytest.fixture
def data() -> Callable[..., list[tuple[torch.Tensor, torch.Tensor]]]:
    return batches


@pytest.fixture
def cpu() -> Callable[..., Fabric]:
    return on_cpu
