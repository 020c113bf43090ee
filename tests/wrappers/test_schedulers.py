"""Schedulers are torch's own: on a wrapped optimizer and on a bare one the learning rate follows the same course."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

from fabric_lite import Fabric
from fabric_lite.plugins import MixedPrecision

Make = Callable[[Any], Any]

SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=7),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


def course(make: Make, when: str, setting: Fabric | None) -> list[Any]:
    """Learning rates and weights in a short training."""
    net = nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    model: Any = net
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    if setting is None:
        scheduler = make(optimizer)
    elif when == "wrapped":
        model, optimizer = setting.setup(net, optimizer)
        scheduler = make(optimizer)
    elif when == "bare":
        scheduler = make(optimizer)
        model, optimizer = setting.setup(net, optimizer)
    else:
        given = make(optimizer)
        model, optimizer, scheduler = setting.setup(net, optimizer, scheduler=given)
        assert scheduler is given
    seen: list[Any] = []
    for step in range(6):
        optimizer.zero_grad()
        loss = model(torch.tensor([[1.0, float(step)]])).square().sum()
        loss.backward() if setting is None else setting.backward(loss)
        optimizer.step()
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([loss.detach()] if plateau else []))
        seen.append((scheduler.get_last_lr(), optimizer.param_groups[0]["lr"], net.weight.tolist()))
    return seen


def test_this_is_all_of_them() -> None:
    public = {name for name in lr_scheduler.__all__ if inspect.isclass(getattr(lr_scheduler, name))}
    assert public - {"LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.parametrize("when", ["wrapped", "bare", "given"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_course_is_that_of_plain_torch(name: str, when: str) -> None:
    setting = Fabric(accelerator="cpu", devices=1)
    assert course(SCHEDULERS[name], when, setting) == course(SCHEDULERS[name], when, None)


@pytest.mark.parametrize("when", ["wrapped", "bare", "given"])
def test_under_a_scaler(when: str) -> None:
    precision = MixedPrecision("16-mixed", device="cpu", scaler=GradScaler("cpu", init_scale=2.0))
    setting = Fabric(accelerator="cpu", devices=1, plugins=precision)
    plain = [rates for *rates, _ in course(SCHEDULERS["StepLR"], when, None)]
    assert [rates for *rates, _ in course(SCHEDULERS["StepLR"], when, setting)] == plain


def wrapped() -> Any:
    return Fabric(accelerator="cpu", devices=1).setup_optimizers(torch.optim.SGD([torch.ones(1)], lr=0.1))


def test_torch_still_warns_of_the_wrong_order() -> None:
    for make in (SCHEDULERS["StepLR"], SCHEDULERS["OneCycleLR"]):
        scheduler = make(wrapped())
        with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
            scheduler.step()


def test_a_scheduler_on_the_wrapped_optimizer_leaves_the_callbacks_in_place() -> None:
    class Recorder:
        steps = 0

        def on_after_optimizer_step(self) -> None:
            self.steps += 1

    recorder = Recorder()
    setting = Fabric(accelerator="cpu", devices=1, callbacks=recorder)
    optimizer = setting.setup_optimizers(torch.optim.SGD([torch.ones(1)], lr=0.1))
    for _ in range(2):  # the second one finds that the first has been there
        SCHEDULERS["StepLR"](optimizer)
    optimizer.step()
    assert recorder.steps == 1


@pytest.mark.parametrize("when", ["wrapped", "bare"])
def test_optimizer_and_scheduler_are_copied_together(when: str) -> None:
    weight = nn.Parameter(torch.ones(1))
    bare: Any = torch.optim.SGD([weight], lr=0.1)
    optimizer: Any = Fabric(accelerator="cpu", devices=1).setup_optimizers(bare)
    scheduler = SCHEDULERS["ExponentialLR"](optimizer if when == "wrapped" else bare)
    optimizer.step()
    scheduler.step()
    copied, follower = copy.deepcopy((optimizer, scheduler))
    copied.step()
    follower.step()
    assert copied.param_groups[0]["lr"] == pytest.approx(0.081)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.09)


def test_states_of_schedulers_are_saved_and_loaded(tmp_path: Any) -> None:
    setting = Fabric(accelerator="cpu", devices=1)
    optimizer = wrapped()
    scheduler = SCHEDULERS["StepLR"](optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    setting.save(tmp_path / "file", {"optimizer": optimizer, "scheduler": scheduler})
    other = wrapped()
    follower = SCHEDULERS["StepLR"](other)
    setting.load(tmp_path / "file", {"optimizer": other, "scheduler": follower})
    assert follower.get_last_lr() == scheduler.get_last_lr()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_scheduler_of_the_users_own() -> None:
    class Own(LRScheduler):
        def get_lr(self) -> list[float | Tensor]:
            return [1.0 / (1 + self.last_epoch)]

    optimizer = wrapped()
    scheduler = Own(optimizer)
    for expected in (1 / 2, 1 / 3):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == expected
