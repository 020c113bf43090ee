"""The same seeded training on both: every loss, weight, optimizer state and random number is the same to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import lightning.fabric.plugins as their_plugins
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import fabric_lite as ours
import fabric_lite.plugins as our_plugins

LIBRARIES = (theirs, ours)
PRECISIONS = ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"]
Frozen = Callable[[Any], Any]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def lbfgs(model: nn.Module) -> Optimizer:
    return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, history_size=4)


def batches(number: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(4, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(number)
    ]


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def train(
    library: ModuleType,
    make_model: Callable[[], nn.Module] = mlp,
    make_optimizer: Callable[[nn.Module], Optimizer] = adamw,
    *,
    clip: dict[str, float] | None = None,
    use_closure: bool = False,
    accumulate: int = 1,
    **arguments: Any,
) -> dict[str, Any]:
    """A plain loop; returns all that it leaves behind."""
    library.seed_everything(3, verbose=False)
    fabric = library.Fabric(accelerator="cpu", devices=1, **arguments)
    model = make_model()
    model, optimizer = fabric.setup(model, make_optimizer(model))
    losses, outputs, norms = [], [], []
    for i, (x, y) in enumerate(batches()):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            return step(x, y)

        def step(x: Tensor = x, y: Tensor = y) -> Tensor:
            output = model(x)
            loss = loss_of(output, y) / accumulate
            fabric.backward(loss)
            losses.append(loss)
            outputs.append(output)
            return loss

        if use_closure:
            losses.append(optimizer.step(closure))
            continue
        last = (i + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not last):
            step()
        if last:
            if clip is not None:
                norms.append(fabric.clip_gradients(model, optimizer, **clip))
            optimizer.step()
            optimizer.zero_grad()
    return {
        "losses": losses,
        "outputs": outputs,
        "norms": norms,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": fabric._precision.state_dict(),
        "random": torch.get_rng_state(),
    }


@contextmanager
def warns_of_half_on_cpu() -> Iterator[None]:
    with pytest.warns(UserWarning, match="CPU.*'?bf16-mixed|bf16-mixed.*CPU"):
        yield


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
@pytest.mark.parametrize("make_model", [mlp, normed])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_and_weights_are_bit_equal(precision: str, make_model: Any, make_optimizer: Any, frozen: Frozen) -> None:
    their, our = (train(library, make_model, make_optimizer, precision=precision) for library in LIBRARIES)
    assert frozen(our) == frozen(their)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_closure_is_run_as_often_and_with_the_same_result(precision: str, frozen: Frozen) -> None:
    for make_optimizer in (lbfgs, sgd):
        their, our = (
            train(library, mlp, make_optimizer, precision=precision, use_closure=True) for library in LIBRARIES
        )
        assert frozen(our) == frozen(their)


@pytest.mark.parametrize(
    "clip", [{"clip_val": 0.01}, {"max_norm": 0.05}, {"max_norm": 0.02, "norm_type": float("inf")}]
)
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_gradients_are_clipped_alike(precision: str, clip: dict[str, float], frozen: Frozen) -> None:
    their, our = (train(library, clip=clip, precision=precision) for library in LIBRARIES)
    assert frozen(our) == frozen(their)
    assert (our["norms"][0] is None) == ("clip_val" in clip)
    assert frozen(our) != frozen(train(ours, precision=precision))


def test_half_precision_on_the_cpu_falls_back_with_a_warning(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        with warns_of_half_on_cpu():
            results.append(train(library, precision="16-mixed"))
        results.append(train(library, precision="bf16-mixed"))
    assert all(frozen(result) == frozen(results[0]) for result in results)


@pytest.mark.parametrize("clip", [None, {"clip_val": 0.01}, {"max_norm": 0.05}])
@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_scaled_losses_in_half_precision(make_optimizer: Any, clip: dict[str, float] | None, frozen: Frozen) -> None:
    """The scale begins too large and grows often, so that steps are left out and the scale moves both ways."""
    results = []
    for library, plugins in zip(LIBRARIES, (their_plugins, our_plugins), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=1)
        plugin = plugins.MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        extra = None if clip is None else {**clip, "error_if_nonfinite": False} if "max_norm" in clip else clip
        results.append(train(library, normed, make_optimizer, plugins=plugin, clip=extra))
    assert frozen(results[0]) == frozen(results[1])
    assert results[1]["precision"]["scale"] != 2.0**19


def test_unscaled_once_per_step_over_many_steps(frozen: Frozen) -> None:
    results = []
    for library, plugins in zip(LIBRARIES, (their_plugins, our_plugins), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        plugin = plugins.MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        results.append(train(library, plugins=plugin, clip={"max_norm": 0.01}))
    assert frozen(results[0]) == frozen(results[1])
    assert all(norm < 10 for norm in results[1]["norms"])  # the true size, not the scaled one


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients(precision: str, accumulate: int, frozen: Frozen) -> None:
    their, our = (train(library, normed, accumulate=accumulate, precision=precision) for library in LIBRARIES)
    assert frozen(our) == frozen(their)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.5),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=6),
    "ReduceLROnPlateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
}


def scheduled(library: ModuleType, make_scheduler: Callable[[Any], Any], when: str) -> dict[str, Any]:
    library.seed_everything(3, verbose=False)
    fabric = library.Fabric(accelerator="cpu", devices=1)
    model = mlp()
    optimizer = sgd(model)
    if when == "after":
        model, optimizer = fabric.setup(model, optimizer)
        scheduler = make_scheduler(optimizer)
    else:
        scheduler = given = make_scheduler(optimizer)
        if when == "before":
            model, optimizer = fabric.setup(model, optimizer)
        else:
            model, optimizer, scheduler = fabric.setup(model, optimizer, scheduler=scheduler)
        assert scheduler is given
    losses, course = [], []
    for x, y in batches():
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        fabric.backward(loss)
        optimizer.step()
        scheduler.step(*([loss.detach()] if isinstance(scheduler, ReduceLROnPlateau) else []))
        losses.append(loss)
        course.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    state = {name: value for name, value in scheduler.state_dict().items() if not callable(value)}
    return {"losses": losses, "course": course, "model": model.state_dict(), "scheduler": state}


@pytest.mark.parametrize("when", ["before", "with", "after"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_follow_the_same_course(name: str, when: str, frozen: Frozen) -> None:
    their, our = (scheduled(library, SCHEDULERS[name], when) for library in LIBRARIES)
    assert frozen(our) == frozen(their)
    assert our["course"][0] != our["course"][-1]


@pytest.mark.parametrize("order", ["right", "wrong"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_scheduler_that_steps_first_is_warned_of(when: str, order: str) -> None:
    """Torch counts the steps of an optimizer by replacing its `step`: that has to work through the wrapper."""
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        model = mlp()
        optimizer = sgd(model)
        scheduler = StepLR(optimizer, 1) if when == "before" else None
        model, optimizer = fabric.setup(model, optimizer)
        scheduler = scheduler or StepLR(optimizer, 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in (optimizer.step, scheduler.step) if order == "right" else (scheduler.step, optimizer.step):
                step()
            scheduler.step()
        results.append([str(each.message) for each in caught])
    assert results[0] == results[1]
    assert bool(results[1]) == (order == "wrong")


def test_parameters_that_join_later(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(5, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        model = mlp()
        model, optimizer = fabric.setup(model, sgd(model[0]))
        optimizer.add_param_group({"params": list(model.module[2].parameters()), "lr": 0.5})
        for x, y in batches(3):
            optimizer.zero_grad(set_to_none=False)
            fabric.backward(loss_of(model(x), y))
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5
        results.append([model.state_dict(), optimizer.state_dict(), repr(optimizer)])
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_backward_is_given_is_passed_on(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
        model = fabric.setup(mlp())
        output = model(batches(1)[0][0])
        fabric.backward(output, torch.ones_like(output), retain_graph=True, model=model)
        fabric.backward(output, gradient=torch.ones_like(output))
        results.append([parameter.grad for parameter in model.parameters()])
    assert frozen(results[0]) == frozen(results[1])


class Mixed(nn.Module):
    """Takes and returns tensors of many types in many containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, options: dict[str, Any], *, mask: Tensor) -> dict[str, Any]:
        made = torch.ones(2)  # in the default data type of the moment
        inside = {"x": x.dtype, "y": options["y"][0].dtype, "made": made.dtype, "mask": mask.dtype}
        return {"inside": inside, "out": (self.layer(x), made), "count": options["n"], "mask": mask, "text": "as it is"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_are_converted_alike(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
        model = fabric.setup(Mixed())
        options = {"y": [torch.ones(1, dtype=torch.float64)], "n": torch.tensor([3])}
        results.append(model(torch.ones(1, 2), options, mask=torch.tensor([True])))
    assert frozen(results[0]) == frozen(results[1])
    assert torch.get_default_dtype() == torch.float32


def test_evaluation_without_gradients(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
        model = fabric.setup(normed())
        model.eval()
        with torch.no_grad():
            results.append([model.training, model.module.training, model(batches(1)[0][0])])
        model.train()
        results[-1].append(model.module[1].training)
    assert frozen(results[0]) == frozen(results[1])
