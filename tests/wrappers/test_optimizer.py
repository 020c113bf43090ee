"""An optimizer that was set up is, for everything but its step, the optimizer that the user passed."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from fabric_lite import Fabric, is_wrapped
from fabric_lite.strategies import SingleDeviceStrategy

OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
]


class Own(torch.optim.SGD):
    """A user's optimizer."""

    factor = 2.0

    def half(self) -> float:
        return self.factor / 2

    @property
    def rate(self) -> float:
        return float(self.param_groups[0]["lr"])

    @rate.setter
    def rate(self, rate: float) -> None:
        self.param_groups[0]["lr"] = rate


class Recorder:
    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        self.steps.append((strategy, optimizer))


def fabric(**kwargs: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **kwargs)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


def pair() -> tuple[Any, Own]:
    own = Own([parameter()], lr=0.5)
    return fabric().setup_optimizers(own), own


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_is_an_instance_of_its_class(kind: type[Optimizer]) -> None:
    bare = kind([parameter()], lr=0.1)  # type: ignore[call-arg]
    optimizer = fabric().setup_optimizers(bare)
    assert isinstance(optimizer, kind)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.__class__ is kind
    assert is_wrapped(optimizer)
    assert not any(isinstance(optimizer, other) for other in OPTIMIZERS if not issubclass(kind, other))
    assert optimizer.optimizer is bare


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k is not torch.optim.SparseAdam], ids=lambda k: k.__name__)
def test_takes_the_same_steps(kind: type[Optimizer]) -> None:
    results = []
    for set_up in (False, True):
        weight = parameter()
        optimizer: Any = kind([weight], lr=0.1)  # type: ignore[call-arg]
        if set_up:
            optimizer = fabric().setup_optimizers(optimizer)

        def closure(weight: nn.Parameter = weight, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (weight * torch.arange(4.0).view(2, 2)).square().sum()
            loss.backward()
            return loss.detach()

        losses = [float(optimizer.step(closure)) for _ in range(3)]
        if kind is not torch.optim.LBFGS:
            closure()
            assert optimizer.step() is None
        results.append((losses, weight.tolist()))
    assert results[0] == results[1]


def test_attributes_are_read_from_the_optimizer() -> None:
    optimizer, own = pair()
    assert optimizer.param_groups is own.param_groups
    assert optimizer.state is own.state
    assert optimizer.defaults is own.defaults
    assert (optimizer.factor, optimizer.half(), optimizer.rate) == (2.0, 1.0, 0.5)
    assert optimizer.half.__self__ is own


def test_attributes_are_written_to_the_optimizer() -> None:
    optimizer, own = pair()
    optimizer.factor, optimizer.new, optimizer.rate = 4.0, "new", 0.25
    assert (own.factor, own.new, own.param_groups[0]["lr"]) == (4.0, "new", 0.25)
    optimizer.param_groups = groups = [{"params": [parameter()], "lr": 1.0}]
    optimizer.state = state = {}  # type: ignore[var-annotated]
    assert own.param_groups is groups
    assert own.state is state
    assert "new" not in vars(optimizer)
    own.new = "inside"
    assert optimizer.new == "inside"


def test_attributes_are_deleted_from_the_optimizer() -> None:
    optimizer, own = pair()
    own.new = 1  # type: ignore[attr-defined]
    del optimizer.new
    assert not hasattr(own, "new")
    assert not hasattr(optimizer, "new")


def test_a_missing_attribute_is_missing_from_the_users_class() -> None:
    optimizer, _ = pair()
    assert not hasattr(optimizer, "missing")
    with pytest.raises(AttributeError, match="'Own' object has no attribute 'missing'"):
        _ = optimizer.missing
    with pytest.raises(AttributeError, match=r"'Own' object has no attribute 'missing'|^missing$"):
        del optimizer.missing


def test_groups_hooks_and_gradients() -> None:
    optimizer, own = pair()
    second, calls = parameter(), []
    optimizer.add_param_group({"params": [second], "lr": 0.125})
    assert own.param_groups[1]["params"] == [second]
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: calls.append(optimizer))
    second.grad = torch.ones(2, 2)
    optimizer.step()
    assert calls == [own]
    assert bool((second == 0.875).all())
    optimizer.zero_grad()
    assert second.grad is None
    assert "lr: 0.125" in repr(optimizer)
    assert "Own" in repr(optimizer)


def test_state_goes_there_and_back() -> None:
    weight = parameter()
    optimizer = fabric().setup_optimizers(torch.optim.Adam([weight]))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups"}
    bare = torch.optim.Adam([parameter()])
    other = fabric().setup_optimizers(bare)
    other.load_state_dict(state)
    assert bare.state_dict()["state"][0]["exp_avg"].equal(state["state"][0]["exp_avg"])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict({**state, "param_groups": []})


def test_callbacks_hear_of_each_step_and_get_the_bare_optimizer() -> None:
    recorder = Recorder()
    setting = fabric(callbacks=recorder)
    bare = [torch.optim.SGD([parameter()], lr=1.0) for _ in range(2)]
    first, second = setting.setup_optimizers(*bare)
    first.step()
    second.step()
    assert recorder.steps == [(setting.strategy, each) for each in bare]
    setting.callbacks.remove(recorder)
    first.step()
    assert len(recorder.steps) == 2


def test_the_step_goes_through_the_strategy() -> None:
    class Recording(SingleDeviceStrategy):
        def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
            steps.append((optimizer, kwargs))
            return super().optimizer_step(optimizer, **kwargs)

        def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
            return {"asked": optimizer}

    steps: list[Any] = []
    bare = torch.optim.SGD([parameter()], lr=1.0)
    optimizer = fabric(strategy=Recording()).setup_optimizers(bare)

    def closure() -> float:
        return 1.5

    assert optimizer.step(closure) == optimizer.step(closure=closure) == 1.5
    optimizer.step()
    assert steps == [(bare, {"closure": closure})] * 2 + [(bare, {})]
    assert optimizer.state_dict() == {"asked": bare}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_copies_are_optimizers_of_their_own(how: str, precision: str) -> None:
    weight = parameter()
    optimizer = fabric(precision=precision).setup_optimizers(torch.optim.Adam([weight], lr=0.1))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    if how == "deepcopy":
        copied = copy.deepcopy(optimizer)
        assert copied._strategy is optimizer._strategy
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(optimizer))
    else:
        file = io.BytesIO()
        torch.save(optimizer, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert isinstance(copied, torch.optim.Adam)
    assert is_wrapped(copied)
    (other,) = copied.param_groups[0]["params"]
    assert other is not weight
    assert other.equal(weight)
    other.grad = torch.ones(2, 2)
    copied.step()
    assert not other.equal(weight)
    optimizer.step()
    assert other.equal(weight)


def test_a_model_and_its_optimizer_are_copied_together() -> None:
    model, optimizer = fabric().setup(net := nn.Linear(2, 2), torch.optim.SGD(net.parameters(), lr=0.1))
    for copied, stepper in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert stepper.param_groups[0]["params"][0] is copied.weight
        assert copied.weight is not model.weight


def test_an_optimizer_that_the_strategy_replaces_is_the_one_that_steps() -> None:
    class Replacing(SingleDeviceStrategy):
        def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
            return torch.optim.Adam(optimizer.param_groups[0]["params"])

    given = torch.optim.SGD([parameter()], lr=1.0)
    optimizer = fabric(strategy=Replacing()).setup_optimizers(given)
    assert isinstance(optimizer, torch.optim.Adam)
    assert not isinstance(optimizer, torch.optim.SGD)
