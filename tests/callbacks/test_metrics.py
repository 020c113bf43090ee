from __future__ import annotations

import io
import statistics
from functools import partial

import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fabric_lite import Callback, Fabric, Read, State
from fabric_lite.callbacks.metrics import Metric, Metrics, SmoothLoss
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.callbacks.series import Series
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


def accuracy(preds, ys):
    return (preds.argmax(-1) == ys).float().mean()


def biggest(preds, ys):
    return preds.max()


class Processes:
    """Stands for a Fabric on two processes, of which the other one reports ``other``."""

    world_size = 2

    def __init__(self, *other):
        self.other = list(other)

    def all_reduce(self, data, reduce_op):
        other = torch.as_tensor(self.other.pop(0), dtype=data.dtype)
        return data + other if reduce_op == "sum" else torch.maximum(data, other)

    def all_gather(self, data):
        return torch.stack([data, torch.as_tensor(self.other.pop(0), dtype=data.dtype)])


def run(metrics, losses, phase=TRAIN, sizes=None, learner=None, fabric=None, preds=None):
    """An epoch of a hand-written loop."""
    bus = fabric or Fabric(accelerator="cpu", callbacks=metrics, guard="strict")
    learner = learner or State(cbstate=State(), step=State())
    bus.call("on_epoch_begin", learner=learner, phase=phase)
    for number, loss in enumerate(losses):
        ys = torch.zeros(sizes[number] if sizes else 1, dtype=torch.long)
        made = torch.full((len(ys), 2), float(number)) if preds is None else preds[number]
        learner.step = State(loss=torch.tensor(loss, requires_grad=True), ys=ys, preds=made)
        bus.call("on_step_end", learner=learner, phase=phase)
    bus.call("on_epoch_end", learner=learner, phase=phase)
    return learner, bus


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_value_of_an_epoch_is_the_mean_over_samples_or_over_steps(points):
    losses, sizes = [loss for loss, _ in points], [size for _, size in points]
    learner, _ = run(Metrics(), losses, sizes=sizes)
    assert learner.cbstate.metricsepoch[TRAIN]["Loss"].last == pytest.approx(
        sum(loss * size for loss, size in points) / sum(sizes), abs=1e-6
    )
    learner, _ = run(Metrics(weight="step"), losses, sizes=sizes)
    assert learner.cbstate.metricsepoch[TRAIN]["Loss"].last == pytest.approx(statistics.fmean(losses), abs=1e-6)
    assert learner.cbstate.metricsstep[TRAIN]["Loss"].values == losses


def test_steps_and_epochs_are_counted_for_each_phase():
    learner, fabric = run(Metrics(accuracy), [1.0, 2.0])
    run(None, [3.0], learner=learner, fabric=fabric)
    run(None, [7.0], VALIDATION, learner=learner, fabric=fabric)
    assert list(learner.cbstate.metricsstep[TRAIN]["Loss"]) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert list(learner.cbstate.metricsepoch[TRAIN]["Loss"]) == [(1, 1.5), (2, 3.0)]
    assert list(learner.cbstate.metricsepoch[VALIDATION]["Loss"]) == [(1, 7.0)]
    assert list(learner.cbstate.metricsepoch[TRAIN]) == ["Loss", "accuracy"]


def test_a_learner_measures_what_one_computes_by_hand():
    torch.manual_seed(0)
    batches = [(torch.randn(n, 3), torch.randint(0, 2, (n,))) for n in (4, 4, 1)]
    model = nn.Linear(3, 2)
    with torch.no_grad():
        right = sum(int((model(xs).argmax(-1) == ys).sum()) for xs, ys in batches)
        loss = sum(float(nn.functional.cross_entropy(model(xs), ys)) * len(ys) for xs, ys in batches)
    fabric = Fabric(accelerator="cpu", callbacks=[Metrics(accuracy)], guard="strict")
    learner = Learner(model, nn.CrossEntropyLoss(), fabric=fabric, usedefaultcallbacks=False)
    learner.run_epoch(VALIDATION, batches)
    measured = learner.cbstate.metricsepoch[VALIDATION]
    assert measured["accuracy"].last == pytest.approx(right / 9)
    assert measured["Loss"].last == pytest.approx(loss / 9, rel=1e-5)


def test_a_guarded_reader_sees_series_that_wait_and_cannot_write():
    class Reader(Callback):
        def stateaccess(self):
            return {"cbstate": {"metricsstep": Read(), "metricsepoch": Read()}}

        def on_epoch_end(self, learner, phase):
            series = learner.cbstate.metricsstep[phase]["Loss"]
            self.seen = (series.last, series.steps, series.values, series[-1], series[:1], len(series), [*series])
            self.epoch = learner.cbstate.metricsepoch[phase]["Loss"].last
            self.names = list(learner.cbstate.metricsepoch[phase])

    reader = Reader()
    run([reader, Metrics()], [4.0, 6.0])
    assert reader.seen == (6.0, [1, 2], [4.0, 6.0], (2, 6.0), [(1, 4.0)], 2, [(1, 4.0), (2, 6.0)])
    assert (reader.epoch, reader.names) == (5.0, ["Loss"])


def test_a_phase_without_values_has_no_series():
    learner, _ = run(Metrics(), [1.0])
    assert dict(learner.cbstate.metricsepoch[VALIDATION]) == {}
    assert list(learner.cbstate.metricsepoch) == [TRAIN]
    with pytest.raises(IndexError, match=r"^This metric has no value yet; `if series: \.\.\.` tells\.$"):
        _ = Series().last


def test_an_epoch_without_steps_has_no_value_and_forgets_nothing():
    learner, fabric = run(Metrics(), [1.0])
    run(None, [], learner=learner, fabric=fabric)
    run(None, [5.0], learner=learner, fabric=fabric)
    assert list(learner.cbstate.metricsepoch[TRAIN]["Loss"]) == [(1, 1.0), (3, 5.0)]


def test_smooth_loss_against_its_definition():
    losses, beta = [3.0, 1.0, 4.0, 1.0, 5.0], 0.9
    learner, fabric = run(Metrics(SmoothLoss(beta)), losses)
    for t, value in learner.cbstate.metricsstep[TRAIN]["SmoothLoss"]:
        weights = [beta ** (t - i) for i in range(1, t + 1)]
        assert value == pytest.approx(sum(w * x for w, x in zip(weights, losses[:t], strict=True)) / sum(weights))
    assert learner.cbstate.metricsepoch[TRAIN]["SmoothLoss"].last == pytest.approx(value)
    run(None, losses, VALIDATION, learner=learner, fabric=fabric)
    assert "SmoothLoss" not in learner.cbstate.metricsepoch[VALIDATION]


def test_a_metric_with_name_phase_device_and_statistic():
    def where(preds, ys):
        return float(preds.device.type == ys.device.type == "meta")

    metrics = Metrics(
        Metric(biggest, name="top", phase=ValidationPhase, statistic=lambda points: max(value for value, _ in points)),
        Metric(where, device="meta"),
        Metric(biggest, name="weights", statistic=lambda points: sum(weight for _, weight in points)),
    )
    preds = [torch.tensor([1.0, 9.0]), torch.tensor([2.0, 3.0])]
    learner, fabric = run(metrics, [0.0, 0.0], preds=preds, sizes=[2, 2])
    assert {name: series.last for name, series in learner.cbstate.metricsepoch[TRAIN].items()} == {
        "Loss": 0.0,
        "where": 1.0,
        "weights": 4.0,
    }
    run(None, [0.0, 0.0], VALIDATION, learner=learner, fabric=fabric, preds=preds)
    assert learner.cbstate.metricsepoch[VALIDATION]["top"].last == 9.0


def test_torchmetrics_objects_accumulate_by_themselves_and_apart_for_each_phase():
    given_object = torchmetrics.classification.BinaryF1Score()
    learner, fabric = run(Metrics(given_object), [], learner=None)
    parts = [([0.9, 0.1, 0.8], [1, 0, 0]), ([0.2, 0.7], [1, 1])]
    fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
    for index, (preds, ys) in enumerate(parts):
        learner.step = State(loss=0.0, preds=torch.tensor(preds), ys=torch.tensor(ys))
        fabric.call("on_step_end", learner=learner, phase=TRAIN)
        if index == 0:  # a validation in the middle of an epoch
            fabric.call("on_epoch_begin", learner=learner, phase=VALIDATION)
            fabric.call("on_step_end", learner=learner, phase=VALIDATION)
            fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    epoch, step = (cb[TRAIN]["BinaryF1Score"] for cb in (learner.cbstate.metricsepoch, learner.cbstate.metricsstep))
    assert epoch.last == pytest.approx(2 / 3)  # 2 true positives, 1 false positive, 1 false negative
    assert step.values == pytest.approx([2 / 3, 2 / 3])
    assert learner.cbstate.metricsepoch[VALIDATION]["BinaryF1Score"].last == pytest.approx(2 / 3)
    assert given_object.update_count == 0


def test_objects_without_a_call_have_values_for_epochs_alone():
    class Counter:
        def reset(self):
            self.n = 0

        def update(self, preds, ys):
            self.n += len(ys)

        def compute(self):
            return self.n

    learner, fabric = run(Metrics(Counter()), [1.0, 1.0], sizes=[3, 4])
    run(None, [1.0], sizes=[2], learner=learner, fabric=fabric)
    assert learner.cbstate.metricsepoch[TRAIN]["Counter"].values == [7, 2]
    assert "Counter" not in learner.cbstate.metricsstep[TRAIN]


def test_several_processes_add_up_values_and_weights():
    fabric = Fabric(accelerator="cpu", callbacks=Metrics(SmoothLoss()), guard="strict")
    learner = State(cbstate=State(), step=State(), fabric=Processes([[60.0, 6.0], [4.0, 1.0]]))
    run(None, [1.0, 3.0], sizes=[3, 1], learner=learner, fabric=fabric)
    assert learner.cbstate.metricsepoch[TRAIN]["Loss"].last == pytest.approx((6.0 + 60.0) / 10)
    smooth = learner.cbstate.metricsstep[TRAIN]["SmoothLoss"].last
    assert learner.cbstate.metricsepoch[TRAIN]["SmoothLoss"].last == pytest.approx((smooth + 4.0) / 2)


def test_a_statistic_gets_the_points_of_all_processes():
    metrics = Metrics(Metric(biggest, name="Loss", statistic=lambda points: statistics.median(v for v, _ in points)))
    fabric = Fabric(accelerator="cpu", callbacks=metrics)
    other = [[0.5, 1.0, 1.0], [30.0, 1.0, 1.0], [40.0, 1.0, 1.0]]
    learner = State(cbstate=State(), step=State(), fabric=Processes(3, other))
    run(None, [0.0, 0.0], learner=learner, fabric=fabric, preds=[torch.tensor([10.0]), torch.tensor([20.0])])
    assert learner.cbstate.metricsepoch[TRAIN]["Loss"].last == 20.0


def test_state_goes_through_a_file_and_an_epoch_goes_on_where_it_was():
    def metrics():
        return Metrics(accuracy, SmoothLoss(0.5))

    whole, _ = run(metrics(), [1.0, 2.0, 6.0], sizes=[1, 2, 3])
    first = metrics()
    fabric = Fabric(accelerator="cpu", callbacks=first)
    learner = State(cbstate=State(), step=State())
    losses = [(1.0, 1), (2.0, 2), (6.0, 3)]

    def step(bus, learner, number):
        loss, size = losses[number]
        learner.step = State(loss=torch.tensor(loss), ys=torch.zeros(size), preds=torch.full((size, 2), float(number)))
        bus.call("on_step_end", learner=learner, phase=TRAIN)

    step(fabric, learner, 0)
    step(fabric, learner, 1)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = metrics()
    second.load_state_dict(torch.load(file, weights_only=True))
    fabric, learner = Fabric(accelerator="cpu", callbacks=second), State(cbstate=State(), step=State())
    step(fabric, learner, 2)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    for kind in ("metricsstep", "metricsepoch"):
        there, here = whole.cbstate[kind][TRAIN], learner.cbstate[kind][TRAIN]
        assert {name: [*series] for name, series in here.items()} == {name: [*series] for name, series in there.items()}


def test_a_second_learner_begins_anew():
    learner, fabric = run(Metrics(), [1.0])
    other, _ = run(None, [2.0], fabric=fabric)
    run(None, [3.0], learner=learner, fabric=fabric)
    assert learner.cbstate.metricsepoch[TRAIN]["Loss"].values == [1.0, 3.0]
    assert other.cbstate.metricsepoch[TRAIN]["Loss"].values == [2.0]


def test_the_number_of_samples_is_found_in_nested_targets_or_elsewhere():
    steps = [
        (State(ys={"a": torch.zeros(3), "b": torch.zeros(3, 2)}), 3),
        (State(ys=(torch.zeros(4), torch.zeros(4))), 4),
        (State(ys=[{"boxes": torch.zeros(9, 4)}, {"boxes": torch.zeros(1, 4)}]), 2),
        (State(ys=["a", "b"], xs=torch.zeros(2, 5)), 2),
        (State(ys=torch.tensor(1.0), preds=torch.zeros(6)), 6),
        (State(), 1),
    ]
    fabric = Fabric(accelerator="cpu", callbacks=Metrics())
    learner = State(cbstate=State())
    for number, (step, _) in enumerate(steps):
        step.loss = float(number)
        learner.step = step
        fabric.call("on_step_end", learner=learner, phase=TRAIN)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    expected = sum(i * n for i, (_, n) in enumerate(steps)) / sum(n for _, n in steps)
    assert learner.cbstate.metricsepoch[TRAIN]["Loss"].last == pytest.approx(expected)


def test_the_loss_may_be_replaced_and_may_be_missing():
    assert [metric.name for metric in Metrics(Metric(accuracy, "Loss"))._chosen] == ["Loss"]
    fabric = Fabric(accelerator="cpu", callbacks=Metrics())
    learner = State(cbstate=State(), step=State())
    fabric.call("on_step_end", learner=learner, phase=TRAIN)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    assert dict(learner.cbstate.metricsepoch[TRAIN]) == {}


def test_names_are_those_of_functions_and_classes():
    class Mine:
        def __call__(self, preds, ys):
            return 0.0

    assert Metric(partial(partial(accuracy))).name == "accuracy"
    assert Metric(Mine()).name == "Mine"
    assert Metric(nn.L1Loss()).name == "L1Loss"


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (
            lambda: Metrics(accuracy, Metric(biggest, "accuracy")),
            ValueError,
            "Two metrics are called 'accuracy', and one",
        ),
        (lambda: Metrics(weight="epoch"), ValueError, "Metrics(weight='epoch') is unknown; pass weight='samples' or"),
        (lambda: Metrics(3), TypeError, "3 is no metric. Pass a function of predictions and targets, or an object"),
        (lambda: Metrics(nn.L1Loss), TypeError, "L1Loss is a class; pass an object of it, `L1Loss(...)`."),
        (
            lambda: Metric(torchmetrics.MeanSquaredError(), statistic=max),
            TypeError,
            "Metric(MeanSquaredError(...), statistic=...): its `compute` is the statistic. Pass none.",
        ),
        (
            lambda: SmoothLoss(1),
            ValueError,
            "SmoothLoss(beta=1): beta is from 0 to below 1, as in SmoothLoss(beta=0.98).",
        ),
    ],
)
def test_what_cannot_be_measured(make, kind, message):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "fn, step, kind, message",
    [
        (
            accuracy,
            State(ys=torch.zeros(1)),
            RuntimeError,
            "The metric 'accuracy' needs `step.preds` and `step.ys`, and a step of TrainingPhase() ended without"
            " `step.preds`.",
        ),
        (
            Metric(lambda preds, ys: preds, "all"),
            State(ys=torch.zeros(2), preds=torch.zeros(2)),
            TypeError,
            "The metric 'all' gave a tensor of shape (2,). It has to be one number: reduce it, for",
        ),
        (
            Metric(lambda preds, ys: {}, "all"),
            State(ys=torch.zeros(2), preds=torch.zeros(2)),
            TypeError,
            "The metric 'all' gave dict. It has to be one number, or a tensor of one element.",
        ),
    ],
)
def test_what_cannot_be_measured_in_a_step(fn, step, kind, message):
    fabric = Fabric(accelerator="cpu", callbacks=Metrics(fn))
    with pytest.raises(kind) as caught:
        fabric.call("on_step_end", learner=State(cbstate=State(), step=step), phase=TRAIN)
    assert str(caught.value).startswith(message)


def test_the_history_draws_the_metrics(tmp_path):
    fabric = Fabric(accelerator="cpu", callbacks=[Recorder(), Metrics(accuracy)], guard="strict")
    learner = Learner(nn.Linear(3, 2), nn.CrossEntropyLoss(), fabric=fabric, usedefaultcallbacks=False)
    batch = (torch.randn(4, 3), torch.randint(0, 2, (4,)))
    for _ in range(2):
        learner.run_epoch(TRAIN, [batch])
        learner.run_epoch(VALIDATION, [batch])
    figure = learner.cbstate.history.plot(tmp_path / "curves.png")
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "accuracy"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    line = figure.axes[0].lines[1]
    assert line.get_label() == "validation"
    assert list(line.get_ydata()) == learner.cbstate.metricsepoch[VALIDATION]["Loss"].values
    assert (tmp_path / "curves.png").exists()
    assert len(fabric.callbacks.get(Metrics).plot().axes) == 2
