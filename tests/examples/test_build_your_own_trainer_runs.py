"""The trainer to copy on several processes, killed and resumed, and its script as a user runs it."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import CancelFittingException, TrainingPhase
from fabric_lite.callbacks import Metrics
from fabric_lite.testing import assert_resume_equal, run_distributed
from fabric_lite.utilities.distributed import _is_dtensor

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "build_your_own_trainer"
SPEC = importlib.util.spec_from_file_location("build_your_own_trainer", FOLDER / "trainer.py")
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = MODULE  # where dataclasses look for the names in annotations
SPEC.loader.exec_module(MODULE)

XS = torch.linspace(-1, 1, 80).reshape(40, 2)
YS = XS.sum(1, keepdim=True) + 0.5


class Net(nn.Module):
    def __init__(self, dropout: float = 0.3, interval: str = "epoch") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.interval = interval

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        xs, ys = batch
        preds = self.layers(xs)
        return {"loss": nn.functional.mse_loss(preds, ys), "preds": preds, "ys": ys}

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.01)
        if self.interval == "step":
            return optimizer, {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}
        return optimizer, {"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": "train_loss"}


def loader(batch_size: int = 4, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(TensorDataset(XS, YS), batch_size, shuffle=shuffle)


def make(folder: Path, callbacks: Any = None, **kwargs: Any) -> Any:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    defaults = {"accelerator": "cpu", "devices": processes, "max_epochs": 2, "checkpoint_dir": folder}
    return MODULE.Trainer(**{**defaults, **kwargs}, callbacks=callbacks)


def whole(model: nn.Module) -> dict[str, Any]:
    """The parameters, of all processes together."""
    state: dict[str, Any] = model.state_dict()
    return {name: value.full_tensor() if _is_dtensor(value) else value for name, value in state.items()}


# -- several processes ---------------------------------------------------------------------------------------------


def train(folder: Path, batch_size: int, **kwargs: Any) -> Any:
    model = Net(dropout=0.0)
    trainer = make(folder, **kwargs)
    trainer.fit(model, loader(batch_size), loader(batch_size))
    return whole(model), dict(trainer.metrics), trainer.optimizer.param_groups[0]["lr"], trainer.global_step


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does_with_batches_of_twice_the_size(strategy: str, tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", 4, grad_accum_steps=3)
    results = run_distributed(train, 2, tmp_path / strategy, 2, strategy=strategy, grad_accum_steps=3)
    for each in results:
        torch.testing.assert_close(each, alone)
    assert results[0][1] == results[1][1], "means are those of all processes, bit for bit"


class OnRankOne:
    """Does something after the fourth batch, on one process of two."""

    def __init__(self, action: str) -> None:
        self.action = action

    def on_train_batch_end(self, learner: Any, batch_idx: int) -> None:
        if learner.fabric.global_rank == 1 and batch_idx == 3:
            if self.action == "cancel":
                raise CancelFittingException("enough")
            setattr(learner, self.action, True)

    def on_validation_epoch_end(self, learner: Any) -> None:
        if learner.fabric.global_rank == 1 and self.action == "stop after validation":
            learner.should_stop = True


def train_until(folder: Path) -> list[Any]:
    results = []
    for action in ("should_stop", "cancel", "should_save", "stop after validation"):
        trainer = make(folder / action, OnRankOne(action), strategy="ddp") if not results else results[-1][1]
        trainer.callbacks.replace(OnRankOne(action))
        trainer.checkpoint_dir = folder / action
        trainer.fit(Net(), loader(), loader())
        results.append((action, trainer, trainer.current_epoch, trainer.batch_idx))
    return [(action, epoch, batch) for action, _, epoch, batch in results]


def test_what_one_process_wants_all_do_at_the_same_step(tmp_path: Path) -> None:
    expected = [("should_stop", 0, 4), ("cancel", 0, 4), ("should_save", 2, 0), ("stop after validation", 1, 0)]
    assert run_distributed(train_until, 2, tmp_path) == [expected, expected]
    saved = {action: sorted(path.stem for path in (tmp_path / action).iterdir()) for action, *_ in expected}
    assert saved["should_stop"] == saved["cancel"] == ["unfinished-epoch"]
    assert saved["should_save"] == ["epoch-0001", "epoch-0002", "unfinished-epoch"]
    assert saved["stop after validation"] == ["epoch-0001"]


def two_fits(folder: Path) -> Any:
    """Save in the middle of an epoch; then go on with another number of processes."""
    trainer = make(folder, strategy="ddp", max_steps=3)
    trainer.fit(Net(), loader(2))
    return trainer.batch_idx


def test_it_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    assert run_distributed(two_fits, 2, tmp_path) == [3, 3]
    trainer = make(tmp_path, max_steps=12)
    with pytest.warns(UserWarning, match="was saved by 2 processes and is loaded by 1"):
        trainer.fit(Net(), loader(2), ckpt_path="latest")
    assert (trainer.current_epoch, trainer.batch_idx, trainer.global_step) == (0, 6 + 9, 12)


# -- killed and resumed --------------------------------------------------------------------------------------------


class SavesEachStep:
    def __init__(self, after_step: Callable[[], None]) -> None:
        self.after_step = after_step

    def on_train_batch_start(self, learner: Any) -> None:
        if learner.global_step:
            self.after_step()

    def on_train_batch_end(self, learner: Any) -> None:
        learner.should_save = True


def resumable(folder: Path, after_step: Callable[[], None], interval: str = "epoch", **kwargs: Any) -> Any:
    """Dropout, shuffling, moments, a schedule, accumulated gradients, and metrics that differ by process."""
    model, metrics = Net(interval=interval), Metrics()
    trainer = make(folder, [SavesEachStep(after_step), metrics], grad_accum_steps=2, **kwargs)
    trainer.fit(model, loader(8 // trainer.fabric.world_size, shuffle=True), loader(), ckpt_path="latest")
    means = list(metrics.epochs[TrainingPhase()]["Loss"])
    rate = trainer.optimizer.param_groups[0]["lr"]
    return whole(model), trainer.optimizer.state_dict()["param_groups"], rate, means, dict(trainer.metrics)


def alone(folder: Path, after_step: Callable[[], None]) -> Any:
    return resumable(folder, after_step, interval="step")


def with_ddp(folder: Path, after_step: Callable[[], None]) -> Any:
    return resumable(folder, after_step, strategy="ddp")


def with_fsdp2(folder: Path, after_step: Callable[[], None]) -> Any:
    return resumable(folder, after_step, strategy="fsdp")


def test_killed_after_a_step_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Five batches an epoch, two or one of them to a step: the first, some within a step, and one after an epoch."""
    assert_resume_equal(alone, steps=[1, 2, 4, 6])


@pytest.mark.slow
@pytest.mark.parametrize("train", [with_ddp, with_fsdp2])
def test_so_do_two_processes(train: Any) -> None:
    assert_resume_equal(train, steps=[2, 5], processes=2)


# -- the script ----------------------------------------------------------------------------------------------------

# One thread: many would wait for each other where the tests of others run on the same cores.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def script(folder: Path, *args: str) -> str:
    command = [sys.executable, "-W", "error", str(FOLDER / "run.py"), "--accelerator", "cpu", *args]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    output = script(tmp_path)
    found = re.search(r"^epochs: 6, steps: 138\nvalidation accuracy: (0\.\d{3})$", output, re.MULTILINE)
    assert found is not None, output
    assert float(found[1]) > 0.9
    accuracies = [float(row["val_accuracy"]) for row in rows(tmp_path / "run/metrics/version_0") if row["val_accuracy"]]
    assert len(accuracies) == 6
    assert f"{accuracies[-1]:.3f}" == found[1]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 6
    assert (tmp_path / "run/log_run.json").exists()
