from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from fabric_lite import Fabric, State, WriteConflictError
from fabric_lite.callbacks.hyperparameters import Attribute, LearningRate, Momentum, WeightDecay
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.scheduler import Scheduler
from fabric_lite.callbacks.schedules import Constant, Linear, onecycle
from fabric_lite.callbacks.series import Series
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


def sgd(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def loop(scheduler: Scheduler, learner: Any, epochs: int, steps: int = 4, start: int = 0) -> list[float]:
    """A hand-written loop; returns the learning rate of each step of the optimizer."""
    fabric = Fabric(accelerator="cpu", callbacks=scheduler, guard="strict")
    rates = []
    for _ in range(epochs):
        fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
        for _ in range(start, steps):
            fabric.call("on_step_begin", learner=learner, phase=TRAIN)
            rates.append(float(learner.optimizer.param_groups[0]["lr"]))
            learner.optimizer.step()
            fabric.call("on_step_end", learner=learner, phase=TRAIN)
        start = 0
        fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
        fabric.call("on_epoch_begin", learner=learner, phase=VALIDATION)
        fabric.call("on_step_begin", learner=learner, phase=VALIDATION)
        fabric.call("on_step_end", learner=learner, phase=VALIDATION)
        fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)
    return rates


def test_a_schedule_at_each_step() -> None:
    learner = State(optimizer=sgd(), data={"train": range(4)})
    schedule = onecycle(3, 0.1)
    assert loop(Scheduler({LearningRate: schedule}), learner, 3) == [schedule(step / 4) for step in range(12)]


@pytest.mark.parametrize("data", [{}, {"data": {}}, {"data": {"train": iter(())}}, {"data": ()}])
def test_a_schedule_at_each_epoch_where_no_length_is_known(data: dict[str, Any]) -> None:
    learner = State(optimizer=sgd(), **data)
    rates = loop(Scheduler({LearningRate: Linear(1.0, 0.0).over(4)}), learner, 3, steps=2)
    assert rates == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]


def test_several_hyperparameters_and_plain_functions() -> None:
    lossfn = torch.nn.CrossEntropyLoss()
    learner = State(optimizer=sgd(), data={"train": range(2)}, lossfn=lossfn)
    schedules = {
        LearningRate(): lambda t: t,
        Momentum: Constant(0.5),
        Attribute("lossfn.label_smoothing"): Linear(0, 1),
    }
    assert loop(Scheduler(schedules), learner, 2, steps=2) == [0.0, 0.5, 1.0, 1.5]
    assert learner.optimizer.param_groups[0]["momentum"] == 0.5
    assert lossfn.label_smoothing == 1


def test_an_epoch_that_was_cancelled_is_begun_anew() -> None:
    learner = State(optimizer=sgd(), data={"train": range(4)})
    scheduler = Scheduler({LearningRate: lambda t: t})
    fabric = Fabric(accelerator="cpu", callbacks=scheduler)
    for _ in range(2):  # the first does not come to its end
        fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
        fabric.call("on_step_begin", learner=learner, phase=TRAIN)
        fabric.call("on_step_begin", learner=learner, phase=TRAIN)
    assert learner.optimizer.param_groups[0]["lr"] == 0.25


TORCH: list[tuple[Callable[[Any], Any], str]] = [
    (partial(lr_scheduler.StepLR, step_size=2, gamma=0.5), "epoch"),
    (partial(lr_scheduler.LinearLR, total_iters=7), "step"),
    (partial(lr_scheduler.OneCycleLR, max_lr=0.3, total_steps=20), "step"),
    (lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)), "epoch"),
    (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3), "step"),
]


def plain(make: Callable[[Any], Any], every: str, epochs: int) -> list[float]:
    """The same in plain torch."""
    optimizer = sgd()
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        for _ in range(4):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if every == "step":
                scheduler.step()
        if every == "epoch":
            scheduler.step()
    return rates


@pytest.mark.parametrize("make, every", TORCH)
def test_a_scheduler_of_torch(make: Callable[[Any], Any], every: Any) -> None:
    expected = plain(make, every, 4)
    assert loop(Scheduler(make, every=every), State(optimizer=sgd()), 4) == expected
    optimizer = sgd()
    assert loop(Scheduler(make(optimizer), every=every), State(optimizer=optimizer), 4) == expected


@pytest.mark.parametrize("made_before", [True, False])
@pytest.mark.parametrize("make, every", TORCH)
def test_resuming_a_scheduler_of_torch(make: Callable[[Any], Any], every: Any, made_before: bool) -> None:
    first = State(optimizer=sgd())
    scheduler = Scheduler(make, every=every)
    rates = loop(scheduler, first, 2)
    saved = scheduler.state_dict(), first.optimizer.state_dict()

    second, resumed = State(optimizer=sgd()), Scheduler(make, every=every)
    if made_before:  # as in a Learner, whose callbacks meet it before a checkpoint is loaded
        resumed.init(second)
    resumed.load_state_dict(saved[0])
    second.optimizer.load_state_dict(saved[1])
    assert rates + loop(resumed, second, 2) == plain(make, every, 4)


def test_resuming_a_schedule_within_an_epoch() -> None:
    schedule = onecycle(3, 0.1)
    learner = State(optimizer=sgd(), data={"train": range(4)})
    fabric = Fabric(accelerator="cpu", callbacks=(scheduler := Scheduler({LearningRate: schedule})))
    fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
    for _ in range(3):
        fabric.call("on_step_begin", learner=learner, phase=TRAIN)
    resumed = Scheduler({LearningRate: schedule})
    resumed.load_state_dict(scheduler.state_dict())
    assert loop(resumed, learner, 2, start=3) == [schedule(step / 4) for step in range(3, 8)]


class Given(Metrics):
    """Metrics with given values."""

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.losses = losses

    def init(self, learner: Any) -> None:
        learner.cbstate.metricsepoch = {VALIDATION: {"Loss": Series()}, TRAIN: {}}

    def on_epoch_begin(self) -> None: ...

    def on_step_end(self) -> None: ...

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        if isinstance(phase, ValidationPhase):
            series = learner.cbstate.metricsepoch[phase]["Loss"]
            series.append(len(series) + 1, self.losses[len(series)])


@pytest.mark.parametrize(
    "make, arguments",
    [
        (lr_scheduler.ReduceLROnPlateau, {}),
        (partial(lr_scheduler.ReduceLROnPlateau, patience=1), {}),
        (lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1), {"monitor": "Loss"}),
    ],
)
def test_a_plateau(make: Callable[[Any], Any], arguments: dict[str, Any]) -> None:
    losses = [1.0, 0.5, 0.6, 0.7, 0.8, 0.9]
    optimizer = sgd()
    scheduler = make(optimizer)
    expected = []
    for loss in losses:
        optimizer.step()
        scheduler.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])

    learner = State(optimizer=sgd(), cbstate=State())
    fabric = Fabric(accelerator="cpu", callbacks=[Scheduler(make, **arguments), Given(*losses)], guard="strict")
    found = []
    for _ in losses:
        fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
        learner.optimizer.step()
        fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)
        found.append(learner.optimizer.param_groups[0]["lr"])
    assert found == expected


def train(by_hand: bool) -> torch.Tensor:
    """Two epochs of three steps, with a Learner or by hand in plain torch; returns the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    schedule = onecycle(2, 0.1)
    if by_hand:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for step in range(6):
            optimizer.param_groups[0]["lr"] = schedule(step // 3 + step % 3 / 3)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(data[step % 3][0]), data[step % 3][1]).backward()
            optimizer.step()
        return model.weight.detach()
    fabric = Fabric(accelerator="cpu", guard="strict")
    make = partial(torch.optim.SGD, lr=1.0)
    callbacks = [Scheduler({LearningRate: schedule})]
    loss = torch.nn.functional.mse_loss
    learner = Learner(
        model, loss, data=(data,), optimizer=make, callbacks=callbacks, fabric=fabric, usedefaultcallbacks=False
    )
    learner.fit(2)
    return learner.model.weight.detach()


def test_in_a_learner_bit_by_bit_what_plain_torch_does() -> None:
    assert torch.equal(train(by_hand=True), train(by_hand=False))


def test_two_schedulers() -> None:
    rate, decay = Scheduler({LearningRate: Constant(0.1)}), Scheduler({WeightDecay: Constant(0.1)})
    assert list(Fabric(accelerator="cpu", callbacks=[rate, decay]).callbacks) == [rate, decay]
    with pytest.raises(WriteConflictError, match="optimizer"):
        Fabric(accelerator="cpu", callbacks=[rate, Scheduler(partial(lr_scheduler.StepLR, step_size=1))])


def test_one_of_several_optimizers() -> None:
    learner = State(optimizer=State(one=sgd(), other=sgd()))
    make = partial(lr_scheduler.StepLR, step_size=1)
    with pytest.raises(ValueError, match=r"needs one optimizer, and there are 2. Name it: `Scheduler\(..., optimizer="):
        Fabric(accelerator="cpu", callbacks=Scheduler(make)).call("on_epoch_end", learner=learner, phase=TRAIN)
    learner.optimizer.other.step()
    scheduler = Scheduler(make, optimizer="other")
    Fabric(accelerator="cpu", callbacks=scheduler).callbacks.attach(learner)
    learner.optimizer.other.step()
    scheduler.on_train_epoch_end(learner, TRAIN)
    assert (learner.optimizer.one.param_groups[0]["lr"], learner.optimizer.other.param_groups[0]["lr"]) == (
        0.1,
        pytest.approx(0.01),
    )


@pytest.mark.parametrize(
    "arguments, keywords, message",
    [
        ((0.1,), {}, r"`Scheduler\(0\.1\)`: pass a mapping such as `\{LearningRate: onecycle\(10, 0\.1\)\}`"),
        (({"lr": Constant(1)},), {}, r"`Scheduler\(\{'lr': \.\.\.\}\)`: a key is a `HyperParameter` such as"),
        (({LearningRate: 0.1},), {}, r"a schedule is called with a time; for one value pass `Constant\(0\.1\)`"),
    ],
)
def test_what_is_no_schedule(arguments: Any, keywords: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Scheduler(*arguments, **keywords)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match=r"`Scheduler\(every='hour'\)`: choose 'epoch' or 'step'"):
        Scheduler({}, every="hour")  # type: ignore[arg-type]
    hidden = Scheduler(lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer))
    with pytest.raises(ValueError, match=r'follows a metric\. Name it: `Scheduler\(\.\.\., monitor="Loss"\)`'):
        hidden.init(State(optimizer=sgd()))
    follows = Scheduler(lr_scheduler.ReduceLROnPlateau, monitor="accuracy")
    fabric = Fabric(accelerator="cpu", callbacks=[follows, Given(1.0)])
    learner = State(optimizer=sgd(), cbstate=State())
    with pytest.raises(KeyError, match=r"follows a metric that ValidationPhase\(\) does not have, only 'Loss'"):
        fabric.call("on_epoch_end", learner=learner, phase=VALIDATION)
