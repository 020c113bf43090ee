"""What setting up returns looks, from outside, the same: names, keys, types, attributes, data types."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import lightning.fabric.wrappers as their_wrappers
import pytest
import torch
from torch import Tensor, nn

import fabric_lite as ours
import fabric_lite.wrappers as our_wrappers

LIBRARIES = (theirs, ours)
PRECISIONS = ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"]
Frozen = Callable[[Any], Any]


class Net(nn.Module):
    """Has everything that shows up in a state: nested and tied parameters, buffers, kept and not."""

    kind = "class attribute"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.body[2].weight = self.body[0].weight
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("gone", torch.ones(2), persistent=False)
        self.text = "attribute"

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale

    def double_of(self, x: Tensor) -> Tensor:
        return 2 * self(x)

    @property
    def width(self) -> int:
        return 4


def set_up(library: ModuleType, precision: str = "32-true") -> tuple[Any, Any, Any]:
    library.seed_everything(1, verbose=False)
    fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = Net()
    return (fabric, *fabric.setup(model, torch.optim.AdamW(model.parameters())))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_names_keys_and_data_types_of_a_module(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        _, model, _ = set_up(library, precision)
        results.append({
            "state": model.state_dict(),
            "prefixed": model.state_dict(prefix="a."),
            "vars": model.state_dict(keep_vars=True),
            "inner parameters": dict(model.module.named_parameters()),
            "device": (model.device, model.dtype),
            "name": type(model).__name__,
        })  # fmt: skip
    assert frozen(results[0]) == frozen(results[1])
    assert not any("_forward_module" in name for name in results[1]["state"])


@pytest.mark.parametrize("what", ["parameters", "buffers", "modules", "children"])
def test_names_are_those_of_the_module_not_of_the_wrapper(what: str) -> None:
    """Lightning Fabric puts `_forward_module.` in front of each, so that a rule for names breaks when one sets up."""
    their, our = (set_up(library)[1] for library in LIBRARIES)
    names = [name for name, _ in getattr(our, f"named_{what}")()]
    assert names == [name for name, _ in getattr(our.module, f"named_{what}")()]
    prefixed = [name for name, _ in getattr(their, f"named_{what}")()]
    assert [name for name in names if name and f"_forward_module.{name}" not in prefixed] == (
        [] if what != "children" else names
    )


def test_keys_of_an_optimizer(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric, model, optimizer = set_up(library)
        fabric.backward(model(torch.ones(2, 4)).sum())
        optimizer.step()
        results.append([optimizer.state_dict(), optimizer.param_groups, list(optimizer.state.values())])
        assert isinstance(optimizer, torch.optim.AdamW)
        assert isinstance(optimizer, torch.optim.Optimizer)
    assert frozen(results[0]) == frozen(results[1])


def test_wrappers_are_known_by_their_classes() -> None:
    for library, wrappers in zip(LIBRARIES, (their_wrappers, our_wrappers), strict=True):
        fabric, model, optimizer = set_up(library)
        loader = fabric.setup_dataloaders(torch.utils.data.DataLoader([1]))
        assert isinstance(model, wrappers._FabricModule)
        assert isinstance(optimizer, wrappers._FabricOptimizer)
        assert isinstance(loader, wrappers._FabricDataLoader)
        assert not isinstance(model, Net)
        assert isinstance(model, nn.Module)


def test_hooks_on_the_wrapper(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric, model, _ = set_up(library, "bf16-true")
        seen: list[Any] = []
        model.register_forward_pre_hook(lambda module, x, seen=seen: seen.append(x))
        model.register_forward_hook(lambda module, x, y, seen=seen: seen.append(y.dtype))
        model.module.register_forward_hook(lambda module, x, y, seen=seen: seen.append(y.dtype))
        model.register_full_backward_hook(lambda module, x, y, seen=seen: seen.append(y))
        fabric.backward(model(torch.ones(2, 4, requires_grad=True)).sum())
        results.append(seen)
    assert frozen(results[0]) == frozen(results[1])


def test_states_are_exchanged_between_the_two(frozen: Frozen) -> None:
    for one, other in (LIBRARIES, LIBRARIES[::-1]):
        fabric, model, optimizer = set_up(one)
        fabric.backward(model(torch.ones(2, 4)).sum())
        optimizer.step()
        _, second, second_optimizer = set_up(other)
        report = second.load_state_dict(model.state_dict())
        assert (report.missing_keys, report.unexpected_keys) == ([], [])
        second_optimizer.load_state_dict(optimizer.state_dict())
        assert frozen(second.state_dict()) == frozen(model.state_dict())
        assert frozen(second_optimizer.state_dict()) == frozen(optimizer.state_dict())


def test_attributes_pass_through_both_ways() -> None:
    results = []
    for library in LIBRARIES:
        _, model, optimizer = set_up(library)
        model.text, model.new = "changed", "made"
        model.module.inner = "inner"
        del model.module.body[1]
        seen = [model.module.text, model.module.new, model.inner, model.kind, model.width, len(model.body)]
        model.scale = nn.Parameter(torch.zeros(1))
        seen += [model.module.scale.item(), model.scale.item(), hasattr(model, "nothing")]
        model.train(False)
        seen += [model.training, model.module.training, model.module.body.training]
        seen += [len(optimizer.param_groups), optimizer.defaults["lr"], type(optimizer.optimizer).__name__]
        results.append(seen)
    assert results[0] == results[1]


@pytest.mark.parametrize("mark", ["double_of", "method"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_methods_marked_as_forward(precision: str, mark: str, frozen: Frozen) -> None:
    """Lightning only redirects them where a strategy wraps the module; else they run outside of the precision."""
    results = []
    for library in LIBRARIES:
        _, model, _ = set_up(library, precision)
        model.mark_forward_method(model.double_of if mark == "method" else mark)
        if precision == "32-true":
            results.append([model.double_of(torch.ones(2, 4)), model(torch.ones(2, 4))])
        else:
            results.append(sorted(model._forward_methods))
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_copies_train_like_the_original(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric, model, _ = set_up(library, precision)
        copied = copy.deepcopy(model)
        output = copied(torch.ones(2, 4))
        fabric.backward(output.sum())
        gradients = [parameter.grad for parameter in copied.parameters()]
        results.append([output, gradients, library.is_wrapped(copied), [p.grad for p in model.parameters()]])
    assert frozen(results[0]) == frozen(results[1])


IS_WRAPPED: dict[str, Callable[[Any], Any]] = {
    "module": lambda fabric: nn.Linear(1, 1),
    "set-up module": lambda fabric: fabric.setup(nn.Linear(1, 1)),
    "set-up module alone": lambda fabric: fabric.setup_module(nn.Linear(1, 1)),
    "module inside": lambda fabric: fabric.setup(nn.Linear(1, 1)).module,
    "compiled": lambda fabric: torch.compile(nn.Linear(1, 1), backend="eager"),
    "compiled, set up": lambda fabric: fabric.setup(torch.compile(nn.Linear(1, 1), backend="eager")),
    "set up, compiled": lambda fabric: torch.compile(fabric.setup(nn.Linear(1, 1)), backend="eager"),
    "optimizer": lambda fabric: torch.optim.SGD([torch.ones(1)], lr=1),
    "set-up optimizer": lambda fabric: fabric.setup_optimizers(torch.optim.SGD([torch.ones(1)], lr=1)),
    "optimizer inside": lambda fabric: fabric.setup_optimizers(torch.optim.SGD([torch.ones(1)], lr=1)).optimizer,
    "dataloader": lambda fabric: torch.utils.data.DataLoader([1]),
    "set-up dataloader": lambda fabric: fabric.setup_dataloaders(torch.utils.data.DataLoader([1])),
    "dataloader inside": lambda fabric: fabric.setup_dataloaders(torch.utils.data.DataLoader([1]))._dataloader,
    "tensor": lambda fabric: torch.ones(1),
    "nothing": lambda fabric: None,
    "class": lambda fabric: nn.Linear,
    "list of set-up modules": lambda fabric: [fabric.setup(nn.Linear(1, 1))],
}


@pytest.mark.parametrize("what", IS_WRAPPED)
def test_is_wrapped(what: str) -> None:
    their, our = (library.is_wrapped(IS_WRAPPED[what](library.Fabric(devices=1))) for library in LIBRARIES)
    assert our is their


def test_unwrapping_objects() -> None:
    kinds = []
    for library, wrappers in zip(LIBRARIES, (their_wrappers, our_wrappers), strict=True):
        fabric, model, optimizer = set_up(library)
        loader = fabric.setup_dataloaders(torch.utils.data.DataLoader([1]))
        compiled = torch.compile(model, backend="eager")
        collection = {"a": [model, (optimizer, 1)], "b": {"c": loader, "d": compiled}, "e": torch.optim.SGD}
        bare = wrappers._unwrap_objects(collection)
        assert bare["a"][0] is bare["b"]["d"] is model.module
        assert bare["a"][1][0] is optimizer.optimizer
        assert bare["b"]["c"] is loader._dataloader
        kinds.append([type(each).__name__ for each in (bare, bare["a"], bare["a"][1], bare["b"])])
    assert kinds[0] == kinds[1]
