"""Trains a classifier of handwritten digits with a `Learner` and built-in callbacks."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fabric_lite import Fabric, Learner, ValidationPhase
from fabric_lite.callbacks import EarlyStopping, LearningRate, Metrics, Patience, Scheduler, onecycle


def accuracy(preds: Tensor, ys: Tensor) -> Tensor:
    return (preds.argmax(dim=1) == ys).float().mean()


def make_model() -> nn.Module:
    convolutions = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU())
    return nn.Sequential(convolutions, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 3 * 3, 10))


def load_digits(fabric: Fabric) -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels and their labels, which come with scikit-learn; without it, drawn ones."""
    if find_spec("sklearn") is None:
        fabric.print("scikit-learn is not installed: training on drawn digits")
        return draw_digits()
    from sklearn import datasets

    digits = datasets.load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)


def draw_digits(count: int = 1797) -> tuple[Tensor, Tensor]:
    """Digits as on a pocket calculator, here or there among 8 x 8 pixels, with noise."""
    drawings = "75557 11111 71747 71717 55711 74717 74757 71111 75757 75717".split()  # five rows of three bits
    figures = torch.tensor([[[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in rows] for rows in drawings])
    generator = torch.Generator().manual_seed(0)  # the same in every run and on every process
    labels = torch.randint(10, (count,), generator=generator)
    places = torch.randint(1, 4, (count, 2), generator=generator).tolist()
    images = 0.2 * torch.randn(count, 8, 8, generator=generator)
    for image, label, (top, left) in zip(images, labels.tolist(), places, strict=True):
        image[top : top + 5, left : left + 3] += figures[label]
    return images.clamp(0, 1), labels


def make_data(fabric: Fabric) -> tuple[DataLoader[Any], DataLoader[Any]]:
    images, labels = load_digits(fabric)
    training, validation = random_split(TensorDataset(images.unsqueeze(1), labels), [0.8, 0.2])
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
        make_model(), nn.CrossEntropyLoss(), data=make_data(fabric), optimizer=torch.optim.AdamW, callbacks=callbacks,
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
