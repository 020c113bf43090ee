"""`loss.backward()` is refused where `fabric.backward(loss)` does more than it would."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import tqdm
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from fabric_lite import Fabric
from fabric_lite.plugins import MixedPrecision, Precision
from fabric_lite.strategies import SingleDeviceStrategy

MESSAGE = r"`loss.backward\(\)` was called .* needs `fabric.backward\(loss\)`"


@dataclass
class Output:
    loss: Tensor
    name: str = "output"


@dataclass(frozen=True)
class FrozenOutput:
    loss: Tensor


class NamedOutput(NamedTuple):
    loss: Tensor
    other: Tensor


class Net(nn.Module):
    def __init__(self, pack: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.layer(x))


class OwnBackward(SingleDeviceStrategy):
    """Does something in its backward that `loss.backward()` would leave out."""

    def backward(self, tensor: Tensor, module: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        super().backward(tensor * 2, module, *args, **kwargs)


class OwnPrecision(Precision):
    """Does something after the backward."""

    done = 0

    def post_backward(self, tensor: Tensor, module: nn.Module | None) -> None:
        self.done += 1


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", device="cpu", scaler=GradScaler("cpu", init_scale=4.0))


NEEDY: dict[str, Callable[[], Fabric]] = {
    "bf16-mixed": lambda: Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"),
    "16-mixed": lambda: Fabric(accelerator="cpu", devices=1, plugins=scaled()),
    "strategy": lambda: Fabric(accelerator="cpu", devices=1, strategy=OwnBackward()),
    "precision": lambda: Fabric(accelerator="cpu", devices=1, plugins=OwnPrecision()),
}


@pytest.fixture
def x() -> Tensor:
    return torch.ones(1, 2)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # the compiler's progress bar starts a thread that stays
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def one_inductor_thread() -> Any:
    """More threads would be there after the test, too."""
    from torch._inductor import config

    return config.patch(compile_threads=1)


@pytest.mark.parametrize("needy", NEEDY)
def test_refused_and_nothing_has_happened(needy: str, x: Tensor) -> None:
    fabric = NEEDY[needy]()
    net = Net()
    model = fabric.setup(net)
    loss = model(x).sum()
    with pytest.raises(RuntimeError, match=MESSAGE):
        loss.backward(retain_graph=True)
    assert net.layer.weight.grad is None
    fabric.backward(loss)
    assert net.layer.weight.grad is not None
    with pytest.raises(RuntimeError, match=MESSAGE):  # it is closed again
        model(x).sum().backward()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "16-true", "bf16-true"])
def test_both_do_where_nothing_is_left_out(precision: str, x: Tensor) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    net = Net()
    model = fabric.setup(net)
    model(x).sum().backward()
    first = net.layer.weight.grad
    net.zero_grad()
    fabric.backward(model(x).sum())
    assert torch.equal(first, net.layer.weight.grad)  # type: ignore[arg-type]


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda y: {"a": {"loss": y, "n": 1}}, lambda out: out["a"]["loss"]),
    "ordered dict": (lambda y: OrderedDict(loss=y), lambda out: out["loss"]),
    "tuple": (lambda y: (None, y), lambda out: out[1]),
    "list": (lambda y: [y], lambda out: out[0]),
    "named tuple": (lambda y: NamedOutput(y, y * 2), lambda out: out.loss),
    "dataclass": (lambda y: Output(y), lambda out: out.loss),
    "frozen dataclass": (lambda y: FrozenOutput(y), lambda out: out.loss),
    "deep": (lambda y: [{"a": (Output(y),)}], lambda out: out[0]["a"][0].loss),
}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("needy", ["bf16-mixed", "strategy"])
def test_refused_whatever_the_module_returns(needy: str, kind: str, x: Tensor) -> None:
    fabric = NEEDY[needy]()
    pack, loss_of = OUTPUTS[kind]
    model = fabric.setup(Net(pack))
    output = model(x)
    assert type(output) is type(pack(x))
    with pytest.raises(RuntimeError, match=MESSAGE):
        loss_of(output).sum().backward(retain_graph=True)
    fabric.backward(loss_of(output).sum())
    assert model.module.layer.weight.grad is not None


def test_an_exception_in_the_backward_closes_the_gate(x: Tensor) -> None:
    fabric = NEEDY["bf16-mixed"]()
    model = fabric.setup(Net())
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        fabric.backward(model(x))
    with pytest.raises(RuntimeError, match=MESSAGE):
        model(x).sum().backward()


def test_of_several_models_each_one_counts(x: Tensor) -> None:
    fabric = NEEDY["bf16-mixed"]()
    first, second = fabric.setup(Net()), fabric.setup(Net())
    with pytest.raises(RuntimeError, match=MESSAGE):
        (first(x).sum() + 1).backward()
    fabric.backward(second(first(x)).sum())
    assert first.module.layer.weight.grad is not None
    assert second.module.layer.weight.grad is not None


def test_the_backward_of_another_fabric_counts(x: Tensor) -> None:
    """Gradients may run through models of several, as in distillation."""
    teacher, student = NEEDY["strategy"](), NEEDY["bf16-mixed"]()
    first, second = teacher.setup(Net()), student.setup(Net())
    student.backward(second(first(x)).sum())
    assert first.module.layer.weight.grad is not None
    with pytest.raises(RuntimeError, match=MESSAGE):
        second(first(x)).sum().backward()


def test_a_model_without_need_next_to_one_with(x: Tensor) -> None:
    free = Fabric(accelerator="cpu", devices=1).setup(Net())
    NEEDY["bf16-mixed"]().setup(Net())
    free(x).sum().backward()
    assert free.module.layer.weight.grad is not None


def test_nothing_is_put_on_what_needs_no_gradient(x: Tensor) -> None:
    model = NEEDY["bf16-mixed"]().setup(Net())
    with torch.no_grad():
        assert not model(x).requires_grad
    with torch.inference_mode():
        assert model(x).is_inference()
    assert model(x).detach().sum() is not None


def test_nothing_is_left_on_a_parameter_that_a_module_returns(x: Tensor) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.weight, x

    net, own = Table(), torch.ones(2, requires_grad=True)
    model = NEEDY["strategy"]().setup(net)
    for _ in range(3):
        model(own)
    assert not net.weight._backward_hooks
    assert not own._backward_hooks
    (net.weight * own).sum().backward()  # neither of them has been through the module


# -- compiled --------------------------------------------------------------------------------------------------------

# The compiler itself makes an instance of any `autograd.Function` that it traces, and torch warns that nobody should.
compiled = pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")


@compiled
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", ["dict", "tuple", "deep"])
@pytest.mark.parametrize("where", ["outside", "inside"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_refused_in_compiled_code(backend: str, where: str, kind: str, x: Tensor) -> None:
    fabric = NEEDY["bf16-mixed"]()
    pack, loss_of = OUTPUTS[kind]
    net = Net(pack)
    if where == "outside":
        model = torch.compile(fabric.setup(net), backend=backend, fullgraph=True)
    else:
        model = fabric.setup(torch.compile(net, backend=backend, fullgraph=True))
    for _ in range(2):
        net.zero_grad()
        loss = loss_of(model(x)).sum()
        with pytest.raises(RuntimeError, match=MESSAGE):
            loss.backward(retain_graph=True)
        assert net.layer.weight.grad is None
        fabric.backward(loss)
        assert net.layer.weight.grad is not None


@compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked for by the compiler
@pytest.mark.usefixtures("compiler")
def test_two_fabrics_in_compiled_code(x: Tensor) -> None:
    first, second = NEEDY["bf16-mixed"](), NEEDY["bf16-mixed"]()
    models = [torch.compile(fabric.setup(Net()), backend="aot_eager") for fabric in (first, second)]
    loss = models[1](models[0](x)).sum()
    with pytest.raises(RuntimeError, match=MESSAGE):
        loss.backward(retain_graph=True)
    second.backward(loss)


@compiled
@pytest.mark.usefixtures("compiler")
def test_compiled_gradients_are_the_same(x: Tensor) -> None:
    fabric = NEEDY["bf16-mixed"]()
    net = Net()
    model = fabric.setup(net)
    gradients = []
    for each in (model, torch.compile(model, backend="aot_eager")):
        net.zero_grad()
        fabric.backward(each(x).square().sum())
        gradients.append(net.layer.weight.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]


@compiled
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # by torch itself
@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_refused_in_code_that_inductor_compiled(x: Tensor) -> None:
    fabric = NEEDY["bf16-mixed"]()
    net = Net()
    model = torch.compile(fabric.setup(net), fullgraph=True)
    with one_inductor_thread():
        loss = model(x).sum()
        with pytest.raises(RuntimeError, match=MESSAGE):
            loss.backward(retain_graph=True)
        fabric.backward(loss)
    assert net.layer.weight.grad is not None
