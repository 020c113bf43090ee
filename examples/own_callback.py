"""A callback of one's own, from the first line to the last, with the errors that one sees on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fabric_lite import Callback, CallbackGraphError, Fabric, Learner, Phase, ProtectedException, Read
from fabric_lite.callbacks import Recorder


class HelloPrinter(Callback):
    """1. A callback has methods that are called like events. It says what happens at the end of a step."""

    def on_step_end(self) -> None:
        print("Hello, World!")


class LossPrinter(Callback):
    """2. It wants to print the loss. But it has not said that it reads it."""

    def on_step_end(self, learner: Any) -> None:
        print(f"Step loss: {learner.step.loss:.4f}")


class DeclaringPrinter(LossPrinter):
    """3. Now it has."""

    def stateaccess(self) -> Any:
        return {"step": {"loss": Read()}}


class Printer(Callback):
    """4. The number of the step is in `cbstate`, where callbacks leave things for one another. `Recorder` puts it
    there, and has to be among the callbacks. That `Printer` reads what `Recorder` writes is enough to order the two.
    """

    def stateaccess(self) -> Any:
        return {"step": {"loss": Read()}, "cbstate": {"history": Read()}}

    def on_step_end(self, learner: Any, phase: Phase) -> None:
        step = learner.cbstate.history[phase].stepsepoch
        print(f"Step {step} loss: {learner.step.loss:.4f}")


class TrainingPrinter(Callback):
    """5. A method for one phase: in validation, it has none."""

    stateaccess = Printer.stateaccess
    on_train_step_end = Printer.on_step_end


def fit(*callbacks: Any) -> Learner:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0)
    xs = torch.randn(3, 8, 4)
    batches = [(x, x.sum(dim=1, keepdim=True)) for x in xs]
    learner = Learner(
        nn.Linear(4, 1),
        nn.MSELoss(),
        data=(batches[:2], batches[2:]),
        callbacks=callbacks,
        fabric=fabric,
        usedefaultcallbacks=False,
    )
    learner.fit(1)
    return learner


def show(title: str, run: Callable[[], object]) -> None:
    print(f"--- {title}")
    try:
        run()
    except (ProtectedException, CallbackGraphError) as error:
        print(f"{type(error).__name__}: {error}")


def main() -> None:
    show("1. It prints at the end of each step, of two in training and one in validation", lambda: fit(HelloPrinter()))
    show("2. It may read nothing that it has not declared", lambda: fit(LossPrinter()))
    show("3. So it declares what it reads", lambda: fit(DeclaringPrinter()))
    show("4. What it reads, somebody has to write: this is found before anything runs", lambda: fit(Printer()))
    show("5. With a Recorder, wherever it is listed, it works", lambda: fit(Printer(), Recorder()))
    show("6. In training only", lambda: fit(TrainingPrinter(), Recorder()))
    show("7. Why Recorder runs first", lambda: print(fit(Printer(), Recorder()).callbacks.graph.explain()))


if __name__ == "__main__":
    main()
