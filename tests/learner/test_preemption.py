"""A signal that reaches one of two processes ends training on both, after the same step; and it goes on from there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric, Learner, TrainingPhase
from fabric_lite.callbacks import Checkpointer, Metrics, Recorder
from fabric_lite.testing import run_distributed

EPOCHS = 3


class Preempt:
    """Sends a signal to the process of rank 1 in the middle of a step."""

    def __init__(self, fabric: Fabric, step: int | None) -> None:
        self.fabric = fabric
        self.left = step

    def on_train_step_begin(self) -> None:
        if self.left is not None and self.fabric.global_rank == 1:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGUSR1)


def train(folder: Path, seed: int, preempt_in: int | None, resume: str | None) -> dict[str, Any]:
    """On each process."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    torch.manual_seed(seed)
    xs = torch.arange(64.0).reshape(32, 2) / 64
    data = DataLoader(TensorDataset(xs, xs.sum(1, keepdim=True)), 4, shuffle=True)
    learner = Learner(
        nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.4), nn.Linear(8, 1)),
        nn.functional.mse_loss,
        data=(data,),
        optimizer=torch.optim.AdamW,
        callbacks=[Recorder(), Metrics(), Checkpointer(folder), Preempt(fabric, preempt_in)],
        fabric=fabric,
        usedefaultcallbacks=False,
    )
    learner.fit(EPOCHS, resume=resume)
    history = learner.cbstate.history[TrainingPhase()]
    return {
        "weights": {name: value.tolist() for name, value in learner.model.state_dict().items()},
        "losses": list(learner.cbstate.metricsepoch[TrainingPhase()]["Loss"]),
        "steps": history.steps,
        "next random number": torch.rand(()).item(),
        "stop": learner.stop_reason,
    }


def test_both_stop_and_go_on(tmp_path: Path) -> None:
    whole = run_distributed(train, 2, tmp_path / "whole", 1, None, None)
    folder = tmp_path / "preempted"
    stopped = run_distributed(train, 2, folder, 1, 6, None)
    assert [each["steps"] for each in stopped] == [6, 6]
    assert {each["stop"] for each in stopped} == {f"preempted by SIGUSR1; everything is in {folder}/latest.ckpt"}
    assert run_distributed(train, 2, folder, 2, None, "latest") == whole
    assert whole[0]["weights"] == whole[1]["weights"]
    assert whole[0]["next random number"] == whole[1]["next random number"]
