"""Two networks that play against each other draw handwritten digits: two optimizers, and a phase of one's own.

An autoencoder whose codes a critic compares with random ones (Makhzani et al., "Adversarial Autoencoders", 2015). When
the critic can no longer tell them apart, the decoder makes a digit of any random code.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fabric_lite import AbstractTrainingPhase, Callback, Event, Fabric, Learner, Read

CODE = 4


class AdversarialPhase(AbstractTrainingPhase):
    """Its hooks are `on_adversarial_*`; callbacks without these are called by `on_train_*` and `on_*`."""

    name = "adversarial"

    def step(self, learner: Any, batch: Tensor) -> None:
        models, optimizers = learner.model, learner.optimizer
        with learner.step_context(self, xs=batch) as state:
            state.codes = models.encoder(state.xs)
            state.preds = models.decoder(state.codes)
            real = torch.ones(len(batch), 1, device=batch.device)
            learner.handle(Event.LOSS_BEGIN)

            optimizers.critic.zero_grad()
            random = torch.randn_like(state.codes)
            verdicts = models.critic(torch.cat([random, state.codes.detach()]))
            state.criticloss = learner.lossfn(verdicts, torch.cat([real, 1 - real]))
            learner.backward(state.criticloss)
            optimizers.critic.step()

            optimizers.encoder.zero_grad()
            optimizers.decoder.zero_grad()
            state.reconstruction = nn.functional.mse_loss(state.preds, state.xs)
            state.loss = state.reconstruction + 0.03 * learner.lossfn(models.critic(state.codes), real)
            learner.backward(state.loss)
            optimizers.encoder.step()
            optimizers.decoder.step()


class Losses(Callback):
    """Prints the mean losses of every tenth epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def stateaccess(self) -> Any:
        return {"step": {"reconstruction": Read(), "criticloss": Read()}}

    def on_adversarial_epoch_begin(self) -> None:
        self.epoch += 1
        self.losses: list[Tensor] = []

    def on_adversarial_step_end(self, learner: Any) -> None:
        self.losses.append(torch.stack([learner.step.reconstruction.detach(), learner.step.criticloss.detach()]))

    def on_adversarial_epoch_end(self) -> None:
        if self.epoch % 10 == 0:
            reconstruction, critic = torch.stack(self.losses).mean(dim=0).tolist()
            print(f"epoch {self.epoch}: reconstruction {reconstruction:.4f}, critic {critic:.3f}")


def network(*sizes: int) -> nn.Sequential:
    layers = [each for a, b in pairwise(sizes) for each in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def main(args: argparse.Namespace) -> None:
    fabric = Fabric(accelerator=args.accelerator)
    fabric.seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    models = {"encoder": network(64, 128, CODE), "decoder": network(CODE, 128, 64), "critic": network(CODE, 64, 1)}
    phase = AdversarialPhase()
    learner = Learner(
        models, nn.BCEWithLogitsLoss(), data={phase: DataLoader(images, batch_size=64, shuffle=True)},
        optimizer=lambda params: torch.optim.Adam(params, lr=0.002), callbacks=Losses(), fabric=fabric,
        usedefaultcallbacks=False,
    )  # fmt: skip
    for _ in range(args.epochs):
        learner.run_epoch(phase)

    with torch.no_grad():
        drawn = learner.model.decoder(torch.randn(1000, CODE, device=fabric.device)).clamp(0, 1).cpu()
    mixed = torch.stack([images[torch.randperm(len(images))[:1000], pixel] for pixel in range(64)], dim=1)
    nearest = torch.cdist(drawn, images).min(dim=1)
    apart = torch.cdist(images, images).fill_diagonal_(torch.inf).min(dim=1).values
    print(f"reconstruction error: {learner.step.reconstruction.item():.4f}, variance {images.var(dim=0).mean():.4f}")
    print(f"kinds of digits drawn: {len(set(digits.target[nearest.indices.numpy()]))}")
    print(f"distance of a drawing to the nearest digit: {nearest.values.mean():.2f}")
    print(f"distance of a digit to the nearest other one: {apart.mean():.2f}")
    print(
        f"distance of mixed-up pixels to the nearest digit: {torch.cdist(mixed, images).min(dim=1).values.mean():.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps, ...; by default the one of this machine")
    main(parser.parse_args())
