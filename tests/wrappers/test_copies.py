"""Copies of set-up modules: deep copies, pickled ones, averages, and modules inside of others."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fabric_lite import Fabric, is_wrapped

PRECISIONS = ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.text = "text"

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))

    def double_of(self, x: Tensor) -> Tensor:
        return 2 * self(x)


def dumped(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIERS = {"deepcopy": copy.deepcopy, "pickle": dumped, "torch": saved}


def fabric(precision: str = "32-true", strategy: Any = None) -> Fabric:
    kwargs = {} if strategy is None else {"strategy": strategy}
    return Fabric(accelerator="cpu", devices=1, precision=precision, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def x() -> Tensor:
    return torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])


@pytest.mark.parametrize("how", COPIERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["plain", "wrapping"])
def test_a_copy_is_a_model_of_its_own(kind: str, precision: str, how: str, wrapping: Any, x: Tensor) -> None:
    setting = fabric(precision, wrapping() if kind == "wrapping" else None)
    model = setting.setup(Net()).eval()
    copied = COPIERS[how](model)
    assert is_wrapped(copied)
    assert torch.equal(copied(x), model(x))
    assert not copied.training
    assert copied.module is not model.module
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
    assert (copied.dtype, copied.device) == (model.dtype, model.device)
    nn.init.zeros_(copied.layer.weight)
    copied.text = "changed"
    assert bool(model.layer.weight.any())
    assert bool((copied.module.layer.weight == 0).all())
    assert (model.text, copied.module.text) == ("text", "changed")
    assert not torch.equal(copied(x), model(x))


@pytest.mark.parametrize("how", COPIERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copy_trains_with_the_same_fabric(precision: str, how: str, x: Tensor) -> None:
    setting = fabric(precision)
    model = setting.setup(Net())
    copied = COPIERS[how](model)
    setting.backward(copied(x).square().sum())
    assert copied.module.layer.weight.grad is not None
    assert model.module.layer.weight.grad is None


@pytest.mark.parametrize("how", COPIERS)
def test_a_copy_refuses_what_the_model_refuses(how: str, x: Tensor) -> None:
    setting = fabric("bf16-mixed")
    copied = COPIERS[how](setting.setup(Net()))
    with pytest.raises(RuntimeError, match=r"`fabric.backward\(loss\)`"):
        copied(x).sum().backward()


def test_a_deep_copy_shares_the_strategy_and_nothing_else(wrapping: Any) -> None:
    for strategy in (None, wrapping()):
        setting = fabric("bf16-mixed", strategy)
        model = setting.setup(Net())
        memo: dict[int, Any] = {}
        copied = copy.deepcopy(model, memo)
        assert memo[id(model)] is copied
        assert copied._strategy is model._strategy is setting.strategy
        assert copied._forward_methods == model._forward_methods
        assert copied._forward_methods is not model._forward_methods
        pair = copy.deepcopy([model, model, model.module])
        assert pair[0] is pair[1]
        assert pair[0].module is pair[2]


def test_marked_methods_are_marked_in_a_copy(wrapping: Any, x: Tensor) -> None:
    model = fabric(strategy=wrapping()).setup(Net().eval())
    model.mark_forward_method("double_of")
    for copier in COPIERS.values():
        copied = copier(model)
        assert torch.equal(copied.double_of(x), model.module.double_of(x))
        assert copied._forward_module.calls == 1


def test_hooks_are_copied_with_the_model(x: Tensor) -> None:
    calls: list[nn.Module] = []
    model = fabric().setup(Net())
    model.register_forward_hook(lambda module, args, output: calls.append(module))
    copied = copy.deepcopy(model)
    copied(x)
    assert calls == [copied]


def test_a_copy_can_be_set_up_anew(x: Tensor) -> None:
    model = saved(fabric("64-true").setup(Net()))
    again = fabric("bf16-mixed").setup(model.module.float())
    assert again(x).dtype == torch.float32
    with pytest.raises(ValueError, match=r"`fabric.setup\(...\)` got a module that was set up before"):
        fabric().setup(model)


@pytest.mark.parametrize("how", COPIERS)
def test_a_copy_of_a_compiled_model(how: str, x: Tensor) -> None:
    model = fabric().setup(torch.compile(Net().eval(), backend="eager"))
    copied = COPIERS[how](model)
    torch.testing.assert_close(copied(x), model(x))
    assert copied._forward_module._orig_mod is copied.module
    nn.init.zeros_(copied.layer.weight)
    assert not torch.equal(copied(x), model(x))


@pytest.mark.parametrize("how", COPIERS)
def test_a_copy_of_a_model_that_was_compiled_in_place(how: str, x: Tensor) -> None:
    model = fabric().setup(Net().eval())
    model.compile(backend="eager")
    copied = COPIERS[how](model)
    torch.testing.assert_close(copied(x), model(x))
    nn.init.zeros_(copied.layer.weight)
    assert not torch.equal(copied(x), model(x))


# -- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("use_buffers", [True, False])
def test_averages(use_buffers: bool, precision: str, x: Tensor) -> None:
    setting = fabric(precision)
    model, optimizer = setting.setup(net := Net(), torch.optim.SGD(net.parameters(), lr=0.5))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    average.update_parameters(model)
    before = net.layer.weight.detach().clone()
    setting.backward(model(x)[0].sum())
    optimizer.step()
    average.update_parameters(model)
    assert torch.allclose(average.module.layer.weight, (before + net.layer.weight) / 2)
    assert not torch.equal(average.module.layer.weight, net.layer.weight)
    assert average.eval()(x).dtype == torch.float32


def test_averages_are_saved_and_loaded(tmp_path: Any) -> None:
    setting = fabric()
    model = setting.setup(Net())
    average = AveragedModel(model)
    average.update_parameters(model)
    keys = list(average.state_dict())
    assert keys == ["n_averaged", *(f"module.{name}" for name in Net().state_dict())]
    setting.save(tmp_path / "file", {"average": average})
    other = AveragedModel(setting.setup(Net()))
    setting.load(tmp_path / "file", {"average": other})
    assert other.n_averaged == 1
    assert torch.equal(other.module.layer.weight, model.layer.weight)
    plain = AveragedModel(Net())  # and into one that was never set up
    plain.load_state_dict(average.state_dict())
    other.load_state_dict(plain.state_dict())
