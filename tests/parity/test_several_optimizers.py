"""Several models and optimizers, with and without a gradient scaler that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import lightning.fabric.plugins as their_plugins
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fabric_lite as ours
import fabric_lite.plugins as our_plugins

LIBRARIES = (theirs, ours)
Frozen = Callable[[Any], Any]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def batches(number: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(4, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(number)
    ]


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def adversaries(library: ModuleType, together: bool, **arguments: Any) -> dict[str, Any]:
    """A generator against a discriminator: two models, two optimizers, gradients that go through both."""
    library.seed_everything(5, verbose=False)
    fabric = library.Fabric(accelerator="cpu", devices=1, **arguments)
    generator, discriminator = nn.Linear(2, 6), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    first, second = sgd(generator), adamw(discriminator)
    if together:
        generator, first = fabric.setup(generator, first)
        discriminator, second = fabric.setup(discriminator, second)
    else:
        generator, discriminator = fabric.setup_module(generator), fabric.setup_module(discriminator)
        first, second = fabric.setup_optimizers(first, second)
    judge = nn.functional.binary_cross_entropy_with_logits
    losses = []
    for x, _ in batches(3):
        fake = generator(torch.randn(4, 2))
        second.zero_grad()
        loss = judge(discriminator(x), torch.ones(4, 1)) + judge(discriminator(fake.detach()), torch.zeros(4, 1))
        fabric.backward(loss)
        second.step()
        first.zero_grad()
        loss_of_generator = judge(discriminator(fake), torch.ones(4, 1))
        fabric.backward(loss_of_generator, model=generator)
        first.step()
        losses += [loss, loss_of_generator]
    states = [each.state_dict() for each in (generator, discriminator, first, second)]
    precision = fabric._precision.state_dict()
    return {"losses": losses, "states": states, "precision": precision, "random": torch.get_rng_state()}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_several_models_and_optimizers(precision: str, together: bool, frozen: Frozen) -> None:
    their, our = (adversaries(library, together, precision=precision) for library in LIBRARIES)
    assert frozen(our) == frozen(their)


@pytest.mark.parametrize("scale", [4.0, 2.0**19])
def test_several_optimizers_with_one_scaler(scale: float, frozen: Frozen) -> None:
    results = []
    for library, plugins in zip(LIBRARIES, (their_plugins, our_plugins), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
        plugin = plugins.MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        results.append(adversaries(library, True, plugins=plugin))
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.1}])
def test_a_new_optimizer_for_each_step_with_one_scaler(clip: dict[str, float] | None, frozen: Frozen) -> None:
    """The scaler knows an optimizer by its `id`, which the next one may get when it is gone."""
    results = []
    for library, plugins in zip(LIBRARIES, (their_plugins, our_plugins), strict=True):
        library.seed_everything(5, verbose=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        fabric = library.Fabric(plugins=plugins.MixedPrecision("16-mixed", device="cpu", scaler=scaler))
        model = fabric.setup(mlp())
        for x, y in batches():
            optimizer = fabric.setup_optimizers(sgd(model))
            fabric.backward(loss_of(model(x), y))
            if clip is not None:
                fabric.clip_gradients(model, optimizer, **clip)
            optimizer.step()
            optimizer.zero_grad()
            del optimizer
        results.append([model.state_dict(), fabric._precision.state_dict()])
    assert frozen(results[0]) == frozen(results[1])


def test_several_optimizers_of_one_module(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(5, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        model = mlp()
        model, first, second = fabric.setup(model, sgd(model[0]), adamw(model[2]))
        for x, y in batches(3):
            first.zero_grad()
            second.zero_grad()
            fabric.backward(loss_of(model(x), y))
            first.step()
            second.step()
        results.append([model.state_dict(), first.state_dict(), second.state_dict()])
    assert frozen(results[0]) == frozen(results[1])


def test_the_state_of_the_scaler_can_be_put_back_between_steps(frozen: Frozen) -> None:
    results = []
    for library, plugins in zip(LIBRARIES, (their_plugins, our_plugins), strict=True):
        library.seed_everything(5, verbose=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        fabric = library.Fabric(plugins=plugins.MixedPrecision("16-mixed", device="cpu", scaler=scaler))
        model = mlp()
        model, optimizer = fabric.setup(model, sgd(model))
        saved = {"scale": 32.0, **{k: v for k, v in fabric._precision.state_dict().items() if k != "scale"}}
        for i, (x, y) in enumerate(batches()):
            optimizer.zero_grad()
            fabric.backward(loss_of(model(x), y))
            optimizer.step()
            if i == 2:
                fabric._precision.load_state_dict(saved)
        results.append([fabric._precision.state_dict(), model.state_dict()])
    assert frozen(results[0]) == frozen(results[1])
    assert results[0][0]["scale"] == 128.0
