"""`Metrics`: measures each step and each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch

from fabric_lite.callbacks._by_phase import ByPhase
from fabric_lite.callbacks.metric import Loss, Metric, Points, SmoothLoss, as_number, samples
from fabric_lite.callbacks.series import Series
from fabric_lite.permissions import Callback, Read, StateAccess, Write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Metric", "MetricSeries", "Metrics", "Series", "SmoothLoss"]


class Metrics(Callback):
    """Measures each step and each epoch of each phase, the loss always.

    The values are in ``cbstate.metricsstep[phase]`` and ``cbstate.metricsepoch[phase]``: `Series` by the name of the
    metric, which is there from its first value on. Steps and epochs are counted here, from 1, for each phase.

    On several processes, the value of a step is that of this process, and the value of an epoch is that of all.
    The state of a torchmetrics object in the middle of an epoch is not part of `state_dict`.

    State access: reads ``step.loss``, ``step.preds``, ``step.ys``, ``step.xs`` (for the number of samples) and
    ``fabric``; writes ``cbstate.metricsstep`` and ``cbstate.metricsepoch``. Without ``fabric``, there is one process.

    Args:
        *metrics: Functions of predictions and targets, objects of torchmetrics, `Metric`, `SmoothLoss`.
        weight: Whether the value of an epoch is the mean over ``"samples"``, or over steps: ``"step"``.

    Raises:
        TypeError: If something is no metric.
        ValueError: If two metrics have one name, or the weight is unknown.
    """

    differs_by_rank = True  # in the middle of an epoch, before the sums of the processes are put together

    def __init__(self, *metrics: Any, weight: Literal["samples", "step"] = "samples") -> None:
        if weight not in ("samples", "step"):
            raise ValueError(f"Metrics(weight={weight!r}) is unknown; pass weight='samples' or weight='step'.")
        chosen = [metric if isinstance(metric, Metric) else Metric(metric) for metric in metrics]
        if all(metric.name != "Loss" for metric in chosen):
            chosen.insert(0, Loss())
        names = [metric.name for metric in chosen]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"Two metrics are called {name!r}, and one would hide the other. Give one another name:"
                    ' `Metric(fn, name="...")`.'
                )
        self._chosen = chosen
        self._by_samples = weight == "samples"
        self._record = _Record(chosen)
        self._in_use = False

    @property
    def steps(self) -> MetricSeries:
        """The values of the steps, as in ``cbstate.metricsstep``."""
        return self._record.steps

    @property
    def epochs(self) -> MetricSeries:
        """The values of the epochs, as in ``cbstate.metricsepoch``."""
        return self._record.epochs

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the values of the epochs.

        Args:
            path: Of the image to write; its ending says in which format.

        Returns:
            The figure.
        """
        return self.epochs.plot(path)

    def stateaccess(self) -> StateAccess:  # noqa: D102
        return {
            "step": {"loss": Read(), "preds": Read(), "ys": Read(), "xs": Read()},
            "fabric": Read(),
            "cbstate": {"metricsstep": Write(), "metricsepoch": Write()},
        }

    def init(self, learner: Any) -> None:  # noqa: D102
        self._of(learner)

    def on_epoch_begin(self, learner: Any, phase: Any) -> None:
        """Forget what belonged to an epoch before."""
        self._of(learner).begun(phase).begin()

    def on_step_end(self, learner: Any, phase: Any) -> None:
        """Measure a step."""
        record, step = self._of(learner).begun(phase), learner.step
        record.count += 1
        weight: float | None = None
        with torch.no_grad():
            for metric in record.metrics:
                value = metric.measure(step, phase)
                if value is None:
                    continue
                if weight is None:
                    weight = float(samples(step)) if self._by_samples else 1.0
                record.steps.setdefault(metric.name, Series()).append(record.count, as_number(value, metric.name))
                record.weights.setdefault(metric.name, []).append(weight)

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Put the steps of the epoch together."""
        record = self._of(learner).begun(phase)
        record.epoch += 1
        fabric = getattr(learner, "fabric", None)
        several = fabric if getattr(fabric, "world_size", 1) > 1 else None
        for name, value in _summary(record, several).items():
            record.epochs.setdefault(name, Series()).append(record.epoch, value)
        record.begin()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self._record.state_dict(_OnePhase.state_dict)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._record.load_state_dict(state)

    def _of(self, learner: Any) -> _Record:
        """What was measured of a learner. The first one gets what may have been loaded, another one its own."""
        found = getattr(learner.cbstate, "metricsstep", None)
        if found is None:
            record = _Record(self._chosen) if self._in_use else self._record
            learner.cbstate.metricsstep, learner.cbstate.metricsepoch = record.steps, record.epochs
            self._record, self._in_use = record, True
        else:
            self._record = found.record
        return self._record


class _OnePhase:
    """What was measured in one phase."""

    def __init__(self, metrics: list[Metric]) -> None:
        self.metrics = metrics
        self.count = 0
        self.epoch = 0
        self.steps: dict[str, Series] = {}
        self.epochs: dict[str, Series] = {}
        self.weights: dict[str, list[float]] = {}

    def begin(self) -> None:
        self.weights.clear()
        for metric in self.metrics:
            metric.begin()

    def points(self, name: str) -> Points:
        """Value and weight of each step of the current epoch."""
        weights = self.weights.get(name, [])
        return list(zip(self.steps[name].latest(len(weights)), weights, strict=True)) if weights else []

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "epoch": self.epoch,
            "steps": {name: series.state_dict() for name, series in self.steps.items()},
            "epochs": {name: series.state_dict() for name, series in self.epochs.items()},
            "weights": {name: list(weights) for name, weights in self.weights.items()},
            "metrics": {metric.name: metric.state_dict() for metric in self.metrics if metric.state_dict()},
        }

    def load(self, state: Mapping[str, Any]) -> _OnePhase:
        self.count, self.epoch = state["count"], state["epoch"]
        self.steps = {name: Series.load(saved) for name, saved in state["steps"].items()}
        self.epochs = {name: Series.load(saved) for name, saved in state["epochs"].items()}
        self.weights = {name: list(weights) for name, weights in state["weights"].items()}
        for metric in self.metrics:
            if metric.name in state["metrics"]:
                metric.load_state_dict(state["metrics"][metric.name])
        return self


class _Record(ByPhase[_OnePhase]):
    """What was measured in each phase."""

    def __init__(self, chosen: list[Metric]) -> None:
        def make(phase: Any) -> _OnePhase:
            return _OnePhase([metric.for_one_phase() for metric in chosen if metric.applies(phase)])

        super().__init__(make, lambda phase, state: make(phase).load(state))
        self.steps = MetricSeries(self, "steps")
        self.epochs = MetricSeries(self, "epochs")


class MetricSeries(Mapping[Any, Mapping[str, Series]]):
    """For each phase the `Series` of each metric, by its name. A phase that was never there has none.

    Args:
        record: What was measured.
        kind: Values of the ``"steps"`` or of the ``"epochs"``.
    """

    def __init__(self, record: Any, kind: str) -> None:
        self.record = record
        self._kind = kind

    def __getitem__(self, phase: Any) -> Mapping[str, Series]:
        series: Mapping[str, Series] = getattr(self.record[phase], self._kind)
        return series

    def __contains__(self, phase: object) -> bool:
        return phase in self.record

    def __iter__(self) -> Iterator[Any]:
        return iter(self.record)

    def __len__(self) -> int:
        return len(self.record)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw all series: for each metric, a line for each phase.

        Args:
            path: Of the image to write; its ending says in which format.

        Returns:
            The figure.
        """
        from fabric_lite.callbacks.plotting import plot_metrics

        return plot_metrics(self, path, xlabel=self._kind.removesuffix("s"))


def _summary(record: _OnePhase, fabric: Any) -> dict[str, Any]:
    """The values of an epoch by name; with a Fabric, over its processes."""
    values: dict[str, Any] = {}
    means: dict[str, tuple[float, float]] = {}
    for metric in record.metrics:
        points = record.points(metric.name)
        if metric.accumulates:
            if points or fabric or not callable(metric.fn):
                values[metric.name] = as_number(metric.fn.compute(), metric.name)  # of torchmetrics: over processes
        elif metric.statistic is None:
            means[metric.name] = metric.total(points)
        else:
            everywhere = _gathered(points, fabric) if fabric else list(points)
            if everywhere:
                values[metric.name] = as_number(metric.statistic(everywhere), metric.name)
    if fabric and means:
        sums = fabric.all_reduce(torch.tensor(list(means.values()), dtype=torch.float64), reduce_op="sum")
        means = {name: (total, weight) for name, (total, weight) in zip(means, sums.tolist(), strict=True)}
    values.update({name: total / weight for name, (total, weight) in means.items() if weight})
    return {metric.name: values[metric.name] for metric in record.metrics if metric.name in values}


def _gathered(points: Points, fabric: Any) -> list[tuple[float, float]]:
    """The values and weights of all processes, which may have had different numbers of steps."""
    longest = int(fabric.all_reduce(torch.tensor(len(points)), reduce_op="max"))
    padded = torch.zeros(longest, 3, dtype=torch.float64)
    if points:
        padded[: len(points), :2] = torch.tensor(points, dtype=torch.float64)
        padded[: len(points), 2] = 1.0
    rows = fabric.all_gather(padded).reshape(-1, 3).tolist()
    return [(value, weight) for value, weight, is_real in rows if is_real]
