"""A module that was set up is, for everything but its forward, the module that the user passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fabric_lite import Fabric
from fabric_lite.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin

PRECISIONS = ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"]


class Net(nn.Module):
    """Has an attribute of each kind."""

    constant = "of the class"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))
        self.text = "of the instance"
        self.nothing = None
        self._width = 2

    @property
    def width(self) -> int:
        return self._width

    @width.setter
    def width(self, width: int) -> None:
        self._width = width

    @property
    def broken(self) -> int:
        raise RuntimeError("the property itself failed")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale

    def me(self) -> Net:
        return self

    @classmethod
    def kind(cls) -> type:
        return cls

    @staticmethod
    def two() -> int:
        return 2


@pytest.fixture(params=["plain", "wrapping"])
def pair(request: pytest.FixtureRequest, wrapping: Any) -> tuple[Any, Net]:
    """A set-up module and the one inside of it, for a strategy that wraps modules and one that does not."""
    strategy = {"strategy": wrapping()} if request.param == "wrapping" else {}
    net = Net()
    return Fabric(accelerator="cpu", devices=1, **strategy).setup(net), net


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer", "scale", "seen", "text", "nothing", "constant", "width", "_width"])
def test_attributes_are_read_from_the_module(pair: tuple[Any, Net], name: str) -> None:
    model, net = pair
    assert getattr(model, name) is getattr(net, name)


def test_methods_belong_to_the_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    assert model.me() is net
    assert model.kind() is Net
    assert model.two() == 2
    assert model.module is net


def test_a_missing_attribute_is_missing_from_the_users_class(pair: tuple[Any, Net]) -> None:
    model, _ = pair
    assert not hasattr(model, "missing")
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'missing'"):
        _ = model.missing
    with pytest.raises(AttributeError, match=r"'Net' object has no attribute 'missing'|^missing$"):
        del model.missing


def test_the_error_of_a_property_is_its_own(pair: tuple[Any, Net]) -> None:
    with pytest.raises(RuntimeError, match="the property itself failed"):
        _ = pair[0].broken


@pytest.mark.parametrize("name", ["training_step", "validation_step", "test_step", "predict_step"])
def test_an_attribute_with_the_name_of_a_step_may_be_a_plain_value(pair: tuple[Any, Net], name: str) -> None:
    model, net = pair
    assert not hasattr(model, name)
    setattr(net, name, 7)
    assert getattr(model, name) == 7


def test_looking_up_by_a_dotted_name(pair: tuple[Any, Net]) -> None:
    model, net = pair
    assert model.get_submodule("layer") is net.layer
    assert model.get_parameter("layer.weight") is net.layer.weight
    assert model.get_buffer("seen") is net.seen


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("text", "changed"),
        ("nothing", 3),
        ("new", [1, 2]),
        ("layer", nn.Linear(2, 3)),
        ("new_layer", nn.Linear(2, 3)),
        ("scale", nn.Parameter(torch.zeros(1))),
        ("new_scale", nn.Parameter(torch.zeros(1))),
        ("seen", torch.ones(1)),
        ("scale", None),
    ],
)
def test_attributes_are_written_to_the_module(pair: tuple[Any, Net], name: str, value: Any) -> None:
    model, net = pair
    own = set(vars(model))
    setattr(model, name, value)
    assert getattr(net, name) is value
    assert getattr(model, name) is value
    assert set(vars(model)) == own
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    assert {id(b) for b in model.buffers()} == {id(b) for b in net.buffers()}


def test_what_is_set_is_registered(pair: tuple[Any, Net]) -> None:
    model, net = pair
    model.extra, model.head, model.seen = nn.Parameter(torch.ones(2)), nn.Linear(2, 1), torch.full((1,), 5.0)
    assert {"extra", "head.weight", "head.bias"} <= {name for name, _ in net.named_parameters()}
    assert model.state_dict()["seen"] == 5
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}


def test_what_is_registered_by_a_method_is_part_of_the_state(pair: tuple[Any, Net]) -> None:
    model, net = pair
    model.register_buffer("counter", torch.zeros(1))
    model.register_parameter("bias", nn.Parameter(torch.zeros(1)))
    model.add_module("head", nn.Linear(1, 1))
    model.register_module("tail", nn.Linear(1, 1))
    assert {"counter", "bias", "head.weight", "tail.weight"} <= model.state_dict().keys()
    assert net.counter is model.counter


def test_the_setter_of_a_property_is_called(pair: tuple[Any, Net]) -> None:
    model, net = pair
    model.width = 9
    assert net._width == model.width == 9


def test_what_the_module_sets_itself_is_seen(pair: tuple[Any, Net]) -> None:
    model, net = pair
    net.text, net.later = "inside", nn.Linear(1, 1)
    assert model.text == "inside"
    assert model.later is net.later


@pytest.mark.parametrize("name", ["layer", "scale", "seen", "text", "nothing"])
def test_attributes_are_deleted_from_the_module(pair: tuple[Any, Net], name: str) -> None:
    model, net = pair
    delattr(model, name)
    assert not hasattr(net, name)
    assert not hasattr(model, name)
    assert not any(name in key for key in model.state_dict())


# -- training and evaluation -----------------------------------------------------------------------------------------


def test_the_training_flag_is_that_of_the_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    for change in (model.eval, model.train, net.eval, net.train):
        change()
        assert model.training == net.training == net.layer.training
    model.training = False
    assert not net.training


def test_a_module_in_evaluation_stays_there(wrapping: Any) -> None:
    for strategy in ({}, {"strategy": wrapping()}):
        net = Net().eval()
        model = Fabric(accelerator="cpu", devices=1, **strategy).setup(net)
        assert not net.training
        assert not model.training


# -- the methods of every module -------------------------------------------------------------------------------------


def test_state_is_that_of_the_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    assert list(model.state_dict()) == list(net.state_dict()) == ["scale", "seen", "layer.weight", "layer.bias"]
    assert list(model.state_dict(prefix="a.")) == ["a.scale", "a.seen", "a.layer.weight", "a.layer.bias"]
    assert model.state_dict(keep_vars=True)["scale"] is net.scale
    destination: dict[str, Any] = {"before": 1}
    assert model.state_dict(destination=destination) is destination
    assert list(destination)[:2] == ["before", "scale"]


def test_state_is_loaded_into_the_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    other = Net().state_dict()
    assert not any(model.load_state_dict(other))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.items())
    part = {"scale": torch.full((1,), 3.0), "unknown": torch.ones(1)}
    report = model.load_state_dict(part, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["seen", "layer.weight", "layer.bias"], ["unknown"])
    assert net.scale == 3
    with pytest.raises(RuntimeError, match=r'loading state_dict for Net:(.|\n)*Missing key.*"layer.weight"'):
        model.load_state_dict(part)
    replacement = torch.full((1,), 4.0)
    model.load_state_dict({**other, "scale": replacement}, assign=True)
    assert net.scale.data_ptr() == replacement.data_ptr()


def test_state_as_part_of_another_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    outer = nn.Sequential(nn.Linear(2, 2), model)
    state = {name: torch.full_like(value, 2.0) for name, value in outer.state_dict().items()}
    assert {"1.scale", "1.layer.weight"} <= state.keys()
    outer.load_state_dict(state)
    assert net.scale == 2
    assert bool((net.layer.weight == 2).all())


def test_state_of_its_own_making_as_part_of_another_module() -> None:
    class Counting(nn.Module):
        """Saves and loads more than tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.count = 0

        def get_extra_state(self) -> int:
            return self.count

        def set_extra_state(self, state: int) -> None:
            self.count = state

        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            super()._load_from_state_dict(*args, **kwargs)
            loaded.append("method")

    loaded: list[str] = []
    net = Counting()
    net.register_load_state_dict_pre_hook(lambda *args: loaded.append("before"))
    net.register_load_state_dict_post_hook(lambda *args: loaded.append("after"))
    outer = nn.Sequential(Fabric(accelerator="cpu", devices=1).setup(net))
    state = outer.state_dict()
    assert state.keys() == {"0.layer.weight", "0.layer.bias", "0._extra_state"}
    state["0._extra_state"] = 5
    outer.load_state_dict(state)
    assert net.count == 5
    assert loaded == ["before", "method", "after"]


def test_the_module_is_among_the_modules(pair: tuple[Any, Net]) -> None:
    model, net = pair
    assert [each for each in model.modules() if isinstance(each, Net)] == [net]
    assert [each for each in model.modules() if isinstance(each, nn.Linear)] == [net.layer]


def test_a_module_that_knows_its_device_and_dtype_keeps_knowing(wrapping: Any) -> None:
    class Knowing(_DeviceDtypeModuleMixin):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

    for strategy in ({}, {"strategy": wrapping()}):
        net = Knowing()
        model = Fabric(accelerator="cpu", devices=1, **strategy).setup(net)
        model.double()
        model.to("meta")
        assert (net.dtype, net.device) == (model.dtype, model.device) == (torch.float64, torch.device("meta"))


def test_switching_to_evaluation_is_done_by_the_module_once() -> None:
    class Frozen(Net):
        def train(self, mode: bool = True) -> Frozen:
            modes.append(mode)
            super().train(mode)
            self.layer.eval()
            return self

    modes: list[bool] = []
    model = Fabric(accelerator="cpu", devices=1).setup(net := Frozen())
    assert model.train() is model
    assert (net.training, net.layer.training) == (True, False)
    assert model.eval() is model
    assert modes == [True, False]


def test_functions_are_applied_once(wrapping: Any) -> None:
    for strategy in ({}, {"strategy": wrapping()}):
        net = Net()
        model = Fabric(accelerator="cpu", devices=1, **strategy).setup(net)
        seen: list[nn.Module] = []
        model.apply(seen.append)
        assert len([each for each in seen if each is net]) == 1
        assert len([each for each in seen if each is net.layer]) == 1


def test_moving_and_casting_reach_the_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    assert model.double() is model
    assert net.layer.weight.dtype == model.dtype == torch.float64
    model.to(torch.device("meta"))
    assert net.layer.weight.is_meta
    assert model.device == torch.device("meta")
    with pytest.raises(RuntimeError, match=r"dtype .* cannot be assigned.* Write `module.to\(torch.float16\)`"):
        model.dtype = torch.float16


def test_freezing_and_clearing_gradients_reach_the_module(pair: tuple[Any, Net]) -> None:
    model, net = pair
    model(torch.ones(1, 2)).sum().backward()
    assert net.layer.weight.grad is not None
    model.zero_grad()
    assert net.layer.weight.grad is None
    model.requires_grad_(False)
    assert not net.layer.weight.requires_grad


@pytest.mark.parametrize("precision", PRECISIONS)
def test_hooks_of_the_wrapper_and_of_the_module_run_once(precision: str) -> None:
    net, calls = Net(), []
    model = Fabric(accelerator="cpu", devices=1, precision=precision).setup(net)
    net.register_forward_hook(lambda module, args, output: calls.append(("inside", module is net, output.dtype)))
    handle = model.register_forward_hook(lambda module, args, output: calls.append(("outside", output.dtype)))
    assert model(torch.ones(1, 2)).dtype == torch.float32
    assert [call[0] for call in calls] == ["inside", "outside"]
    assert calls[1][1] == torch.float32
    handle.remove()
    assert not net._forward_pre_hooks
    assert len(net._forward_hooks) == 1
