"""A strategy and a precision of the user's own: they are asked for the same, in the same order, with the same."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fabric_lite as ours

LIBRARIES = (theirs, ours)
Frozen = Callable[[Any], Any]


def describe(value: Any) -> Any:
    """A value as both libraries have it: a type in the place of an object."""
    if isinstance(value, (int, float, str, bool, type(None), torch.device)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(each) for each in value]
    if isinstance(value, dict):
        return {key: describe(each) for key, each in value.items()}
    return type(value).__name__


def recording(kind: type, names: list[str], calls: list[Any]) -> type:
    """A subclass whose methods note how they are called from outside, and then do what they did."""
    inside: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        original = getattr(kind, name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not inside:
                bound = inspect.signature(original).bind(self, *args, **kwargs)
                bound.apply_defaults()
                calls.append((name, {key: describe(value) for key, value in bound.arguments.items() if key != "self"}))
            inside.append(name)
            try:
                return original(self, *args, **kwargs)
            finally:
                inside.pop()

        return method

    return type(f"My{kind.__name__}", (kind,), {name: note(name) for name in names})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def use(fabric: Any, folder: Path) -> None:
    """Everything that goes through a strategy, once."""
    fabric.launch()
    with fabric.init_tensor():
        torch.ones(1)
    with fabric.init_module(empty_init=False):
        first, second = Net(), Net()
    first, first_optimizer = fabric.setup(first, torch.optim.SGD(first.parameters(), lr=0.1))
    second = fabric.setup_module(second, move_to_device=False)
    second_optimizer = fabric.setup_optimizers(torch.optim.Adam(second.parameters()))
    loader = fabric.setup_dataloaders(DataLoader(torch.ones(4, 2)))  # type: ignore[arg-type]
    for model, optimizer in ((first, first_optimizer), (second, second_optimizer)):
        with fabric.no_backward_sync(model, enabled=False):
            fabric.backward(model(next(iter(loader))).sum(), retain_graph=True)
        fabric.clip_gradients(model, optimizer, clip_val=0.1)
        fabric.clip_gradients(model, optimizer, max_norm=0.1, norm_type=1.0)
        optimizer.step()
        optimizer.step(lambda: 0.0)
    fabric.barrier("here")
    fabric.broadcast({"a": 1}, src=0)
    fabric.all_reduce(torch.ones(1), reduce_op="sum")
    fabric.save(folder / "state.ckpt", {"model": first, "optimizer": first_optimizer, "epoch": 1})
    fabric.load(folder / "state.ckpt", {"model": first, "optimizer": first_optimizer})
    fabric.load_raw(folder / "raw.pt", first)


STRATEGY = """
setup_environment setup_optimizer setup_module process_dataloader tensor_init_context module_init_context
module_to_device backward optimizer_step barrier broadcast all_reduce clip_gradients_norm clip_gradients_value
save_checkpoint load_checkpoint
""".split()


def test_a_strategy_is_asked_the_same(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "raw.pt")
    results = []
    for library in LIBRARIES:
        calls: list[Any] = []
        kind = recording(library.strategies.SingleDeviceStrategy, STRATEGY, calls)
        fabric = library.Fabric(accelerator="cpu", devices=1, strategy=kind(device="cpu"))
        use(fabric, tmp_path)
        results.append(calls)
    assert [name for name, _ in results[1]] == [name for name, _ in results[0]]
    named = {"fabric.save", "fabric.load"}  # barriers that have no name in Lightning
    ours = [
        (name, {**call, "kwargs": {"name": None}})
        if name == "barrier" and call["kwargs"]["name"] in named
        else (name, call)
        for name, call in results[1]
    ]
    assert ours == results[0]


SET_UPS: dict[str, Callable[[Any, nn.Module], Any]] = {
    "module": lambda fabric, module: fabric.setup(module),
    "module alone": lambda fabric, module: fabric.setup_module(module),
    "optimizers": lambda fabric, module: fabric.setup(module, sgd(module), sgd(module)),
    "scheduler": lambda fabric, module: fabric.setup(module, optimizer := sgd(module), scheduler=step_lr(optimizer)),
    "optimizers alone": lambda fabric, module: fabric.setup_optimizers(sgd(module)),
}


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def step_lr(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize("name", SET_UPS)
def test_setting_up_goes_through_the_same_methods_of_a_strategy(name: str) -> None:
    results = []
    for library in LIBRARIES:
        calls: list[Any] = []
        names = ["setup_module_and_optimizers", "setup_module", "setup_optimizer", "module_to_device"]
        kind = recording(library.strategies.SingleDeviceStrategy, names, calls)
        fabric = library.Fabric(accelerator="cpu", devices=1, strategy=kind(device="cpu"))
        SET_UPS[name](fabric, Net())
        results.append(calls)
    assert results[1] == results[0]


PRECISION = """
convert_module tensor_init_context module_init_context forward_context convert_input convert_output pre_backward
backward post_backward optimizer_step main_params unscale_gradients
""".split()


@pytest.mark.parametrize("base", ["Precision", "DoublePrecision", "HalfPrecision"])
def test_a_precision_is_asked_the_same(base: str, tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "raw.pt")
    results = []
    for library in LIBRARIES:
        calls: list[Any] = []
        kind = recording(getattr(library.plugins, base), PRECISION, calls)
        use(library.Fabric(accelerator="cpu", devices=1, plugins=kind()), tmp_path)
        results.append(calls)
    assert [name for name, _ in results[1]] == [name for name, _ in results[0]]
    assert results[1] == results[0]


class Doubling:
    """Halves the parameters that come in, and doubles what goes out and the gradients."""

    def convert_input(self, data: Any) -> Any:
        return torch.utils._pytree.tree_map(lambda x: x / 2, data)

    def convert_output(self, data: Any) -> Any:
        return data * 2

    def pre_backward(self, tensor: Tensor, module: nn.Module | None) -> None:
        tensor.data *= 3

    def post_backward(self, tensor: Tensor, module: nn.Module | None) -> None:
        tensor.data /= 3

    def backward(self, tensor: Tensor, model: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        (tensor * 2).backward(*args, **kwargs)


def test_a_precision_of_ones_own(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        kind = type("Mine", (Doubling, library.plugins.Precision), {})
        fabric = library.Fabric(accelerator="cpu", devices=1, plugins=kind())
        model, optimizer = fabric.setup(module := Net(), sgd(module))
        output = model(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
            model(torch.ones(1, 2)).sum().backward()
        fabric.backward(output.sum())
        optimizer.step()
        results.append([output, model.state_dict()])
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("method", ["pre_backward", "backward", "post_backward"])
def test_what_makes_fabric_backward_necessary(method: str) -> None:
    for library in LIBRARIES:
        precision = type("Mine", (library.plugins.Precision,), {method: lambda self, *args: None})()
        model = library.Fabric(accelerator="cpu", devices=1, plugins=precision).setup(Net())
        with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
            model(torch.ones(1, 2)).sum().backward()


def test_a_backward_of_the_strategy_makes_fabric_backward_necessary() -> None:
    for library in LIBRARIES:
        kind = type("Mine", (library.strategies.SingleDeviceStrategy,), {"backward": lambda self, *args: None})
        model = library.Fabric(accelerator="cpu", devices=1, strategy=kind(device="cpu")).setup(Net())
        with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
            model(torch.ones(1, 2)).sum().backward()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "16-true", "bf16-true"])
def test_loss_backward_is_fine_elsewhere(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        model = library.Fabric(accelerator="cpu", devices=1, precision=precision).setup(Net())
        model(torch.ones(1, 2)).sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert frozen(results[0]) == frozen(results[1])


class Boxed(nn.Module):
    """A strategy's wrapper around a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs) * 10


class Several(Net):
    def __init__(self) -> None:
        super().__init__()
        self.width = 2

    def forward(self, x: Tensor, factor: int = 1) -> Tensor:
        return super().forward(x) * factor

    def training_step(self, x: Tensor) -> Tensor:
        return self(x, factor=2)  # type: ignore[no-any-return]

    def marked(self, x: Tensor, *, factor: int) -> Tensor:
        return self.layer(x) * factor  # type: ignore[no-any-return]

    def calls_a_layer(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def calls_nothing(self) -> int:
        return self.width


def boxing(library: ModuleType, precision: str = "32-true") -> tuple[Any, Any, Any]:
    library.seed_everything(1, verbose=False)
    kind = type(
        "Boxing", (library.strategies.SingleDeviceStrategy,), {"setup_module": lambda self, module: Boxed(module)}
    )
    fabric = library.Fabric(accelerator="cpu", devices=1, strategy=kind(device="cpu"), precision=precision)
    module = Several()
    return fabric, module, fabric.setup(module)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_methods_go_through_what_the_strategy_wraps(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        _, module, model = boxing(library, precision)
        model.mark_forward_method("marked")
        x = torch.ones(1, 2)
        results.append([model(x), model.training_step(x), model.marked(x, factor=3), model.calls_nothing(), model(x)])
        assert "forward" not in vars(module) or library is theirs
        assert isinstance(model._forward_module, Boxed)
        assert model.module is model._original_module is module
    assert frozen(results[0]) == frozen(results[1])


def test_a_method_that_would_bypass_it_raises() -> None:
    for library in LIBRARIES:
        _, _, model = boxing(library)
        with pytest.raises(RuntimeError, match=r"Several.calls_a_layer.*mark_forward_method\('calls_a_layer'\)"):
            model.calls_a_layer(torch.ones(1, 2))


def test_names_and_keys_where_the_strategy_wraps(tmp_path: Path, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric, _, model = boxing(library)
        fabric.save(tmp_path / "state.ckpt", {"model": model})
        saved = torch.load(tmp_path / "state.ckpt")
        assert fabric.load(tmp_path / "state.ckpt", {"model": model}) == {}
        results.append([model.state_dict(), saved])
    assert frozen(results[0]) == frozen(results[1])
