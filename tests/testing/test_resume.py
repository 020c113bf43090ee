"""`assert_resume_equal`, on trainings that go on and on one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fabric_lite import Fabric
from fabric_lite.testing import assert_resume_equal
from fabric_lite.utilities.gradients import GradientState
from fabric_lite.utilities.seed import RNGState

STEPS, EPOCHS = 4, 5


def data() -> Dataset[Any]:
    xs = torch.arange(64.0).reshape(32, 2) / 64
    return TensorDataset(xs, xs.sum(1, keepdim=True))


def train_with(fabric: Fabric, folder: Path, after_step: Callable[[], None], workers: int = 0, lost: str = "") -> Any:
    """Twenty steps, with all that can be lost: dropout, shuffling, momentum, a schedule, accumulated gradients."""
    fabric.launch()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.4), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = fabric.setup(model, optimizer)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = DataLoader(data(), 8 // fabric.world_size, shuffle=True, num_workers=workers)
    loader = fabric.setup_dataloaders(loader)
    state: dict[str, Any] = {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader, "rng": RNGState(),
        "gradients": GradientState(model), "epoch": 0, "step": 0, "losses": [],
    }  # fmt: skip
    state.pop(lost, None)
    path = folder / "latest.ckpt"
    if path.exists():
        fabric.load(path, state)
    for epoch in range(state["epoch"], EPOCHS):
        for x, y in loader:
            state["step"] += 1
            stepping = state["step"] % 2 == 0
            with fabric.no_backward_sync(model, enabled=not stepping):
                loss = nn.functional.mse_loss(model(x), y)
                fabric.backward(loss)
            if stepping:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            state["losses"].append(loss.item())
            state["epoch"] = epoch
            saved = dict(state)
            if fabric.world_size > 1:
                saved["losses"] = []
            fabric.save(path, saved)
            after_step()
    return model.state_dict(), state["losses"] if fabric.world_size == 1 else [], torch.rand(2)


def train(folder: Path, after_step: Callable[[], None]) -> Any:
    return train_with(Fabric(accelerator="cpu", devices=1), folder, after_step)


def train_with_workers(folder: Path, after_step: Callable[[], None]) -> Any:
    return train_with(Fabric(accelerator="cpu", devices=1), folder, after_step, workers=2)


def train_on_two(folder: Path, after_step: Callable[[], None]) -> Any:
    return train_with(Fabric(accelerator="cpu", devices=2, strategy="ddp"), folder, after_step)


def train_and_forget(folder: Path, after_step: Callable[[], None]) -> Any:
    return train_with(Fabric(accelerator="cpu", devices=1), folder, after_step, lost="rng")


@pytest.mark.slow
@pytest.mark.parametrize(("function", "processes"), [(train, 1), (train_with_workers, 1), (train_on_two, 2)])
def test_killed_after_every_step(function: Callable[..., Any], processes: int) -> None:
    assert_resume_equal(function, range(1, STEPS * EPOCHS + 1), processes=processes)


def test_what_is_lost_is_noticed() -> None:
    with pytest.raises(AssertionError) as error:
        assert_resume_equal(train_and_forget, [3])
    lines = str(error.value).splitlines()
    assert lines[0] == "Killed after step 3 and resumed, the training ends with other values (by rank):"
    assert re.fullmatch(r"  \[0\]\[0\]\['0.weight'\]: \d+ of 16 elements", lines[1])
    assert re.fullmatch(r"  and \d+ more", lines[-1])


def test_a_step_that_there_is_not() -> None:
    with pytest.raises(
        ValueError, match=r"the training ended before step 21, or did not call `after_step\(\)` after each"
    ):
        assert_resume_equal(train, [STEPS * EPOCHS + 1])
