from __future__ import annotations

from typing import Any

import pytest
import torch

from fabric_lite import Fabric, State
from fabric_lite.callbacks.gradient_norm import GradientNorm
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase
from fabric_lite.learner import Learner
from fabric_lite.plugins.precision import MixedPrecision


class Rows:
    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_a_learner(norm_type: float) -> None:
    logger = Rows()
    model = torch.nn.Linear(3, 2)
    norms = []

    def by_hand(learner: Any) -> None:
        flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        norms.append(torch.linalg.vector_norm(flat, norm_type).item())

    fabric = Fabric(callbacks=[GradientNorm(logger, norm_type=norm_type), Recorder()], guard="strict")
    fabric.callbacks.on("on_backward_end", by_hand)
    data = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)]
    learner = Learner(model, torch.nn.functional.mse_loss, data=(data, data), fabric=fabric, usedefaultcallbacks=False)
    learner.fit(1)
    assert [step for step, _ in logger.rows] == [1, 2, 3]
    assert [row["train/GradientNorm"] for _, row in logger.rows] == pytest.approx(norms)
    assert learner.cbstate.gradientnorm.item() == pytest.approx(norms[-1])


@pytest.mark.parametrize("key", ["model", "params", "step"])
def test_a_loop_of_ones_own(key: str) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.full_like(model.weight, -3.0)
    has = {
        "model": model,
        "params": dict(model.named_parameters()),
        "step": State(grads={"weight": model.weight.grad}),
    }
    learner = State({key: has[key]}, cbstate=State())
    Fabric(callbacks=GradientNorm()).call("on_backward_end", learner=learner)
    assert learner.cbstate.gradientnorm == 3.0


def test_scaled_gradients_count_as_what_they_stand_for() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fabric = Fabric(plugins=MixedPrecision("16-mixed", "cpu", scaler), callbacks=GradientNorm())
    model, _ = fabric.setup(module := torch.nn.Linear(1, 1, bias=False), torch.optim.SGD(module.parameters(), lr=0.1))
    fabric.backward(model(torch.full((1, 1), 2.0)).sum())
    assert module.weight.grad.item() == 2048.0
    learner = State(model=model, fabric=fabric, cbstate=State())
    fabric.call("on_backward_end", learner=learner)
    assert learner.cbstate.gradientnorm == 2.0


def test_how_often_it_logs() -> None:
    logger = Rows()
    learner = State(step=State(grads={"a": torch.tensor([3.0, 4.0])}), cbstate=State())
    fabric = Fabric(callbacks=[GradientNorm(logger, freq=2), Recorder()])
    for _ in range(5):
        fabric.call("on_backward_end", learner=learner, phase=TrainingPhase())
        fabric.call("on_step_end", learner=learner, phase=TrainingPhase())
    assert logger.rows == [(2, {"train/GradientNorm": 5.0}), (4, {"train/GradientNorm": 5.0})]
