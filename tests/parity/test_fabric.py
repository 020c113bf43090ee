"""What a Fabric is made of and what it makes: arguments, properties, contexts, devices, launching."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning.fabric as theirs
import pytest
import torch
from torch import nn

import fabric_lite as ours
import fabric_lite.plugins.environments

LIBRARIES = (theirs, ours)
PRECISIONS = ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"]
Frozen = Callable[[Any], Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Embedding(3, 2))
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("count", torch.arange(3))


ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "nothing": lambda library: {},
    "auto": lambda library: {"accelerator": "auto", "strategy": "auto", "devices": "auto"},
    "capitals": lambda library: {"strategy": "AUTO"},
    "text": lambda library: {"accelerator": "cpu", "devices": " 1 ", "num_nodes": "1"},
    "truth value": lambda library: {"accelerator": "cpu", "devices": True},
    "instances": lambda library: {
        "accelerator": library.accelerators.CPUAccelerator(),
        "strategy": library.strategies.SingleDeviceStrategy("cpu"),
    },
    "strategy with all its parts": lambda library: {
        "strategy": library.strategies.SingleDeviceStrategy(
            device="cpu",
            accelerator=library.accelerators.CPUAccelerator(),
            checkpoint_io=library.plugins.TorchCheckpointIO(),
            precision=library.plugins.HalfPrecision("bf16-true"),
        )
    },
    "no plugins": lambda library: {"plugins": []},
    "one plugin": lambda library: {"plugins": library.plugins.DoublePrecision()},
    "a tuple of plugins": lambda library: {
        "plugins": (library.plugins.DoublePrecision(), library.plugins.TorchCheckpointIO())
    },
    "an iterator of plugins": lambda library: {"plugins": iter([library.plugins.HalfPrecision()])},
    "all kinds of plugins": lambda library: {
        "plugins": [
            library.plugins.TorchCheckpointIO(),
            library.plugins.environments.LightningEnvironment(),
            library.plugins.MixedPrecision("bf16-mixed", device="cpu"),
        ]
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_the_constructor(name: str) -> None:
    results = []
    for library in LIBRARIES:
        arguments = ARGUMENTS[name](library)
        fabric = library.Fabric(**arguments)
        parts = [fabric.accelerator, fabric.strategy, fabric._precision, fabric.strategy.checkpoint_io]
        results.append([type(part).__name__ for part in parts])
        results[-1] += [fabric.device, fabric.world_size, fabric._precision.precision]
        assert fabric.strategy.precision is fabric._precision
        assert fabric.strategy.accelerator is fabric.accelerator
        assert arguments.get("strategy") in (None, "auto", "AUTO", fabric.strategy)
    assert results[0] == results[1]


@pytest.mark.parametrize("empty_init", [None, False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_modules_are_made_in_the_same_data_type(precision: str, empty_init: bool | None, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
        with fabric.init_module(empty_init=empty_init):
            model = Net()
        kinds = [(name, value.dtype, value.device, value.shape) for name, value in model.state_dict().items()]
        results.append([kinds, None if empty_init else model.state_dict(), torch.get_rng_state()])
    assert frozen(results[0]) == frozen(results[1])
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_are_made_in_the_same_data_type(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
        with fabric.init_tensor():
            results.append([torch.randn(2), torch.zeros(1, dtype=torch.int32), torch.tensor([1, 2]), torch.tensor(0.1)])
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast(precision: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(1, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
        x = torch.randn(3, 3)
        with fabric.autocast():
            inside = [x @ x, torch.ones(1), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()]
        results.append([inside, x @ x, torch.is_autocast_enabled("cpu"), torch.get_default_dtype()])
    assert frozen(results[0]) == frozen(results[1])


class Movable:
    """Has a `to` of its own."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def to(self, device: Any, **options: Any) -> Movable:
        return Movable(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Movable) and self.device == other.device

    __hash__ = None  # type: ignore[assignment]


TO_DEVICE: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.ones(2, dtype=torch.int8),
    "number": lambda: 3.5,
    "text": lambda: "text",
    "nothing": lambda: None,
    "nested": lambda: {"a": [torch.ones(1), (torch.zeros(1), "x")], "b": {"c": 1}},
    "object with a `to`": lambda: [Movable(), {"x": Movable()}],
    "packed sequence": lambda: nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
    "set": lambda: {1, 2},
}


@pytest.mark.parametrize("what", TO_DEVICE)
def test_to_device(what: str, frozen: Frozen) -> None:
    their, our = (library.Fabric(accelerator="cpu", devices=1).to_device(TO_DEVICE[what]()) for library in LIBRARIES)
    assert type(our) is type(their)
    assert frozen(our) == frozen(their)


def test_a_module_moves_in_place() -> None:
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        bare, model = nn.Linear(1, 1), fabric.setup(nn.Linear(1, 1))
        assert fabric.to_device(bare) is bare
        assert fabric.to_device(model) is model


def test_left_where_it_is(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        with torch.device("meta"):
            modules = [nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU()]
        wrapped = [fabric.setup_module(module, move_to_device=False) for module in modules]
        results.append([(model.device, [p.device for p in model.parameters()]) for model in wrapped])
    assert results[0] == results[1]


@pytest.mark.parametrize("data", [3, 2.5, torch.ones(2), {"a": [torch.ones(1), 4], "b": (1.5, torch.zeros(2, 2))}])
def test_collectives_of_one_process(data: Any, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        gathered, reduced = fabric.all_gather(data), fabric.all_reduce(data, reduce_op="sum")
        results.append([gathered, reduced, fabric.broadcast(data), fabric.barrier(), fabric.barrier("name")])
    assert frozen(results[0]) == frozen(results[1])


def test_properties_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        with fabric.rank_zero_first(), fabric.rank_zero_first(local=True):
            fabric.print("text", 1, end="!\n")
        properties = "device global_rank local_rank node_rank world_size is_global_zero loggers".split()
        results.append([getattr(fabric, name) for name in properties])
        results[-1] += [type(fabric.strategy).__name__, type(fabric.accelerator).__name__, capsys.readouterr().out]
    assert results[0] == results[1]


class Run:
    """A `run` of its own, as in a subclass of Fabric."""

    def run(self, x: int, *, y: int = 0) -> tuple[int, int, bool]:
        return x, y, self._launched  # type: ignore[attr-defined]


def test_launching_and_running() -> None:
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(accelerator="cpu", devices=1)
        before = fabric._launched
        given, *passed = fabric.launch(lambda given, x, y=0: (given, x, y), 1, y=2)
        assert given is fabric
        mine = type("Mine", (Run, library.Fabric), {"run": Run.run})(accelerator="cpu", devices=1)
        results.append([before, passed, fabric._launched, fabric.launch(), fabric.run(), mine.run(4, y=5)])
    assert results[0] == results[1]


@pytest.mark.parametrize("precision", [64, "64", 32, "32", 16, "16", "bf16", "bf16-true", None])
def test_names_of_precisions(precision: Any) -> None:
    results = []
    for library in LIBRARIES:
        vague = str(precision) in ("16", "bf16")
        with pytest.warns(UserWarning, match="-mixed") if vague else nullcontext():
            fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
        results.append(
            [type(fabric._precision).__name__, fabric._precision.precision, fabric._connector._precision_input]
        )
    assert results[0] == results[1]
