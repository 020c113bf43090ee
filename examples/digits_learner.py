"""Trains a classifier of handwritten digits with a `Learner` and built-in callbacks."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fabric_lite import Fabric, Learner, ValidationPhase
from fabric_lite.callbacks import EarlyStopping, LearningRate, Metrics, Patience, Scheduler, onecycle


def accuracy(preds: Tensor, ys: Tensor) -> Tensor:
    return (preds.argmax(dim=1) == ys).float().mean()


def make_model() -> nn.Module:
    convolutions = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU())
    return nn.Sequential(convolutions, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 3 * 3, 10))


def make_data() -> tuple[DataLoader[Any], DataLoader[Any]]:
    digits = load_digits()  # 1,797 images of 8 x 8 pixels, which come with scikit-learn
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    training, validation = random_split(TensorDataset(images, torch.tensor(digits.target)), [0.8, 0.2])
    return DataLoader(training, batch_size=32, shuffle=True), DataLoader(validation, batch_size=256)


def main(args: argparse.Namespace) -> None:
    fabric = Fabric(accelerator=args.accelerator, precision=args.precision)
    fabric.seed_everything(1)
    # What counts and what prints is there by default. The order of the list does not matter: what each callback reads
    # and writes says which runs first.
    callbacks = [
        EarlyStopping(Patience(4)),
        Scheduler({LearningRate: onecycle(args.epochs, 0.01)}),
        Metrics(accuracy),
    ]
    learner = Learner(
        make_model(), nn.CrossEntropyLoss(), data=make_data(), optimizer=torch.optim.AdamW, callbacks=callbacks,
        fabric=fabric,
    )  # fmt: skip
    learner.fit(args.epochs)

    accuracies = learner.cbstate.metricsepoch[ValidationPhase()]["accuracy"]
    if learner.stop_reason:
        fabric.print(f"stopped early: {learner.stop_reason}")
    fabric.print(f"epochs: {len(accuracies)}")
    fabric.print(f"validation accuracy: {accuracies.last:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="32-true", help="such as 32-true (the default) or bf16-mixed")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps, ...; by default the one of this machine")
    main(parser.parse_args())
