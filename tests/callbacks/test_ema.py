from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import CancelFittingException, Fabric, ProtectedException, State
from fabric_lite.callbacks.ema import EMA
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner


def weight(value: float = 0.0) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


def learner_with(callbacks: Any, data: Any = None, model: torch.nn.Module | None = None) -> Learner:
    """Each step takes 1 off each weight."""
    steps = [(torch.ones(1, 1), None)] * 3
    return Learner(
        model or weight(10.0),
        lambda preds, ys: preds.sum(),
        data=(steps, steps) if data is None else data,
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        callbacks=callbacks,
        fabric=Fabric(guard="strict"),
        usedefaultcallbacks=False,
    )


class Watch:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def on_step_end(self, learner: Any, phase: Any) -> None:
        self.seen.append((phase.name, learner.model.weight.item()))


def test_the_average_by_hand() -> None:
    ema = EMA(decay=0.9)
    learner = learner_with([ema])
    learner.fit(2)
    average = 9.0
    for step in range(2, 7):
        average = 0.9 * average + 0.1 * (10.0 - step)
    assert ema.averaged["model"].module.weight.item() == pytest.approx(average)
    assert learner.cbstate.ema["model"] is ema.averaged["model"]
    assert learner.model.weight.item() == 4.0, "the training goes on as it would without"


def test_validation_with_the_averaged_weights() -> None:
    ema, watch = EMA(decay=0.5, evaluate=True), Watch()
    learner = learner_with([ema, watch])
    learner.fit(1)
    # 9, then (9 + 8) / 2, then (8.5 + 7) / 2
    assert watch.seen == [("train", 9.0), ("train", 8.0), ("train", 7.0), *[("validation", 7.75)] * 3]
    assert learner.model.weight.item() == 7.0


def test_weights_before_any_training_step_are_those_of_the_model() -> None:
    ema, watch = EMA(evaluate=True), Watch()
    learner = learner_with([ema, watch])
    with torch.no_grad():
        learner.model.weight.fill_(3.0)
    learner.run_epoch(ValidationPhase())
    assert watch.seen == [("validation", 3.0)] * 3


@pytest.mark.parametrize("error", [CancelFittingException("enough"), RuntimeError("lost"), KeyboardInterrupt()])
def test_the_weights_come_back_when_validation_does_not_end(error: BaseException) -> None:
    class Raises:
        def on_validation_step_end(self, learner: Any) -> None:
            assert learner.model.weight.item() == 7.75
            raise error

    learner = learner_with([EMA(decay=0.5, evaluate=True), Raises()])
    if isinstance(error, CancelFittingException):
        learner.fit(1)
    else:
        with pytest.raises(type(error)):
            learner.fit(1)
    assert learner.model.weight.item() == 7.0


def test_the_weights_come_back_in_a_loop_that_fires_no_exception() -> None:
    fabric = Fabric(callbacks=EMA(decay=0.5, evaluate=True))
    learner = State(model=weight(1.0))
    fabric.call("on_step_end", learner=learner, phase=TrainingPhase())
    with torch.no_grad():
        learner.model.weight.fill_(5.0)
    fabric.call("on_epoch_begin", learner=learner, phase=ValidationPhase())
    assert learner.model.weight.item() == 1.0
    fabric.call("on_epoch_begin", learner=learner, phase=TrainingPhase())
    assert learner.model.weight.item() == 5.0


def test_swap() -> None:
    ema = EMA(decay=0.5)
    learner = learner_with([ema])
    learner.fit(1)
    parameter = learner.model.weight
    with ema.swap():
        assert learner.model.weight is parameter
        assert parameter.item() == 7.75
        with ema.swap():
            assert parameter.item() == 7.75
        assert parameter.item() == 7.75
    assert parameter.item() == 7.0
    with pytest.raises(RuntimeError, match="lost"), ema.swap():
        raise RuntimeError("lost")
    assert parameter.item() == 7.0


@pytest.mark.parametrize("use_buffers, mean", [(False, 10.0), (True, 5.0)])
def test_buffers(use_buffers: bool, mean: float) -> None:
    model = torch.nn.BatchNorm1d(1, momentum=1.0)
    ema = EMA(decay=0.5, use_buffers=use_buffers)
    fabric = Fabric(callbacks=ema)
    for value in (0.0, 10.0):
        model(torch.full((2, 1), value))
        fabric.call("on_step_end", learner=State(model=model), phase=TrainingPhase())
    assert ema.averaged["model"].module.running_mean.item() == mean


def test_several_models() -> None:
    models = {"one": weight(1.0), "two": weight(2.0)}
    ema = EMA(decay=0.5)
    fabric = Fabric(callbacks=ema)
    learner = State(model=State(models))
    fabric.call("on_step_end", learner=learner, phase=TrainingPhase())
    with torch.no_grad():
        models["two"].weight.fill_(4.0)
    fabric.call("on_step_end", learner=learner, phase=TrainingPhase())
    assert {name: averaged.module.weight.item() for name, averaged in ema.averaged.items()} == {"one": 1.0, "two": 3.0}


@pytest.mark.parametrize("attached_before", [True, False])
def test_state_round_trip(tmp_path: Path, attached_before: bool) -> None:
    whole = learner_with([EMA(decay=0.5)], data=([(torch.ones(1, 1), None)] * 6,))
    whole.fit(1)
    first = learner_with([EMA(decay=0.5)])
    first.fit(1)
    first.fabric.save(tmp_path / "half.ckpt", {"callbacks": first.callbacks})

    ema = EMA(decay=0.5)
    if attached_before:
        second = learner_with([ema], model=weight(7.0))
        second.fabric.load(tmp_path / "half.ckpt", {"callbacks": second.callbacks})
    else:
        fabric = Fabric(callbacks=ema)
        fabric.load(tmp_path / "half.ckpt", {"callbacks": fabric.callbacks})
        assert ema.state_dict()["model"]["module.weight"].item() == 7.75, "not lost, if it is saved again"
        second = learner_with([ema], model=weight(7.0))
    second.fit(1)
    averages = [learner.callbacks.get(EMA).averaged["model"].module.weight for learner in (whole, second)]
    assert torch.equal(*averages)


def test_it_keeps_no_model_alive() -> None:
    ema = EMA()
    learner = learner_with([ema])
    learner.fit(1)
    model = weakref.ref(learner.model.module)
    del learner
    gc.collect()
    assert model() is None
    with ema.swap():
        pass


def test_access() -> None:
    class Writes(EMA):
        def on_validation_epoch_begin(self, learner: Any) -> None:
            learner.model = None

    with pytest.raises(ProtectedException, match=r"Write access to Learner.model disallowed. Writes wrote to it"):
        learner_with([Writes()]).fit(1)


def test_wrong_decay() -> None:
    with pytest.raises(ValueError, match=r"`EMA\(decay=1.5\)`: pass a number from 0 to 1"):
        EMA(1.5)
