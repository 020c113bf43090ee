"""Trains a classifier of handwritten digits in a loop of its own; callbacks look on through `fabric.call`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fabric_lite import Fabric
from fabric_lite.loggers import CSVLogger

# Callbacks are objects of any class. Each method takes what it needs of what the loop passes to `fabric.call`.


class TrainingMetrics:
    def on_train_epoch_end(self, train_loss: float) -> None:
        print(f"Training loss: {train_loss:.4f}")


class ValidationMetrics:
    def on_train_epoch_end(self, val_accuracy: float) -> None:
        print(f"Validation accuracy: {val_accuracy:.4f}")


class Comprehensive:
    def on_train_epoch_end(self, epoch: int, **kwargs: float) -> None:
        print(f"Epoch {epoch} complete with metrics: {kwargs}")


class IterationTimer:  # on a GPU, what takes the time is to hand it the work
    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_start(self) -> None:
        self.start = perf_counter()

    def on_train_batch_end(self, iteration: int) -> None:
        seconds = perf_counter() - self.start
        if iteration % self.every == 0:
            print(f"Iteration {iteration} took {1000 * seconds:.1f} ms")


class ProgressLines:
    def on_train_epoch_start(self, epoch: int, epochs: int) -> None:
        print(f"--- epoch {epoch} of {epochs}")


class ProgressBar:  # for a terminal, with the extra `progress`
    def on_fit_start(self, iteration: int, iterations: int) -> None:
        from rich.progress import Progress

        self.bar = Progress()
        self.task = self.bar.add_task("training", completed=iteration, total=iterations)
        self.bar.start()

    def on_train_batch_end(self) -> None:
        self.bar.advance(self.task)

    def on_fit_end(self) -> None:
        self.bar.stop()


def make_model() -> nn.Module:
    convolutions = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU())
    return nn.Sequential(convolutions, nn.Flatten(), nn.Linear(32 * 3 * 3, 10))


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


def make_dataloaders(fabric: Fabric) -> tuple[DataLoader[Any], DataLoader[Any]]:
    images, labels = load_digits(fabric)
    training, validation = random_split(TensorDataset(images.unsqueeze(1), labels), [0.8, 0.2])
    return DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=256)


def train_epoch(fabric: Fabric, state: dict[str, Any], loader: Any) -> float:
    state["model"].train()
    losses = []
    for images, labels in loader:
        fabric.call("on_train_batch_start")
        state["optimizer"].zero_grad()
        loss = nn.functional.cross_entropy(state["model"](images), labels)
        fabric.backward(loss)
        state["optimizer"].step()
        state["iteration"] += 1
        losses.append(loss.detach())
        fabric.call("on_train_batch_end", loss=loss, iteration=state["iteration"])
    return float(fabric.all_reduce(torch.stack(losses).mean()))


@torch.no_grad()
def accuracy(fabric: Fabric, model: nn.Module, loader: Any) -> float:
    model.eval()
    hits = torch.cat([model(images).argmax(dim=1) == labels for images, labels in loader])
    return float(fabric.all_reduce(hits.float().mean()))


def main(args: argparse.Namespace) -> None:
    progress = ProgressBar() if sys.stdout.isatty() and find_spec("rich") else ProgressLines()
    callbacks = [progress, TrainingMetrics(), ValidationMetrics(), Comprehensive(), IterationTimer(every=40)]
    out = args.out or Path(tempfile.mkdtemp(prefix="digits-"))
    logger = CSVLogger(out, name="metrics")
    fabric = Fabric(
        accelerator=args.accelerator,
        devices=args.devices,
        precision=args.precision,
        callbacks=callbacks,
        loggers=logger,
    )
    fabric.launch()
    fabric.seed_everything(1)
    checkpoint = fabric.broadcast(out) / "digits.ckpt"  # one for all processes

    training, validation = fabric.setup_dataloaders(*make_dataloaders(fabric))
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    state = {"model": model, "optimizer": optimizer, "epoch": 0, "iteration": 0}
    if checkpoint.exists():
        fabric.load(checkpoint, state)

    fabric.call("on_fit_start", iteration=state["iteration"], iterations=args.epochs * len(training))
    try:
        for epoch in range(state["epoch"] + 1, args.epochs + 1):
            fabric.call("on_train_epoch_start", epoch=epoch, epochs=args.epochs)
            loss = train_epoch(fabric, state, training)
            metrics = {"train_loss": loss, "val_accuracy": accuracy(fabric, model, validation)}
            fabric.call("on_train_epoch_end", epoch=epoch, **metrics)
            fabric.log_dict(metrics, step=epoch)
            state["epoch"] = epoch
            fabric.save(checkpoint, state)
    finally:
        fabric.call("on_fit_end")
        logger.finalize("done")

    restored = fabric.setup(make_model())  # what counts is what was saved
    fabric.load(checkpoint, {"model": restored})
    fabric.print(f"metrics and checkpoint: {out}")
    fabric.print(f"validation accuracy: {accuracy(fabric, restored, validation):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="32-true", help="such as 32-true (the default) or bf16-mixed")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps, ...; by default the one of this machine")
    parser.add_argument("--devices", default="1", help="how many, or which ones")
    parser.add_argument("--out", type=Path, help="folder of metrics and checkpoint; a run goes on from what is there")
    main(parser.parse_args())
