"""The state of the gradient scaler, and what mixed precision refuses."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from fabric_lite import Fabric
from fabric_lite.plugins import MixedPrecision
from fabric_lite.plugins.precision.amp import _optimizer_handles_unscaling

SCALE = 1024.0
OVERFLOW = 1e6  # more than float16 can hold


def new_scaler(**options: Any) -> GradScaler:
    return GradScaler("cpu", **{"init_scale": SCALE, **options})


def new_fabric(scaler: GradScaler | None = None) -> Fabric:
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=scaler or new_scaler()))


def set_up(fabric: Fabric, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    return fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, **options))


def train(fabric: Fabric, model: Any, optimizer: Any, steps: int = 4, spoiled: int | None = None, **clip: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x = torch.randn(8, 4, generator=generator) * (OVERFLOW if step == spoiled else 1)
        optimizer.zero_grad()
        fabric.backward((model(x) ** 2).mean())
        if clip:
            fabric.clip_gradients(model, optimizer, error_if_nonfinite=False, **clip)
        optimizer.step()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class TestState:
    def test_round_trip_through_a_checkpoint(self, tmp_path: Any) -> None:
        fabric = new_fabric()
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, spoiled=0)
        fabric.save(tmp_path / "a.ckpt", {"precision": fabric._precision})
        other = new_fabric()
        other.load(tmp_path / "a.ckpt", {"precision": other._precision})
        assert other._precision.state_dict() == fabric._precision.state_dict()
        assert other._precision.state_dict()["scale"] == SCALE / 2
        assert other._precision.state_dict()["_growth_tracker"] == 3

    def test_resuming_goes_on_as_before(self) -> None:
        fabric, resumed = (new_fabric(new_scaler(growth_interval=3)) for _ in range(2))
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, spoiled=0)
        new_model, new_optimizer = set_up(resumed)
        resumed._precision.load_state_dict(copy.deepcopy(fabric._precision.state_dict()))
        new_model.load_state_dict(copy.deepcopy(model.state_dict()))
        new_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each in ((fabric, model, optimizer), (resumed, new_model, new_optimizer)):
            train(*each, steps=5)
        assert torch.equal(weights(model), weights(new_model))
        assert fabric._precision.state_dict() == resumed._precision.state_dict()

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda precision: pickle.loads(pickle.dumps(precision))])
    @pytest.mark.parametrize(("steps", "clip"), [(0, {}), (4, {}), (4, {"max_norm": 0.05})])
    def test_it_copies_and_pickles_between_iterations(
        self, how: Callable[[Any], Any], steps: int, clip: dict[str, float]
    ) -> None:
        fabric = new_fabric()
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, steps=steps, spoiled=0, **clip)
        copied = how(fabric._precision)
        assert copied.state_dict() == fabric._precision.state_dict()
        assert (copied.precision, copied.device) == ("16-mixed", "cpu")
        another = Fabric(accelerator="cpu", plugins=copied)
        train(another, *set_up(another), max_norm=1.0)

    @pytest.mark.parametrize("clip", [{}, {"max_norm": 0.05}])
    def test_the_last_step_counts_also_when_its_optimizer_is_gone(self, clip: dict[str, float]) -> None:
        fabric = new_fabric()
        model, optimizer = set_up(fabric)
        train(fabric, model, optimizer, steps=1, spoiled=0, **clip)
        del model, optimizer
        gc.collect()
        assert fabric._precision.state_dict()["scale"] == SCALE / 2
        assert copy.deepcopy(fabric._precision).state_dict() == fabric._precision.state_dict()

    def test_bf16_has_none(self) -> None:
        precision = MixedPrecision("bf16-mixed", device="cpu")
        assert (precision.scaler, precision.state_dict()) == (None, {})
        precision.load_state_dict({})


class TestErrors:
    def test_bf16_takes_no_scaler(self) -> None:
        with pytest.raises(ValueError, match=r"MixedPrecision\('bf16-mixed', scaler=.*takes no scaler.*'16-mixed'"):
            MixedPrecision("bf16-mixed", device="cpu", scaler=new_scaler())

    def test_without_a_scaler_one_is_made_for_the_device(self) -> None:
        scaler = MixedPrecision("16-mixed", device="cpu").scaler
        assert isinstance(scaler, GradScaler)
        assert scaler._device == "cpu"

    def test_lbfgs(self) -> None:
        fabric = new_fabric()
        net = nn.Linear(2, 1)
        model, optimizer = fabric.setup(net, torch.optim.LBFGS(net.parameters()))
        with pytest.raises(TypeError, match=r"`LBFGS`.*gradient scaler of '16-mixed'.*precision='bf16-mixed'"):
            optimizer.step(lambda: model(torch.ones(1, 2)).sum())

    def test_a_closure(self) -> None:
        fabric = new_fabric()
        net = nn.Linear(2, 1)
        _, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
            optimizer.step(lambda: torch.zeros(()))

    @pytest.mark.parametrize("limits", [{"clip_val": 0.1}, {"max_norm": 0.1}])
    def test_fused_optimizers_cannot_be_clipped(self, limits: dict[str, float]) -> None:
        fabric = new_fabric()
        net = nn.Linear(2, 1)
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1, fused=True))
        assert _optimizer_handles_unscaling(optimizer)
        fabric.backward(model(torch.ones(1, 2)).sum())
        with pytest.raises(NotImplementedError, match=r"`SGD\(fused=True\)`.*`fused=False`.*'bf16-mixed'"):
            fabric.clip_gradients(model, optimizer, **limits)

    def test_the_loss_needs_the_backward_of_the_fabric(self) -> None:
        fabric = new_fabric()
        model, _ = set_up(fabric)
        loss = model(torch.ones(1, 4)).sum()
        with pytest.raises(RuntimeError, match=r"`loss.backward\(\)`.*Call that instead"):
            loss.backward()
        assert all(p.grad is None for p in model.parameters())


def test_fused_optimizers_unscale_by_themselves() -> None:
    results = []
    for fused in (True, False):
        fabric = new_fabric()
        model, optimizer = set_up(fabric, fused=fused)
        train(fabric, model, optimizer)
        results.append(weights(model))
    torch.testing.assert_close(*results)
