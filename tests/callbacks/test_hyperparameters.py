from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fabric_lite import Callback, Fabric, State
from fabric_lite.callbacks.hyperparameters import Attribute, HyperParameter, LearningRate, Momentum, WeightDecay


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1))]


def sgd() -> torch.optim.Optimizer:
    groups = [{"params": parameters()}, {"params": parameters(), "lr": 0.5}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


class Setter(Callback):
    """Sets a hyperparameter through the proxy."""

    def __init__(self, parameter: HyperParameter, value: Any) -> None:
        self.parameter, self.value, self.before = parameter, value, None

    def stateaccess(self) -> Any:
        return self.parameter.stateaccess()

    def on_event(self, learner: Any) -> None:
        self.before = self.parameter.get(learner)
        self.parameter.set(learner, self.value)


def change(parameter: HyperParameter, value: Any, learner: Any, guard: Any = "strict") -> Any:
    """Set it in a guarded callback; returns what it was before."""
    setter = Setter(parameter, value)
    Fabric(accelerator="cpu", callbacks=setter, guard=guard).call("on_event", learner=learner)
    assert parameter.get(learner) == value
    return setter.before


@pytest.mark.parametrize("guard", ["strict", "off"])
def test_all_groups_of_an_optimizer(guard: str) -> None:
    optimizer = sgd()
    learner = SimpleNamespace(optimizer=optimizer)
    assert change(LearningRate(), 0.3, learner, guard) == 0.1
    assert change(Momentum(), 0.5, learner, guard) == 0.9
    assert change(WeightDecay(), 0.0, learner, guard) == 0.01
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.5, 0.0)] * 2


def test_one_group() -> None:
    optimizer = sgd()
    assert change(LearningRate(group=1), 0.3, SimpleNamespace(optimizer=optimizer)) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


def test_the_momentum_of_adam() -> None:
    optimizer = torch.optim.Adam(parameters())
    assert change(Momentum(), 0.8, State(optimizer=optimizer)) == 0.9
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_a_learning_rate_that_is_a_tensor_stays_that_tensor() -> None:
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(parameters(), lr=rate)
    assert change(LearningRate(), 0.25, State(optimizer=optimizer)) == 0.5
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.25


@pytest.mark.parametrize("kind", [State, dict])
@pytest.mark.parametrize("guard", ["strict", "off"])
def test_several_optimizers(kind: type, guard: str) -> None:
    one, other = sgd(), sgd()
    learner = State(optimizer=kind(one=one, other=other))
    change(LearningRate("other"), 0.3, learner, guard)
    assert (one.param_groups[0]["lr"], other.param_groups[0]["lr"]) == (0.1, 0.3)
    change(LearningRate(), 0.2, learner, guard)
    assert (one.param_groups[0]["lr"], other.param_groups[0]["lr"]) == (0.2, 0.2)


def test_an_optimizer_that_was_set_up() -> None:
    fabric = Fabric(accelerator="cpu")
    model = torch.nn.Linear(1, 1)
    _, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    change(LearningRate(), 0.3, State(optimizer=optimizer))
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("guard", ["strict", "off"])
def test_any_attribute(guard: str) -> None:
    lossfn = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    learner = State(lossfn=lossfn, settings={"mixup": {"alpha": 0.4}}, step=State())
    assert change(Attribute("lossfn.label_smoothing"), 0.2, learner, guard) == 0.1
    assert change(Attribute("settings.mixup.alpha"), 0.0, learner, guard) == 0.4
    Attribute("step.temperature").set(learner, 2.0)
    assert (lossfn.label_smoothing, learner.settings, learner.step.temperature) == (0.2, {"mixup": {"alpha": 0.0}}, 2.0)


def test_equal_ones_are_the_same() -> None:
    assert LearningRate() == LearningRate() != LearningRate("other")
    assert LearningRate() != WeightDecay()
    assert len({Attribute("a.b"), Attribute("a.b"), LearningRate(), LearningRate()}) == 2


def test_errors() -> None:
    learner = State(optimizer=torch.optim.Adagrad(parameters()), lossfn=torch.nn.CrossEntropyLoss())
    with pytest.raises(KeyError, match="the parameter groups of Adagrad have no 'momentum' or 'betas', only 'lr',"):
        Momentum().set(learner, 0.9)
    with pytest.raises(IndexError, match=r"Adagrad has 1 parameter group\(s\)"):
        LearningRate(group=1).set(learner, 0.9)
    with pytest.raises(
        KeyError, match=r"There is no optimizer 'other': `learner\.optimizer` is not a mapping that has one"
    ):
        LearningRate("other").set(learner, 0.9)
    with pytest.raises(KeyError, match="There is no optimizer 'other'"):
        LearningRate("other").get(State(optimizer=State(one=sgd())))
    with pytest.raises(AttributeError, match="'label_smothing' is missing"):
        Attribute("lossfn.label_smothing").set(learner, 0.1)
    with pytest.raises(ValueError, match=r"Attribute\(path='lossfn\.'\): a path is written like"):
        Attribute("lossfn.")
    for call in (lambda h: h.stateaccess(), lambda h: h.get(learner), lambda h: h.set(learner, 1)):
        with pytest.raises(NotImplementedError, match="`HyperParameter` has no `"):
            call(HyperParameter())
