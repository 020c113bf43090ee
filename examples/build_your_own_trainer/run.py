"""Trains a classifier of handwritten digits with the `Trainer` of trainer.py."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from trainer import Trainer

from fabric_lite import Callback, Fabric, Read, Write
from fabric_lite.callbacks import HookProfiler, LogRun
from fabric_lite.loggers import CSVLogger

Batch = tuple[Tensor, Tensor]


class DigitClassifier(nn.Module):
    """A model as for Lightning's trainer, of which it needs nothing."""

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 3 * 3, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Any:
        return self.layers(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        scores = self(images)
        accuracy = (scores.argmax(dim=1) == labels).float().mean()
        return {"loss": nn.functional.cross_entropy(scores, labels), "accuracy": accuracy}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        halve = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return optimizer, {"scheduler": halve, "monitor": "val_loss"}

    def on_before_optimizer_step(self, learner: Any, optimizer: Any) -> None:
        learner.fabric.clip_gradients(learner.model, optimizer, max_norm=1.0)


class StopWithoutProgress(Callback):
    """Stops when the accuracy has not risen for some epochs. It may touch what it declares, and nothing else."""

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.best, self.waited = 0.0, 0

    def stateaccess(self) -> dict[str, Any]:
        return {"metrics.val_accuracy": Read(), "should_stop": Write()}

    def on_validation_epoch_end(self, learner: Any) -> None:
        accuracy = learner.metrics.val_accuracy
        self.best, self.waited = (accuracy, 0) if accuracy > self.best else (self.best, self.waited + 1)
        if self.waited >= self.patience:
            learner.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Any) -> None:
        self.best, self.waited = state["best"], state["waited"]


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


def main(args: argparse.Namespace) -> None:
    trainer = Trainer(
        accelerator=args.accelerator,
        devices=args.devices,
        strategy=args.strategy,
        precision=args.precision,
        callbacks=[StopWithoutProgress(), LogRun(args.run_dir, vars(args)), HookProfiler()],
        loggers=CSVLogger(args.run_dir, name="metrics"),
        max_epochs=args.epochs,
        grad_accum_steps=args.accumulate,
        checkpoint_dir=args.checkpoint_dir or args.run_dir / "checkpoints",
    )
    trainer.fabric.seed_everything(1)
    images, labels = load_digits(trainer.fabric)
    training, validation = random_split(TensorDataset(images.unsqueeze(1), labels), [0.8, 0.2])
    trainer.fit(
        DigitClassifier(),
        DataLoader(training, batch_size=64, shuffle=True),
        DataLoader(validation, batch_size=256),
        ckpt_path="latest" if args.resume else None,
    )
    trainer.fabric.print(f"epochs: {trainer.current_epoch}, steps: {trainer.global_step}")
    trainer.fabric.print(f"validation accuracy: {trainer.metrics.val_accuracy:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps, ...; by default the one of this machine")
    parser.add_argument("--devices", default="auto", help="how many, or which ones; by default one on a CPU")
    parser.add_argument("--strategy", default="auto", help="such as ddp or fsdp")
    parser.add_argument("--precision", help="such as 32-true (the default) or bf16-mixed")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--accumulate", type=int, default=1, help="batches that make up one step of the optimizer")
    parser.add_argument("--run-dir", type=Path, default=Path("run"), help="folder for all that the run leaves")
    parser.add_argument("--checkpoint-dir", type=Path, help="another folder for the checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, if there is one")
    main(parser.parse_args())
