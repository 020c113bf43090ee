"""`torch.compile` before and after setting up: with the same settings, without graph breaks, without patching torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import tqdm
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from fabric_lite import Fabric, is_wrapped

PRECISIONS = ["32-true", "64-true", "16-true", "bf16-true", "bf16-mixed"]

# The compiler itself makes an instance of any `autograd.Function` that it traces, and torch warns that nobody should.
# Importing inductor uses what torch itself has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # the compiler's progress bar starts a thread that stays
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def x() -> Tensor:
    return torch.ones(3, 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.text = "text"

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.layer(x)))

    def training_step(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self(x).square().sum()}

    def double_of(self, x: Tensor) -> Tensor:
        return 2 * self(x)


class Broken(Net):
    """One graph break of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        torch._dynamo.graph_break()
        return torch.relu(x)


class ByHand(nn.Module):
    """What a user writes around a module for mixed precision in plain torch."""

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            return self.module(x)


class Backend:
    """Takes note of what it compiles, and runs it as it is."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        self.compiled.append((graph, options))
        return graph.forward


def fabric(precision: str = "32-true", strategy: Any = None) -> Fabric:
    kwargs = {} if strategy is None else {"strategy": strategy}
    return Fabric(accelerator="cpu", devices=1, precision=precision, **kwargs)  # type: ignore[arg-type]


def one_inductor_thread() -> Any:
    """More threads would be there after the test, too."""
    from torch._inductor import config

    return config.patch(compile_threads=1)


# -- before setting up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_very_same_object_where_the_strategy_does_not_wrap(precision: str, x: Tensor) -> None:
    net = Net()
    compiled = torch.compile(net, backend="eager")
    model = fabric(precision).setup(compiled)
    assert model._forward_module is compiled
    assert model.module is net
    assert list(model.state_dict()) == list(net.state_dict())
    assert model.text == "text"
    assert model(x).dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_anew_around_what_the_strategy_makes(precision: str, wrapping: Any, x: Tensor) -> None:
    backend, net = Backend(), Net()
    compiled = torch.compile(net, backend=backend)
    model = fabric(precision, wrapping()).setup(compiled)
    outer = model._forward_module
    assert isinstance(outer, OptimizedModule)
    assert type(outer._orig_mod).__name__ == "Wrapper"
    assert outer._orig_mod.module is net
    assert model.module is net
    model(x)
    assert len(backend.compiled) == 1
    assert list(model.state_dict()) == list(net.state_dict())


SETTINGS: list[dict[str, Any]] = [
    {"fullgraph": True},
    {"dynamic": True},
    {"dynamic": False},
    {"options": {"some": "option"}},
    {"fullgraph": True, "dynamic": True, "options": {"a": 1, "b": "two"}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("how", ["plain", "wrapping"])
def test_with_the_same_settings(how: str, settings: dict[str, Any], wrapping: Any) -> None:
    graphs = []
    for set_up in (False, True):
        torch._dynamo.reset()
        backend = Backend()
        model: Any = torch.compile(Net(), backend=backend, **settings)
        if set_up:
            model = fabric(strategy=wrapping() if how == "wrapping" else None).setup(model)
        for size in (3, 4, 5):
            model(torch.ones(size, 2))
        graphs.append([(len(graph.graph.nodes), options) for graph, options in backend.compiled])
    assert graphs[1] == graphs[0]
    assert graphs[0][0][1] == ({"options": settings["options"]} if "options" in settings else {})
    assert len(graphs[0]) == {True: 1, False: 3, None: 2}[settings.get("dynamic")]


@pytest.mark.parametrize("how", ["plain", "wrapping"])
def test_fullgraph_stays_a_promise(how: str, wrapping: Any, x: Tensor) -> None:
    compiled = torch.compile(Broken(), backend="eager", fullgraph=True)
    model = fabric(strategy=wrapping() if how == "wrapping" else None).setup(compiled)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        model(x)


def test_a_mode_of_inductor_is_kept(wrapping: Any) -> None:
    compiled: Any = torch.compile(Net(), mode="max-autotune-no-cudagraphs")
    outer = fabric(strategy=wrapping()).setup(compiled)._forward_module
    assert outer is not compiled
    assert outer.get_compiler_config() == compiled.get_compiler_config()
    assert outer.get_compiler_config()["max_autotune"]


def test_not_put_back_on_where_the_user_says_so(wrapping: Any, x: Tensor) -> None:
    net = Net()
    compiled: Any = torch.compile(net, backend="eager")
    alone = fabric().setup(compiled, _reapply_compile=False)
    assert alone._forward_module is alone.module is compiled
    inside = fabric(strategy=wrapping()).setup_module(compiled, _reapply_compile=False)
    assert inside._forward_module.module is inside.module is compiled
    assert torch.equal(alone(x), net(x))
    assert torch.equal(inside(x), net(x))


def test_nothing_is_patched(wrapping: Any, x: Tensor) -> None:
    before = torch.compile, OptimizedModule.__init__, OptimizedModule.__call__, nn.Module.compile
    compiled: Any = torch.compile(Net(), backend="eager")
    own = set(vars(compiled))
    fabric(strategy=wrapping()).setup(compiled)(x)
    assert (torch.compile, OptimizedModule.__init__, OptimizedModule.__call__, nn.Module.compile) == before
    assert set(vars(compiled)) == own


def test_a_compiled_part_of_a_module_stays_compiled(x: Tensor) -> None:
    backend, net = Backend(), Net()
    net.layer = torch.compile(net.layer, backend=backend)  # type: ignore[assignment]
    model = fabric("64-true").setup(net)
    assert isinstance(model.layer, OptimizedModule)
    model(x)
    assert len(backend.compiled) == 1


@pytest.mark.parametrize("how", ["plain", "wrapping"])
def test_a_module_that_was_compiled_in_place_stays_compiled(how: str, wrapping: Any, x: Tensor) -> None:
    backend, net = Backend(), Net()
    net.compile(backend=backend)
    model = fabric(strategy=wrapping() if how == "wrapping" else None).setup(net)
    assert torch.allclose(model(x), net.forward(x))
    assert len(backend.compiled) == 1


@pytest.mark.parametrize("method", ["training_step", "double_of"])
@pytest.mark.parametrize("how", ["plain", "wrapping"])
def test_marked_methods_of_a_compiled_module(how: str, method: str, wrapping: Any, x: Tensor) -> None:
    net = Net()
    expected = [getattr(net, method)(x), net(x)]
    model = fabric(strategy=wrapping() if how == "wrapping" else None).setup(torch.compile(net, backend="eager"))
    model.mark_forward_method(method)
    for _ in range(2):
        torch.testing.assert_close([getattr(model, method)(x), model(x)], expected)
    assert "forward" not in vars(net)


# -- after setting up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("how", ["plain", "wrapping"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_graph_break(precision: str, how: str, grad: bool, wrapping: Any, x: Tensor) -> None:
    model = fabric(precision, wrapping() if how == "wrapping" else None).setup(Net())
    with torch.set_grad_enabled(grad):
        explained = torch._dynamo.explain(model)(x)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


@pytest.mark.parametrize("precision, dtype", [("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_no_graph_break_beyond_those_of_the_module(precision: str, dtype: torch.dtype | None, x: Tensor) -> None:
    with torch.no_grad():
        plain = torch._dynamo.explain(Broken() if dtype is None else ByHand(Broken(), dtype))(x)
        torch._dynamo.reset()
        ours = torch._dynamo.explain(fabric(precision).setup(Broken()))(x)
    assert ours.graph_break_count == plain.graph_break_count > 0, ours.break_reasons
    assert ours.graph_count == plain.graph_count


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_graph_with_the_same_result(precision: str, backend: str, x: Tensor) -> None:
    setting = fabric(precision)
    net = Net()
    model = setting.setup(net)
    results = []
    for each in (model, torch.compile(model, backend=backend, fullgraph=True)):
        net.zero_grad()
        output = each(x)
        setting.backward(output.square().sum())
        results.append([output.detach(), *(p.grad for p in net.parameters())])
    assert results[0][0].dtype == torch.float32
    torch.testing.assert_close(*results)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_is_compiled_twice(precision: str, x: Tensor) -> None:
    setting, backend = fabric(precision), Backend()
    model = torch.compile(setting.setup(Net()), backend=backend, fullgraph=True)
    for _ in range(3):
        setting.backward(model(x).sum())
    assert len(backend.compiled) == 1


def test_compiled_in_place_after_setting_up(x: Tensor) -> None:
    backend, net = Backend(), Net()
    setting = fabric("bf16-mixed")
    model = setting.setup(net)
    expected = model(x)
    model.compile(backend=backend)
    assert torch.equal(model(x), expected)
    assert len(backend.compiled) == 1
    assert net._compiled_call_impl is None  # the module inside is called as ever
    assert net.layer._compiled_call_impl is None


def test_what_was_compiled_after_setting_up_is_recognised(x: Tensor, tmp_path: Any) -> None:
    setting, net = fabric(), Net()
    model = torch.compile(setting.setup(net), backend="eager")
    assert is_wrapped(model)
    setting.save(tmp_path / "file", {"model": model})
    assert list(torch.load(tmp_path / "file")["model"]) == list(net.state_dict())
    with pytest.raises(ValueError, match=r"`fabric.setup\(...\)` got a module that was set up before"):
        setting.setup(model)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_inductor(precision: str, x: Tensor) -> None:
    setting, net = fabric(precision), Net()
    model = setting.setup(net)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True)
    with one_inductor_thread():
        torch.testing.assert_close(compiled(x), expected, atol=1e-2, rtol=1e-2)
        setting.backward(compiled(x).sum())
    assert net.layer.weight.grad is not None
