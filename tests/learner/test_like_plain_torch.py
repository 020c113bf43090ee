"""Training with a `Learner` ends with the very weights of the same loop in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite.events import Event, TrainingPhase

EPOCHS = 3
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(7)
    xs = torch.randn(40, 3, generator=generator)
    ys = xs.prod(dim=1, keepdim=True)
    return (
        DataLoader(TensorDataset(xs, ys), batch_size=8, shuffle=True),
        DataLoader(TensorDataset(xs, ys), batch_size=20),
    )


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_weights_are_bit_equal(make: Any, cpu: Any, name: str, precision: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    training, validation = loaders()

    def forward(xs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            preds: Tensor = model(xs)
        return preds.float()

    torch.manual_seed(1)
    for _ in range(EPOCHS):
        model.train()
        for xs, ys in training:
            optimizer.zero_grad()
            nn.functional.mse_loss(forward(xs), ys).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            losses = [nn.functional.mse_loss(forward(xs), ys) for xs, ys in validation]

    class Losses:
        def on_validation_epoch_begin(self) -> None:
            self.found: list[Tensor] = []

        def on_validation_step_end(self, learner: Any) -> None:
            self.found.append(learner.step.loss)

    seen = Losses()
    learner = make(seen, model=network(), data=loaders(), optimizer=OPTIMIZERS[name], fabric=cpu(precision=precision))
    torch.manual_seed(1)
    learner.fit(EPOCHS)
    assert equal(learner.model, model)
    assert [loss.item() for loss in seen.found] == [loss.item() for loss in losses]


def generator_and_critic() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"generator": nn.Linear(2, 3), "critic": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))}


class Adversarial(TrainingPhase):
    name = "adversarial"

    def step(self, learner: Any, batch: Tensor) -> None:
        with learner.step_context(self, xs=batch) as state:
            real, fake = torch.ones(len(batch), 1), torch.zeros(len(batch), 1)
            state.fakes = learner.model.generator(torch.randn(len(batch), 2))
            learner.handle(Event.LOSS_BEGIN)
            critic = learner.model.critic
            learner.optimizer.critic.zero_grad()
            loss = learner.lossfn(critic(state.xs), real) + learner.lossfn(critic(state.fakes.detach()), fake)
            learner.backward(loss)
            learner.optimizer.critic.step()
            learner.optimizer.generator.zero_grad()
            state.loss = learner.lossfn(critic(state.fakes), real)
            learner.backward(state.loss)
            learner.optimizer.generator.step()


def test_two_models_and_a_custom_phase(make: Any) -> None:
    batches = list(torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(3)))
    lossfn = nn.functional.binary_cross_entropy_with_logits
    models = generator_and_critic()
    generator, critic = models.values()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in models.values()]
    torch.manual_seed(1)
    for xs in batches * EPOCHS:
        real, fake = torch.ones(len(xs), 1), torch.zeros(len(xs), 1)
        fakes = generator(torch.randn(len(xs), 2))
        optimizers[1].zero_grad()
        (lossfn(critic(xs), real) + lossfn(critic(fakes.detach()), fake)).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        lossfn(critic(fakes), real).backward()
        optimizers[0].step()

    notes: list[str] = []

    class Noting:
        def on_adversarial_step_end(self, learner: Any) -> None:
            notes.append(f"own: {sorted(learner.step)}")

        def on_train_step_end(self) -> None:
            notes.append("not reached")

        def on_train_backward_end(self, learner: Any) -> None:
            notes.append(f"parent's: {len(learner.step.grads)} gradients")

    learner = make(
        Noting(), model=generator_and_critic(), data=(), optimizer=lambda params: torch.optim.Adam(params, lr=0.01)
    )
    learner.lossfn = lossfn
    torch.manual_seed(1)
    for _ in range(EPOCHS):
        learner.run_epoch(Adversarial(), batches)
    assert all(equal(learner.model[name], model) for name, model in models.items())
    assert notes[3:6] == ["parent's: 6 gradients"] * 2 + ["own: ['fakes', 'grads', 'loss', 'xs']"]
