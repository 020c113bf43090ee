"""Gradients that have been accumulated go on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.utilities.gradients import GradientState


def test_accumulation_goes_on(tmp_path: Path) -> None:
    xs = torch.randn(4, 3)
    fabric = Fabric(accelerator="cpu", devices=1)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return fabric.setup(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).requires_grad_(False)))

    whole, first, second = make(), make(), make()
    for x in xs:
        fabric.backward(whole(x).sum())
    for x in xs[:2]:
        fabric.backward(first(x).sum())
    fabric.save(tmp_path / "half.ckpt", {"gradients": GradientState(first)})
    fabric.backward(second(xs[0]).sum())  # is replaced
    fabric.load(tmp_path / "half.ckpt", {"gradients": GradientState(second)})
    for x in xs[2:]:
        fabric.backward(second(x).sum())
    for (name, one), (_, other) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == name.startswith("1")
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_none_of_another_model() -> None:
    model = nn.Linear(2, 1)
    for state, message in (
        (
            {"weight": torch.ones(2, 2)},
            r"'weight' has the shape \(2, 2\), but `Linear` has a parameter of shape \(1, 2\)",
        ),
        (
            {"bias": torch.ones(1), "scale": torch.ones(1)},
            r"'scale' has the shape \(1,\), but `Linear` has no such par",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            GradientState(model).load_state_dict(state)
        assert model.bias.grad is None
