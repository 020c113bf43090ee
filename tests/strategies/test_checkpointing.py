"""Saving and loading through the strategy, with a `CheckpointIO` of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from fabric_lite import Fabric
from fabric_lite.plugins import CheckpointIO, TorchCheckpointIO
from fabric_lite.strategies import SingleDeviceStrategy


class Memory(CheckpointIO):
    """Keeps checkpoints in a dictionary, and takes note of what it is asked."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.asked: list[Any] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.asked.append(("save", path, storage_options))
        self.kept[str(path)] = checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        self.asked.append(("load", path, weights_only))
        return dict(self.kept[str(path)])

    def remove_checkpoint(self, path: Any) -> None:
        del self.kept[str(path)]


class Stateful:
    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def fabric(memory: Memory) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, plugins=memory)


def objects(fabric: Fabric, value: int) -> dict[str, Any]:
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, value)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=value))
    return {"model": model, "optimizer": optimizer, "own": Stateful(value), "step": value, "text": "text"}


def test_what_is_saved(fabric: Fabric, memory: Memory) -> None:
    state = objects(fabric, 3)
    fabric.save("here", state)
    saved = memory.kept["here"]
    assert list(saved) == list(state)
    assert list(saved["model"]) == ["weight", "bias"]
    assert saved["optimizer"]["param_groups"][0]["lr"] == 3
    assert (saved["own"], saved["step"], saved["text"]) == ({"value": 3}, 3, "text")
    assert memory.asked == [("save", "here", None)]


def test_what_is_loaded(fabric: Fabric, memory: Memory) -> None:
    fabric.save("here", {**objects(fabric, 3), "more": [1]})
    state = objects(fabric, 5)
    given = dict(state)
    assert fabric.load("here", state) == {"more": [1]}
    assert all(state[name] is given[name] for name in ("model", "optimizer", "own"))
    assert bool((state["model"].weight == 3).all())
    assert state["optimizer"].param_groups[0]["lr"] == 3
    assert (state["own"].value, state["step"]) == (3, 3)
    assert fabric.load("here").keys() == {*state, "more"}


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_what_is_asked_of_the_storage(fabric: Fabric, memory: Memory, weights_only: bool | None) -> None:
    fabric.save("here", {"a": 1})
    fabric.load("here", weights_only=weights_only)
    assert memory.asked[-1] == ("load", "here", weights_only)


def test_a_name_that_is_not_there(fabric: Fabric, memory: Memory) -> None:
    fabric.save("here", {"step": 1})
    state = {"step": 5, "epoch": 7}
    with pytest.raises(KeyError, match=r"The checkpoint has no 'epoch'; it has 'step'. .* `strict=False`"):
        fabric.load("here", state)
    assert state == {"step": 5, "epoch": 7}
    assert fabric.load("here", state, strict=False) == {}
    assert state == {"step": 1, "epoch": 7}


def test_keys_of_a_module_that_do_not_match(fabric: Fabric, memory: Memory) -> None:
    fabric.save("here", {"model": nn.Linear(2, 1, bias=False)})
    model = fabric.setup(nn.Linear(2, 1))
    with pytest.raises(RuntimeError, match=r'loading state_dict for Linear:(.|\n)*Missing key.*"bias"'):
        fabric.load("here", {"model": model})
    fabric.load("here", {"model": model}, strict=False)
    assert torch.equal(model.weight, memory.kept["here"]["model"]["weight"])


def test_one_object_alone(fabric: Fabric, memory: Memory) -> None:
    first, second = objects(fabric, 3), objects(fabric, 5)
    for name in ("model", "optimizer"):
        memory.kept[name] = first[name].state_dict()
        fabric.load_raw(name, second[name])
    assert bool((second["model"].weight == 3).all())
    assert second["optimizer"].param_groups[0]["lr"] == 3
    memory.kept["part"] = {"weight": torch.zeros(1, 2)}
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        fabric.load_raw("part", second["model"])
    fabric.load_raw("part", second["model"], strict=False)
    assert bool((second["model"].weight == 0).all())


def test_filters(fabric: Fabric, memory: Memory) -> None:
    keep_weights = {"model": lambda name, value: name == "weight", "own": lambda name, value: False}
    fabric.save("here", objects(fabric, 3), filter=keep_weights)
    assert list(memory.kept["here"]["model"]) == ["weight"]
    assert "own" not in memory.kept["here"]
    assert "optimizer" in memory.kept["here"]


@pytest.mark.parametrize(
    "filter, error, message",
    [
        (len, TypeError, r"`fabric.save\(filter=<built-in function len>\)`: pass a dictionary"),
        ({"other": len}, ValueError, r"names 'other', but the state has 'a'. Use the names of the state"),
        ({"a": 3}, TypeError, r"`fabric.save\(filter=\{'a': 3\}\)`: pass a function"),
    ],
)
def test_filters_that_are_none(fabric: Fabric, memory: Memory, filter: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fabric.save("here", {"a": {"b": 1}}, filter=filter)
    assert memory.asked == []


def test_the_state_of_a_wrapped_module_has_no_trace_of_it(memory: Memory) -> None:
    class Around(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    class Wrapping(SingleDeviceStrategy):
        def setup_module(self, module: nn.Module) -> nn.Module:
            return Around(module)

        def get_module_state_dict(self, module: Any) -> dict[str, Any]:
            return super().get_module_state_dict(getattr(module, "module", module))

        def load_module_state_dict(self, module: Any, state_dict: dict[str, Any], strict: bool = True) -> None:
            super().load_module_state_dict(getattr(module, "module", module), state_dict, strict=strict)

    fabric = Fabric(strategy=Wrapping(checkpoint_io=memory))
    net = nn.Linear(1, 1)
    fabric.save("here", {"model": fabric.setup(net), "list": [fabric.setup(net)]})
    assert list(memory.kept["here"]["model"]) == ["weight", "bias"]
    fabric.load("here", {"model": (other := fabric.setup(nn.Linear(1, 1)))}, strict=False)
    assert torch.equal(other.weight, net.weight)


def test_only_the_first_process_writes(memory: Memory) -> None:
    class Second(SingleDeviceStrategy):
        is_global_zero = False  # type: ignore[assignment]

        def barrier(self, *args: Any, **kwargs: Any) -> None:
            barriers.append(len(memory.asked))

    barriers: list[int] = []
    Fabric(accelerator="cpu", strategy=Second(), plugins=memory).save("here", {"a": 1})
    assert memory.kept == {}
    assert barriers == [0]  # it has come to where the others wait


def test_an_optimizer_that_shards_its_state_collects_it_first() -> None:
    class Sharded(torch.optim.SGD):
        consolidated = False

        def consolidate_state_dict(self, to: int = 0) -> None:
            self.consolidated = True

    class Second(SingleDeviceStrategy):
        is_global_zero = False  # type: ignore[assignment]

    for strategy, keys in ((SingleDeviceStrategy(), {"state", "param_groups"}), (Second(), set())):
        optimizer: Optimizer = Sharded([torch.ones(1)], lr=1.0)
        assert strategy.get_optimizer_state(optimizer).keys() == keys
        assert optimizer.consolidated  # type: ignore[attr-defined]


def test_storage_options_are_passed_on(memory: Memory, tmp_path: Path) -> None:
    strategy = SingleDeviceStrategy(checkpoint_io=memory)
    strategy.save_checkpoint("here", {"a": 1}, storage_options={"fast": True})
    assert memory.asked == [("save", "here", {"fast": True})]
    with pytest.raises(TypeError, match=r"`TorchCheckpointIO` has no storage options, but got {'fast': True}"):
        SingleDeviceStrategy().save_checkpoint(tmp_path / "file", {"a": 1}, storage_options={"fast": True})
    assert list(tmp_path.iterdir()) == []


def test_files(tmp_path: Path) -> None:
    io = TorchCheckpointIO()
    path = tmp_path / "new" / "folder" / "file.ckpt"
    io.save_checkpoint({"a": torch.ones(1)}, path)
    assert io.load_checkpoint(path)["a"] == torch.load(path)["a"] == 1
    io.remove_checkpoint(path)
    assert not path.exists()
    io.remove_checkpoint(path)  # it is gone already
    with pytest.raises(FileNotFoundError, match=r"file.ckpt"):
        io.load_checkpoint(path)


@pytest.mark.parametrize("method", ["save", "save_async"])
def test_one_file_takes_the_place_of_a_sharded_checkpoint(method: str, tmp_path: Path) -> None:
    """As when a run goes on in one process that was sharded over several."""
    path = tmp_path / "latest.ckpt"
    path.mkdir()
    torch.save({"step": 1}, path / "meta.pt")
    fabric = Fabric(accelerator="cpu", devices=1)
    getattr(fabric, method)(path, {"step": 2})
    assert fabric.load(path) == {"step": 2}  # which waits for what is saved in the background
    assert [(each.name, each.is_file()) for each in tmp_path.iterdir()] == [("latest.ckpt", True)]


def test_a_storage_can_be_exchanged_later(memory: Memory) -> None:
    strategy = SingleDeviceStrategy()
    strategy.checkpoint_io = memory
    strategy.save_checkpoint("here", {"a": 1})
    assert memory.kept == {"here": {"a": 1}}
