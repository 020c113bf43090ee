"""Built-in callbacks in a hand-written loop: it has a state, and passes it as `learner=` to `fabric.call`."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fabric_lite import CancelFittingException, Fabric, State, TrainingPhase, ValidationPhase
from fabric_lite.callbacks import (
    EarlyStopping,
    LearningRate,
    Metrics,
    MetricsPrinter,
    Patience,
    Recorder,
    Scheduler,
    onecycle,
)

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


def accuracy(preds: Tensor, ys: Tensor) -> Tensor:
    return (preds.argmax(dim=1) == ys).float().mean()


def make_dataloaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    training, validation = random_split(data, [0.8, 0.2])
    return DataLoader(training, batch_size=32, shuffle=True), DataLoader(validation, batch_size=256)


def train_epoch(fabric: Fabric, state: State) -> None:
    state.model.train()
    fabric.call("on_epoch_begin", learner=state, phase=TRAIN)
    for xs, ys in state.data["train"]:
        state.step = State(xs=xs, ys=ys)
        fabric.call("on_step_begin", learner=state, phase=TRAIN)
        state.optimizer.zero_grad()
        state.step.preds = state.model(xs)
        state.step.loss = state.lossfn(state.step.preds, ys)
        fabric.backward(state.step.loss)
        fabric.clip_gradients(state.model, state.optimizer, max_norm=1.0)  # a loop of one's own: no hook was needed
        state.optimizer.step()
        fabric.call("on_step_end", learner=state, phase=TRAIN)
    fabric.call("on_epoch_end", learner=state, phase=TRAIN)


@torch.no_grad()
def validate(fabric: Fabric, state: State) -> None:
    state.model.eval()
    fabric.call("on_epoch_begin", learner=state, phase=VALIDATION)
    for xs, ys in state.data["validation"]:
        preds = state.model(xs)
        state.step = State(xs=xs, ys=ys, preds=preds, loss=state.lossfn(preds, ys))
        fabric.call("on_step_end", learner=state, phase=VALIDATION)
    fabric.call("on_epoch_end", learner=state, phase=VALIDATION)


def main(args: argparse.Namespace) -> None:
    callbacks = [
        Recorder(),
        Metrics(accuracy),
        MetricsPrinter(),
        Scheduler({LearningRate: onecycle(args.epochs, 0.01)}),
        EarlyStopping(Patience(4)),
    ]
    fabric = Fabric(accelerator=args.accelerator, callbacks=callbacks)
    fabric.seed_everything(1)
    training, validation = fabric.setup_dataloaders(*make_dataloaders())
    model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters()))
    # Any object does as a learner. Callbacks ask for entries by the names that a `Learner` has, and for no others.
    state = State(
        model=model,
        optimizer=optimizer,
        lossfn=nn.CrossEntropyLoss(),
        data={"train": training, "validation": validation},
        fabric=fabric,
        step=State(),
        cbstate=State(),
    )
    try:
        fabric.call("on_fit_begin", learner=state)
        for _ in range(args.epochs):
            train_epoch(fabric, state)
            validate(fabric, state)
    except CancelFittingException as reason:
        fabric.print(f"stopped early: {reason}")
    fabric.call("on_fit_end", learner=state)

    fabric.print(f"steps: {state.cbstate.history[TRAIN].steps}")
    fabric.print(f"validation accuracy: {state.cbstate.metricsepoch[VALIDATION]['accuracy'].last:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps, ...; by default the one of this machine")
    main(parser.parse_args())
