"""Methods that call the module: marked, they go the way of its forward; unmarked, they may not bypass it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fabric_lite import Fabric


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.forwards = 0
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.inner(self.layer(x))

    def training_step(self, batch: Tensor, *, factor: float = 1.0) -> dict[str, Tensor]:
        y = self(batch)
        self.dtypes.append(y.dtype)
        return {"loss": y.sum() * factor}

    def generate(self, x: Tensor, steps: int = 1) -> Tensor:
        for _ in range(steps):
            x = self(x)
            self.dtypes.append(x.dtype)
        return x

    def twice(self, x: Tensor) -> Tensor:
        return self.generate(self.generate(x))

    def only_a_part(self, x: Tensor) -> Tensor:
        return self.inner[0](x)

    def fails(self, x: Tensor) -> Tensor:
        raise ValueError("in the method")

    def fails_later(self, x: Tensor) -> Tensor:
        self(x)
        raise ValueError("in the method")

    def count(self) -> int:
        return self.forwards

    def parts(self) -> list[str]:
        return [name for name, _ in self.named_children()]


def set_up(strategy: Any = None, precision: str = "32-true") -> tuple[Any, Net]:
    kwargs = {} if strategy is None else {"strategy": strategy}
    net = Net()
    return Fabric(accelerator="cpu", devices=1, precision=precision, **kwargs).setup(net), net


@pytest.fixture
def x() -> Tensor:
    return torch.ones(1, 2)


# -- marked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["name", "bound to the model", "bound to the module"])
def test_a_marked_method_goes_through_what_the_strategy_made(wrapping: Any, mark: str, x: Tensor) -> None:
    model, net = set_up(wrapping())
    model.mark_forward_method({"name": "generate", "bound to the model": model.generate}.get(mark, net.generate))
    expected = net.generate(x, 2)
    net.forwards = 0
    assert torch.equal(model.generate(x, steps=2), expected)
    assert model._forward_module.calls == 1
    assert net.forwards == 2


@pytest.mark.parametrize("how", ["plain", "wrapping"])
def test_marking_again_changes_nothing(how: str, wrapping: Any, x: Tensor) -> None:
    model, _ = set_up(wrapping() if how == "wrapping" else None)
    model.mark_forward_method("generate")
    model.mark_forward_method("generate")
    model.mark_forward_method(model.generate)
    model.mark_forward_method(model.training_step)
    assert model.generate(x).shape == (1, 2)


def test_the_steps_of_a_lightning_module_are_marked(wrapping: Any, x: Tensor) -> None:
    model, net = set_up(wrapping())
    assert model.training_step(x, factor=2.0)["loss"] == 2 * net(x).sum()
    assert model._forward_module.calls == 1


@pytest.mark.parametrize("how", ["plain", "wrapping"])
@pytest.mark.parametrize(
    "precision, inside",
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("16-true", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.bfloat16),
    ],
)
def test_a_marked_method_runs_in_the_precision(
    how: str, precision: str, inside: torch.dtype, wrapping: Any, x: Tensor
) -> None:
    model, net = set_up(wrapping() if how == "wrapping" else None, precision)
    model.mark_forward_method("generate")
    assert model.generate(x).dtype == torch.float32
    assert model.training_step(x)["loss"].dtype == torch.float32
    assert net.dtypes == [inside, inside]


def test_a_marked_method_may_call_others(wrapping: Any, x: Tensor) -> None:
    model, net = set_up(wrapping())
    model.mark_forward_method("twice")
    model.mark_forward_method("generate")
    assert torch.equal(model.twice(x), net.twice(x))
    assert model._forward_module.calls == 1


def test_a_marked_method_may_call_another_one_through_the_wrapper(wrapping: Any, x: Tensor) -> None:
    class Outer(Net):
        def outer(self, x: Tensor) -> Tensor:
            return model.generate(model(x))  # as a method would that keeps the wrapper in a variable

    net = Outer()
    model = Fabric(accelerator="cpu", devices=1, strategy=wrapping()).setup(net)
    model.mark_forward_method("outer")
    model.mark_forward_method("generate")
    assert torch.equal(model.outer(x), net.inner(net.layer(net(x))))
    assert model._forward_module.calls == 3
    assert "forward" not in vars(net)


@pytest.mark.parametrize("method", ["fails", "fails_later"])
@pytest.mark.parametrize("how", ["plain", "wrapping"])
def test_an_exception_leaves_nothing_behind(
    how: str, method: str, wrapping: Any, snapshot: Callable[[nn.Module], Any], x: Tensor
) -> None:
    model, net = set_up(wrapping() if how == "wrapping" else None, "64-true")
    model.mark_forward_method(method)
    expected = model(x)
    net.forwards = 0
    before = snapshot(net)
    with pytest.raises(ValueError, match="in the method"):
        getattr(model, method)(x)
    net.forwards = 0
    assert snapshot(net) == before
    assert torch.equal(model(x), expected)
    assert torch.get_default_dtype() == torch.float32


def test_an_exception_before_the_method_leaves_nothing_behind(wrapping: Any, x: Tensor) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("before the method")

    model, net = set_up(wrapping())
    model.mark_forward_method("generate")
    handle = model._forward_module.register_forward_pre_hook(refuse)
    with pytest.raises(ValueError, match="before the method"):
        model.generate(x)
    handle.remove()
    assert "forward" not in vars(net)
    assert torch.equal(model(x), net(x))


def test_a_forward_of_the_instance_stays(wrapping: Any, x: Tensor) -> None:
    net = Net()
    net.forward = replaced = lambda x: 3 * x  # type: ignore[method-assign]
    model = Fabric(accelerator="cpu", devices=1, strategy=wrapping()).setup(net)
    model.mark_forward_method("generate")
    assert torch.equal(model.generate(x), 3 * x)
    assert net.forward is replaced


def test_gradients_flow_through_a_marked_method(wrapping: Any, x: Tensor) -> None:
    for strategy in (None, wrapping()):
        net = Net()
        kwargs = {} if strategy is None else {"strategy": strategy}
        fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed", **kwargs)
        model = fabric.setup(net)
        loss = model.training_step(x)["loss"]
        with pytest.raises(RuntimeError, match=r"`fabric.backward\(loss\)`"):
            loss.backward(retain_graph=True)
        fabric.backward(loss)
        assert net.layer.weight.grad is not None


def test_a_method_keeps_its_name_and_documentation(wrapping: Any) -> None:
    for strategy in (None, wrapping()):
        model, net = set_up(strategy)
        for name in ("training_step", "count"):
            assert getattr(model, name).__name__ == name
            assert getattr(model, name).__doc__ == getattr(net, name).__doc__


@pytest.mark.parametrize(
    "method, error, message",
    [
        (3, TypeError, "`mark_forward_method` takes a method or its name, but got 3"),
        (None, TypeError, "takes a method or its name, but got None"),
        (len, TypeError, "takes a method or its name, but got <built-in function len>"),
        ("forward", ValueError, "`forward` is a forward method already. Mark the other methods"),
        ("missing", AttributeError, r"`mark_forward_method\('missing'\)`: `Net` has no method of that name"),
        ("layer", AttributeError, r"`mark_forward_method\('layer'\)`: `Net` has no method of that name"),
    ],
)
def test_what_cannot_be_marked(
    method: Any, error: type[Exception], message: str, snapshot: Callable[[nn.Module], Any]
) -> None:
    model, net = set_up()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        model.mark_forward_method(method)
    assert snapshot(net) == before
    assert not hasattr(model, "missing")


# -- not marked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate", "twice", "only_a_part", "fails_later"])
def test_a_method_that_bypasses_the_wrapper_is_refused(
    name: str, wrapping: Any, snapshot: Callable[[nn.Module], Any], x: Tensor
) -> None:
    model, net = set_up(wrapping())
    before = snapshot(net)
    message = rf"`Net.{name}\(\)` calls the module .* `WrappingStrategy` .* `model.mark_forward_method\('{name}'\)`"
    with pytest.raises(RuntimeError, match=message):
        getattr(model, name)(x)
    assert snapshot(net) == before
    assert net.forwards == 0


def test_a_method_that_raises_itself_leaves_no_hooks(
    wrapping: Any, snapshot: Callable[[nn.Module], Any], x: Tensor
) -> None:
    model, net = set_up(wrapping())
    before = snapshot(net)
    with pytest.raises(ValueError, match="in the method"):
        model.fails(x)
    assert snapshot(net) == before


def test_a_method_that_does_not_call_the_module_is_free(
    wrapping: Any, snapshot: Callable[[nn.Module], Any], x: Tensor
) -> None:
    model, net = set_up(wrapping())
    model(x)
    before = snapshot(net)
    assert model.count() == 1
    assert model.parts() == ["layer", "inner"]
    assert snapshot(net) == before


def test_bypassing_is_no_concern_where_nothing_is_wrapped(x: Tensor) -> None:
    model, net = set_up()
    assert torch.equal(model.generate(x), net.generate(x))
    assert torch.equal(model.only_a_part(x), net.only_a_part(x))


@pytest.mark.parametrize("reapply", [True, False])
def test_a_compiled_module_is_not_wrapped_in_anything(reapply: bool, x: Tensor) -> None:
    net = Net()
    compiled = torch.compile(net, backend="eager")
    model = Fabric(accelerator="cpu", devices=1).setup(compiled, _reapply_compile=reapply)
    assert torch.equal(model.only_a_part(x), net.only_a_part(x))
    assert torch.equal(model.generate(x), net.generate(x))
