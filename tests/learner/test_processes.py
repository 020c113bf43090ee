"""A `Learner` on two real processes ends where one process with the whole batch ends, with all of its callbacks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric
from fabric_lite.callbacks import (
    EMA,
    Checkpointer,
    EarlyStopping,
    GradientNorm,
    LearningRate,
    LogMetrics,
    LogThroughput,
    Metric,
    Metrics,
    MetricsPrinter,
    Never,
    ProgressPrinter,
    Recorder,
    SanityCheck,
    Scheduler,
    StopOnNaNLoss,
    Timer,
    onecycle,
)
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner
from fabric_lite.loggers import CSVLogger
from fabric_lite.permissions import Callback, CancelFittingException
from fabric_lite.testing import run_distributed

EPOCHS = 3


def loader(fabric: Fabric, size: int, seed: int) -> DataLoader[Any]:
    """Batches of 8 for all processes together."""
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(size, 3, generator=generator)
    ys = xs.prod(dim=1, keepdim=True)
    return DataLoader(TensorDataset(xs, ys), batch_size=8 // fabric.world_size)


def distance(preds: Tensor, ys: Tensor) -> Tensor:
    return (preds - ys).abs().mean()


def mean(points: list[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in points) / sum(weight for _, weight in points)


def fit(fabric: Fabric, folder: Path) -> dict[str, Any]:
    fabric.launch()
    torch.manual_seed(0)
    text = io.StringIO()
    ema, norm = EMA(0.5), GradientNorm(freq=1)
    checkpointer = Checkpointer(folder / "checkpoints", monitor="Loss")
    callbacks = [
        *(Recorder(), StopOnNaNLoss(), SanityCheck(), Timer(), ProgressPrinter(text), MetricsPrinter(text)),
        *(LogMetrics(freq=1), LogThroughput(freq=1, clock=iter(range(1000)).__next__)),
        Metrics(distance, Metric(distance, "statistic", statistic=mean)),
        *(ema, norm, checkpointer, EarlyStopping(Never()), Scheduler({LearningRate: onecycle(EPOCHS, 0.1)})),
    ]
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    learner = Learner(
        model,
        nn.functional.mse_loss,
        data=(loader(fabric, 32, 1), loader(fabric, 16, 2)),
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.1),
        callbacks=callbacks,
        fabric=fabric,
    )
    learner.fit(EPOCHS)
    epochs = learner.cbstate.metricsepoch
    state = {"model": learner.model, "optimizer": learner.optimizer}
    fabric.load(checkpointer.latest_path, state)
    return {
        "weights": {name: value.detach().clone() for name, value in model.named_parameters()},
        "average": {name: value.detach().clone() for name, value in ema.averaged["model"].named_parameters()},
        "metrics": {
            f"{phase.name}/{name}": torch.tensor(list(series))
            for phase in (TrainingPhase(), ValidationPhase())
            for name, series in epochs[phase].items()
        },
        "norm": learner.cbstate.gradientnorm.clone(),
        "rate": learner.optimizer.param_groups[0]["lr"],
        "steps": learner.cbstate.history[TrainingPhase()].steps,
        "saved": (checkpointer.best, checkpointer.epochs, checkpointer.steps),
        "names": list(learner.params),
        "text": text.getvalue(),
        "stopped": learner.stop_reason,
        "order": [type(callback).__name__ for callback in fabric.callbacks],
    }


def everywhere(folder: Path) -> dict[str, Any]:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", guard="strict", loggers=CSVLogger(folder / "logs"))
    return {"fit": fit(fabric, folder), "caught": caught()}


class Meddles(Callback):
    """Says that it reads, and writes."""

    def stateaccess(self) -> Any:
        from fabric_lite.permissions import Read

        return {"params": Read()}

    def on_backward_end(self, learner: Any) -> None:
        with torch.no_grad():
            next(iter(learner.params.values())).zero_()


class StopsAll(Callback):
    def on_train_epoch_end(self) -> None:
        raise CancelFittingException("enough")


def caught() -> dict[str, Any]:
    """What guarded callbacks do wrong is noticed on each process."""
    results: dict[str, Any] = {}
    for callback in (Meddles(), StopsAll()):
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", guard="strict", callbacks=callback)
        fabric.launch()
        data = (loader(fabric, 16, 1),)
        learner = Learner(nn.Linear(3, 1), nn.functional.mse_loss, data=data, fabric=fabric, usedefaultcallbacks=False)
        try:
            learner.fit(2)
        except Exception as error:
            results[type(callback).__name__] = f"{type(error).__name__}: {error}"
        else:
            results[type(callback).__name__] = learner.stop_reason
    return results


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folders: tuple[Path, Path]) -> list[dict[str, Any]]:
    return run_distributed(everywhere, 2, folders[1])


@pytest.fixture(scope="module")
def one(folders: tuple[Path, Path]) -> dict[str, Any]:
    return fit(Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(folders[0] / "logs")), folders[0])


@pytest.mark.parametrize("what", ["weights", "average", "metrics", "norm"])
def test_two_processes_are_one_with_the_whole_batch(what: str, one: Any, two: Any) -> None:
    torch.testing.assert_close(two[0]["fit"][what], one[what], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two[0]["fit"][what], two[1]["fit"][what], rtol=0, atol=0)


def test_the_course_is_the_same(one: Any, two: Any) -> None:
    for each in two:
        found = each["fit"]
        for what in ("rate", "steps", "names", "stopped", "order"):
            assert found[what] == one[what], what
        assert found["saved"][1:] == one["saved"][1:]
        assert Path(found["saved"][0].path).name == Path(one["saved"][0].path).name


def test_the_first_process_alone_speaks_and_writes(one: Any, two: Any, folders: tuple[Path, Path]) -> None:
    assert two[1]["fit"]["text"] == ""
    assert len(two[0]["fit"]["text"].splitlines()) == len(one["text"].splitlines()) > EPOCHS
    alone, together = (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in folders
    )
    assert together == alone
    rows = [(folder / "logs/lightning_logs/version_0/metrics.csv").read_text().splitlines() for folder in folders]
    assert len(rows[0]) == len(rows[1]) > EPOCHS


def test_a_callback_is_held_to_its_word_on_each_process(two: Any) -> None:
    for each in two:
        found = each["caught"]["Meddles"]
        assert found.startswith("ProtectedException: ")
        assert "Meddles" in found
        assert each["caught"]["StopsAll"] == "enough"
