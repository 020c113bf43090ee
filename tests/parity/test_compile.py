"""`torch.compile` before setting up: it is taken off, and put back on over what was set up, with the same settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import pytest
import torch
import tqdm
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

import fabric_lite as ours

LIBRARIES = (theirs, ours)
Frozen = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # the compiler's progress bar starts a thread that stays
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def train(library: ModuleType, precision: str, compile: Callable[[nn.Module], Any]) -> dict[str, Any]:
    library.seed_everything(2, verbose=False)
    torch._dynamo.reset()
    fabric = library.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = Net()
    compiled = compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped, optimizer = fabric.setup(compiled, optimizer)
    assert wrapped.module is model
    assert isinstance(wrapped._forward_module, OptimizedModule)
    assert wrapped._forward_module._orig_mod is model
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = wrapped(torch.randn(3, 4)).square().mean()
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss)
    return {"losses": losses, "model": wrapped.state_dict(), "wrapped": library.is_wrapped(wrapped)}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_training_a_compiled_model(precision: str, backend: str, frozen: Frozen) -> None:
    def compile(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend)

    their, our = (train(library, precision, compile) for library in LIBRARIES)
    assert frozen(our) == frozen(their)


def test_it_is_compiled_as_often_and_with_the_same_settings() -> None:
    calls: dict[str, list[Any]] = {}
    for library in LIBRARIES:
        seen = calls.setdefault(library.__name__, [])

        def backend(graph: torch.fx.GraphModule, inputs: Any, seen: list[Any] = seen, **options: Any) -> Any:
            seen.append((sorted(node.op for node in graph.graph.nodes), options))
            return graph.forward

        train(
            library,
            "32-true",
            lambda model, backend=backend: torch.compile(
                model, backend=backend, fullgraph=True, dynamic=False, options={"some": "option"}
            ),
        )
    first, second = calls.values()
    assert second == first
    assert len(first) == 1
    assert first[0][1] == {"options": {"some": "option"}}


def test_without_putting_it_back_on(frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(2, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        compiled = torch.compile(Net(), backend="eager")
        wrapped = fabric.setup(compiled, _reapply_compile=False)
        assert wrapped._original_module is compiled  # Lightning's `wrapped.module` raises here
        assert wrapped._forward_module is compiled
        results.append([wrapped(torch.ones(1, 4)), wrapped.state_dict()])
    assert frozen(results[0]) == frozen(results[1])


@pytest.mark.parametrize("method", ["setup", "setup_module"])
def test_compiling_what_was_set_up(method: str, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        library.seed_everything(2, verbose=False)
        torch._dynamo.reset()
        fabric = library.Fabric(accelerator="cpu", devices=1)
        model = torch.compile(getattr(fabric, method)(Net()), backend="eager")
        with fabric.no_backward_sync(model):
            output = model(torch.ones(1, 4))
            fabric.backward(output.sum())
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([output, gradients, library.is_wrapped(model)])
    assert frozen(results[0]) == frozen(results[1])
    assert results[1][2]


def test_checkpoints_of_compiled_models(tmp_path: Path, frozen: Frozen) -> None:
    files = []
    for library in LIBRARIES:
        library.seed_everything(2, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        state = {
            "inside": fabric.setup(torch.compile(Net(), backend="eager")),
            "outside": torch.compile(fabric.setup(Net()), backend="eager"),
        }
        path = tmp_path / f"{library.__name__}.ckpt"
        fabric.save(path, state)
        files.append(torch.load(path))
        for parameter in (*state["inside"].parameters(), *state["outside"].parameters()):
            parameter.data.zero_()
        assert fabric.load(path, state) == {}
        assert frozen(state["inside"].state_dict()) == frozen(files[-1]["inside"])
        assert frozen(state["outside"]._orig_mod.state_dict()) == frozen(files[-1]["outside"])
    assert frozen(files[0]) == frozen(files[1])


def test_a_compiled_model_that_was_not_set_up_has_the_keys_that_torch_gives_it(tmp_path: Path, frozen: Frozen) -> None:
    files = []
    for library in LIBRARIES:
        library.seed_everything(2, verbose=False)
        fabric = library.Fabric(accelerator="cpu", devices=1)
        model = torch.compile(Net(), backend="eager")
        fabric.save(tmp_path / library.__name__, {"model": model})
        files.append(torch.load(tmp_path / library.__name__)["model"])
        assert frozen(files[-1]) == frozen(model.state_dict())
    assert frozen(files[0]) == frozen(files[1])
