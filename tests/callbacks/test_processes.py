"""Callbacks on two real processes: they decide together, count everything once, and only the first one speaks."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric
from fabric_lite.callbacks import (
    Checkpointer,
    Criterion,
    EarlyStopping,
    LogHistograms,
    LogHyperParams,
    LogMetrics,
    Metric,
    Metrics,
    MetricsPrinter,
    ProgressPrinter,
    Recorder,
    SanityCheck,
    SmoothLoss,
    StopOnNaNLoss,
)
from fabric_lite.events import TrainingPhase
from fabric_lite.learner import Learner
from fabric_lite.loggers import CSVLogger, TensorBoardLogger
from fabric_lite.permissions import State
from fabric_lite.testing import run_distributed

Results = list[dict[str, Any]]
PHASE = TrainingPhase()


def connected(*callbacks: Any, **kwargs: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", guard="strict", callbacks=list(callbacks), **kwargs)
    fabric.launch()
    return fabric


def a_learner(fabric: Fabric, *callbacks: Any, xs: Tensor | None = None) -> Learner:
    xs = torch.arange(16.0).reshape(16, 1) / 16 if xs is None else xs
    data = DataLoader(TensorDataset(xs, xs), batch_size=2)
    torch.manual_seed(0)
    return Learner(
        nn.Linear(1, 1),
        nn.functional.mse_loss,
        data=(data, DataLoader(TensorDataset(xs, xs), batch_size=4)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        callbacks=callbacks,
        fabric=fabric,
        usedefaultcallbacks=False,
    )


def fitted(learner: Learner, epochs: int = 5) -> dict[str, Any]:
    problem = None
    try:
        learner.fit(epochs)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    history = getattr(learner.cbstate, "history", {})
    found = history.get(PHASE)
    return {
        "problem": problem,
        "reason": learner.stop_reason,
        "steps": found.steps if found is not None else 0,
        "weights": [p.detach().clone() for p in learner.model.parameters()],
    }


# -- in each of two processes ----------------------------------------------------------------------------------------


class At(Criterion):
    """Stops at the so manieth loss; at different ones in different processes."""

    def __init__(self, number: float) -> None:
        self.number, self.count = number, 0

    def seen(self, loss: float) -> str:
        self.count += 1
        return f"{self.count} losses" if self.count >= self.number else ""

    def __repr__(self) -> str:
        return f"At({self.number})"


def stops_early() -> dict[str, Any]:
    fabric = connected()
    callbacks = Recorder(), Metrics(), EarlyStopping(At(2 if fabric.global_rank else math.inf))
    return fitted(a_learner(fabric, *callbacks))


def stops_on_nan() -> dict[str, Any]:
    xs = torch.arange(16.0).reshape(16, 1) / 16
    xs[9] = math.nan  # the third step of the second process
    return fitted(a_learner(connected(), Recorder(), Metrics(), StopOnNaNLoss(), xs=xs))


def checks() -> dict[str, Any]:
    """A problem with the data of one process is one of all."""
    results = {}
    for what, kind in {"nan": math.nan, "fine": 0.0}.items():
        xs = torch.arange(16.0).reshape(16, 1) / 16
        xs[1] = kind  # in the first batch of the second process
        results[what] = fitted(a_learner(connected(), Recorder(), SanityCheck(), xs=xs), 1)
    return results


def largest(points: list[tuple[float, float]]) -> float:
    return max(value for value, _ in points)


def measures() -> dict[str, Any]:
    """In a loop of one's own, in which the processes have different numbers of steps."""
    fabric = connected(Metrics(difference, SmoothLoss(0.5), Metric(difference, "largest", statistic=largest), Sum()))
    rank = fabric.global_rank
    learner = State(step=State(), cbstate=State(), fabric=fabric)
    fabric.call("on_epoch_begin", learner=learner, phase=PHASE)
    for step in range(1 + 2 * rank):
        size = 1 + step
        preds = torch.full((size,), 10.0 * rank + step)
        learner.step = State(preds=preds, ys=torch.zeros(size), loss=preds.mean())
        fabric.call("on_step_end", learner=learner, phase=PHASE)
    fabric.call("on_epoch_end", learner=learner, phase=PHASE)
    epoch = learner.cbstate.metricsepoch[PHASE]
    return {name: float(series.last) for name, series in epoch.items()}


def difference(preds: Tensor, ys: Tensor) -> Tensor:
    return (preds - ys).mean()


class Own:
    """A metric that has another value in each process: 2, 1, 0, 1 in the first."""

    epoch = -1

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def update(self, preds: Tensor, ys: Tensor) -> None: ...

    def compute(self) -> float:
        return abs(self.epoch - 2) * (1 - self.rank)

    def reset(self) -> None: ...


class Sum:
    """Of the kind of torchmetrics' metrics, which speak to other processes themselves."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def update(self, preds: Tensor, ys: Tensor) -> None:
        self.total += preds.sum()

    def compute(self) -> Tensor:
        total = self.total.clone()
        torch.distributed.all_reduce(total)
        return total

    def reset(self) -> None:
        self.total = torch.zeros(())


def torchmetrics_reduce() -> float:
    from torchmetrics import MeanMetric

    class Mean(MeanMetric):
        def update(self, preds: Tensor, ys: Tensor) -> None:  # type: ignore[override]
            super().update(preds)

    fabric = connected(Metrics(Mean()))
    learner = State(step=State(), cbstate=State(), fabric=fabric)
    fabric.call("on_epoch_begin", learner=learner, phase=PHASE)
    learner.step = State(preds=torch.tensor([1.0 + fabric.global_rank * 9]), ys=torch.zeros(1), loss=torch.zeros(()))
    fabric.call("on_step_end", learner=learner, phase=PHASE)
    fabric.call("on_epoch_end", learner=learner, phase=PHASE)
    return float(learner.cbstate.metricsepoch[PHASE]["Mean"].last)


def logs(folder: Path) -> dict[str, Any]:
    loggers = [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="board")]
    fabric = connected(loggers=loggers)
    text = io.StringIO()
    callbacks = [
        *(Recorder(), Metrics(), LogMetrics(freq=1), ProgressPrinter(text), MetricsPrinter(text)),
        *(LogHyperParams(params={"rank": fabric.global_rank}), LogHistograms(loggers[1], freq=1)),
    ]
    result = fitted(a_learner(fabric, *callbacks), 2)
    for logger in loggers:
        logger.finalize("success")
    return {**result, "text": text.getvalue()}


def keeps_checkpoints(folder: Path) -> dict[str, Any]:
    """Each process has a value of its own; that of the first one names and ranks the checkpoint for all."""
    own = Own(torch.distributed.get_rank())
    checkpointer = Checkpointer(folder, monitor="Own", keep_top_k=2, phase=PHASE)
    fabric = connected(checkpointer, Metrics(own))
    model, optimizer = fabric.setup(module := nn.Linear(1, 1), torch.optim.SGD(module.parameters(), lr=0.1))
    learner = State(step=State(), cbstate=State(), fabric=fabric, model=model, optimizer=optimizer)
    for Own.epoch in range(4):
        fabric.call("on_epoch_begin", learner=learner, phase=PHASE)
        learner.step = State(preds=torch.ones(1), ys=torch.ones(1), loss=torch.zeros(()))
        fabric.call("on_step_end", learner=learner, phase=PHASE)
        fabric.call("on_epoch_end", learner=learner, phase=PHASE)
        with torch.no_grad():
            module.weight.fill_(Own.epoch)
    kept = [(Path(saved.path).name, saved.value) for saved in checkpointer.kept]
    fabric.load(checkpointer.kept[0].path, {"model": model, "optimizer": optimizer, "callbacks": fabric.callbacks})
    return {"kept": kept, "weight": module.weight.item()}


def everything(folder: Path) -> dict[str, Any]:
    results = {each.__name__: each() for each in (stops_early, stops_on_nan, checks, measures)}
    return {**results, "logs": logs(folder / "logs"), "keeps": keeps_checkpoints(folder / "checkpoints")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("callbacks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Results:
    return run_distributed(everything, 2, folder)


# -- what they found -------------------------------------------------------------------------------------------------


def test_one_that_would_stop_early_stops_all(ranks: Results) -> None:
    first, second = (each["stops_early"] for each in ranks)
    assert first["reason"] == "early stopping on 'Loss' of 'validation': another process decided to stop"
    assert second["reason"] == "early stopping on 'Loss' of 'validation': At(2): 2 losses"
    assert first["steps"] == second["steps"] == 8
    assert all(map(torch.equal, first["weights"], second["weights"]))


def test_a_nan_of_one_process_stops_all_in_that_step(ranks: Results) -> None:
    first, second = (each["stops_on_nan"] for each in ranks)
    assert first["reason"] == second["reason"]
    assert first["reason"].startswith("The training loss is NaN in step 3.")
    assert all(map(torch.equal, first["weights"], second["weights"]))
    assert all(bool(weight.isfinite().all()) for weight in first["weights"])


def test_what_is_wrong_in_one_process_is_reported_by_all(ranks: Results) -> None:
    first, second = (each["checks"]["nan"]["problem"] for each in ranks)
    assert first.startswith("SanityCheckException: This training cannot work as it is.")
    assert "Another process found them: see its report." in first
    assert "NaN in it before any training. So have the inputs" in second
    assert [each["checks"]["fine"]["problem"] for each in ranks] == [None, None]


def test_an_epoch_is_measured_over_all_processes(ranks: Results) -> None:
    # one sample of 0 in the first process; one of 10, two of 11 and three of 12 in the second
    smooth = (0.5**3 * 10 + 0.5**2 * 11 + 0.5 * 12) / (1 - 0.5**3)
    expected = {
        "Loss": (10 + 2 * 11 + 3 * 12) / 7,
        "difference": (10 + 2 * 11 + 3 * 12) / 7,
        "SmoothLoss": smooth / 2,
        "largest": 12.0,
        "Sum": 10.0 + 22 + 36,
    }
    for each in ranks:
        assert each["measures"] == pytest.approx(expected)


@pytest.mark.slow  # to import torchmetrics takes long
def test_torchmetrics_are_those_of_all_processes() -> None:
    first, second = run_distributed(torchmetrics_reduce, 2)
    assert first == second == pytest.approx(5.5)


def test_only_the_first_process_speaks_and_logs(ranks: Results, folder: Path) -> None:
    assert [bool(each["logs"]["text"]) for each in ranks] == [True, False]
    assert [each["logs"]["problem"] for each in ranks] == [None, None]
    names = sorted(path.name.split(".")[0] for path in (folder / "logs").rglob("*") if path.is_file())
    assert names == ["events", "hparams", "metrics"]
    rows = (folder / "logs/csv/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == len({row.partition(",")[0] + row for row in rows})
    (hparams,) = (folder / "logs").rglob("hparams.json")
    assert '"rank": 0' in hparams.read_text()


def test_the_first_process_decides_on_checkpoints_and_writes_them(ranks: Results, folder: Path) -> None:
    kept = [("epoch-003-Own-0.000.ckpt", 0.0), ("epoch-004-Own-1.000.ckpt", 1.0)]
    assert [each["keeps"]["kept"] for each in ranks] == [kept, kept]
    assert [each["keeps"]["weight"] for each in ranks] == [1.0, 1.0]  # of before the end of the third epoch
    assert {path.name for path in (folder / "checkpoints").glob("*.ckpt")} == {*dict(kept), "latest.ckpt"}
