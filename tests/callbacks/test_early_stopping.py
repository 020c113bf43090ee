from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fabric_lite import CancelFittingException, Fabric, MissingStateError, State
from fabric_lite.callbacks.criteria import PQ, Criterion, InvalidValue, NumberLimit, NumberSinceBest, TimeLimit
from fabric_lite.callbacks.early_stopping import EarlyStopping
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.series import Series
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


class Fixed(Metrics):
    """Metrics whose values are given: one for each epoch."""

    def __init__(self, **values: list[float]) -> None:
        super().__init__()
        self.values = values

    def init(self, learner: Any) -> None:
        learner.cbstate.metricsepoch = {TRAIN: {}, VALIDATION: {}}

    def on_epoch_begin(self) -> None: ...

    def on_step_end(self) -> None: ...

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        for name, values in self.values.items():
            series = learner.cbstate.metricsepoch[phase].setdefault(name, Series())
            series.append(len(series) + 1, values[len(series)])


def epochs_until_stop(
    callback: EarlyStopping, phases: tuple[Any, ...] = (TRAIN, VALIDATION), **values: list[float]
) -> Any:
    """A hand-written loop: how many epochs it makes, and why it stopped."""
    fabric = Fabric(accelerator="cpu", callbacks=[callback, Fixed(**values)], guard="strict")
    learner = State(cbstate=State())
    for epoch in range(len(next(iter(values.values())))):
        for phase in phases:
            try:
                fabric.call("on_epoch_end", learner=learner, phase=phase)
            except CancelFittingException as reason:
                return epoch + 1, str(reason)
    return None


def test_patience() -> None:
    losses = [3.0, 2.0, 2.5, 2.4, 2.5, 2.6, 2.7, 2.8]
    expected = (6, "early stopping on 'Loss' of 'validation': Patience(2): 2 increases in a row, up to 2.6")
    assert epochs_until_stop(EarlyStopping(patience=2), Loss=losses) == expected
    assert epochs_until_stop(EarlyStopping(2), Loss=losses) == expected
    assert epochs_until_stop(EarlyStopping(5), Loss=losses) is None


def test_several_criteria_and_another_metric() -> None:
    accuracy = [0.5, 0.7, 0.6, 0.65, 0.6]
    callback = EarlyStopping(NumberSinceBest(2), NumberLimit(9), monitor="accuracy", mode="max")
    assert epochs_until_stop(callback, Loss=[1.0] * 5, accuracy=accuracy)[0] == 4


@pytest.mark.parametrize("phase", [TrainingPhase, TrainingPhase()])
def test_on_the_training_phase(phase: Any) -> None:
    found = epochs_until_stop(EarlyStopping(NumberLimit(3), phase=phase), Loss=[1.0] * 5)
    assert found == (3, "early stopping on 'Loss' of 'train': NumberLimit(3): 3 values were seen")


def test_training_losses_reach_the_criteria() -> None:
    seen: list[tuple[float, bool]] = []

    class Spy(Criterion):
        def update(self, loss: float, training: bool = False) -> bool:
            seen.append((loss, training))
            return False

    assert epochs_until_stop(EarlyStopping(Spy()), Loss=[3.0, 2.0]) is None
    assert seen == [(3.0, True), (3.0, False), (2.0, True), (2.0, False)]
    assert epochs_until_stop(EarlyStopping(PQ(k=2)), Loss=[3.0, 2.0, 2.0, 2.0])[0] == 3


def test_a_bad_training_loss_stops_at_once() -> None:
    found = epochs_until_stop(EarlyStopping(InvalidValue()), Loss=[1.0, float("nan"), 1.0])
    assert found == (2, "early stopping on 'Loss' of 'train': InvalidValue(): there was a value of nan")


def test_time_begins_with_fitting() -> None:
    now = 0.0
    callback = EarlyStopping(TimeLimit(5, clock=lambda: now))
    fabric = Fabric(accelerator="cpu", callbacks=callback_with_metrics(callback))
    learner = State(cbstate=State())
    fabric.call("on_fit_begin", learner=learner)
    now = 6.0
    with pytest.raises(CancelFittingException, match=r"6\.0 seconds have passed"):
        fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)


def callback_with_metrics(callback: EarlyStopping) -> list[Any]:
    return [callback, Fixed(Loss=[1.0] * 9)]


def test_nobody_misses_the_last_epoch() -> None:
    class Plain:
        epochs = 0

        def on_validation_epoch_end(self) -> None:
            self.epochs += 1

    plain = Plain()
    stops = [EarlyStopping(NumberLimit(2)), EarlyStopping(NumberLimit(2))]
    fabric = Fabric(accelerator="cpu", callbacks=[*stops, Fixed(Loss=[1.0] * 3), plain])
    assert list(fabric.callbacks)[-2:] == stops
    learner = State(cbstate=State())
    fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)
    with pytest.raises(CancelFittingException):
        fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)
    assert plain.epochs == 2


def test_processes_agree() -> None:
    asked: list[tuple[bool, bool]] = []

    def vote(decision: bool, all: bool) -> bool:
        asked.append((decision, all))
        return True

    callback = EarlyStopping(patience=3)
    fabric = Fabric(accelerator="cpu", callbacks=[callback, Fixed(Loss=[1.0])])
    two = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce_boolean_decision=vote))
    with pytest.raises(CancelFittingException, match="of 'validation': another process decided to stop"):
        fabric.call("on_epoch_end", learner=State(cbstate=State(), fabric=two), phase=VALIDATION)
    assert asked == [(False, False)]


def test_state_goes_on_where_it_was_also_from_before_the_last_value_was_seen() -> None:
    losses = [3.0, 2.0, 2.1, 2.2, 2.3, 2.4]
    for saved_late in (True, False):
        callback = EarlyStopping(patience=3)
        metrics = {VALIDATION: {"Loss": Series()}}
        learner = State(cbstate=State(metricsepoch=metrics))
        state: dict[str, Any] = {}
        for epoch, loss in enumerate(losses[:4], start=1):
            metrics[VALIDATION]["Loss"].append(epoch, loss)
            if not saved_late:
                state = callback.state_dict()
            callback.on_epoch_end(learner, VALIDATION)
            if saved_late:
                state = callback.state_dict()
        resumed = EarlyStopping(patience=3)
        resumed.load_state_dict(state)
        metrics[VALIDATION]["Loss"].append(5, losses[4])
        with pytest.raises(CancelFittingException, match=r"Patience\(3\): 3 increases in a row, up to 2.3"):
            resumed.on_epoch_end(learner, VALIDATION)


def test_joining_a_training_under_way_it_looks_at_what_comes() -> None:
    series = Series()
    for epoch in range(1, 9):
        series.append(epoch, float(epoch))
    callback = EarlyStopping(NumberLimit(2))
    callback.on_epoch_end(State(cbstate=State(metricsepoch={VALIDATION: {"Loss": series}})), VALIDATION)
    assert callback.state_dict()["criterion"] == {"count": 1}


def test_in_a_learner() -> None:
    data = [(torch.ones(2, 1), torch.zeros(2, 1))]
    callbacks = [EarlyStopping(NumberLimit(3)), Metrics()]
    learner = Learner(
        torch.nn.Linear(1, 1),
        torch.nn.functional.mse_loss,
        data=(data, data),
        callbacks=callbacks,
        fabric=Fabric(accelerator="cpu", guard="strict"),
    )
    learner.fit(10)
    assert learner.stop_reason == "early stopping on 'Loss' of 'validation': NumberLimit(3): 3 values were seen"
    assert len(learner.cbstate.metricsepoch[VALIDATION]["Loss"]) == 3


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"`EarlyStopping\(\)` would never stop. Say when: `EarlyStopping\(patience=3\)`"
    ):
        EarlyStopping()
    with pytest.raises(ValueError, match=r"`EarlyStopping\(mode='best'\)`: choose 'min' or 'max'"):
        EarlyStopping(3, mode="best")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`EarlyStopping\('Loss'\)`: pass a criterion, such as `Patience\(3\)`"):
        EarlyStopping("Loss")  # type: ignore[arg-type]
    with pytest.raises(MissingStateError, match=r"cbstate\.metricsepoch"):
        Fabric(accelerator="cpu", callbacks=EarlyStopping(3))
    with pytest.raises(KeyError, match=r"looks at a metric that ValidationPhase\(\) does not have, only 'Loss'"):
        epochs_until_stop(EarlyStopping(3, monitor="accuracy"), Loss=[1.0])
