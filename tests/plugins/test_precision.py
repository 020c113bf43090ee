"""Which numbers a module sees, what comes out, and that nothing of it outlives the block it was asked for."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fabric_lite import Fabric
from fabric_lite.plugins import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TransformerEnginePrecision,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# name: class, data type of the parameters, of the inputs in the forward (None: as they come), of the arithmetic
TABLE: dict[str, tuple[type[Precision], torch.dtype, torch.dtype | None, torch.dtype]] = {
    "32-true": (Precision, F32, None, F32),
    "64-true": (DoublePrecision, F64, F64, F64),
    "16-true": (HalfPrecision, F16, F16, F16),
    "bf16-true": (HalfPrecision, BF16, BF16, BF16),
    "bf16-mixed": (MixedPrecision, F32, BF16, BF16),
}
TRUE = [name for name in TABLE if name != "32-true" and name.endswith("true")]
Pair = namedtuple("Pair", "first second")


@dataclass
class Batch:
    x: Tensor
    name: str


class Recorder(nn.Module):
    """Takes anything, and writes down what its forward sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.long))
        self.seen: Any = None
        self.default: torch.dtype | None = None
        self.autocast: torch.dtype | None = None

    def forward(self, data: Any, **kwargs: Any) -> Any:
        self.seen = kwargs or data
        self.default = torch.get_default_dtype()
        self.autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return self.layer(data) if isinstance(data, Tensor) and data.is_floating_point() else data


def make(precision: Any) -> tuple[Fabric, Any]:
    fabric = Fabric(accelerator="cpu", precision=precision)
    return fabric, fabric.setup(Recorder())


@pytest.mark.parametrize("name", TABLE)
def test_name_class_and_data_types(name: str) -> None:
    kind, parameters, inputs, compute = TABLE[name]
    fabric, model = make(name)
    output = model(torch.ones(4, 3))
    assert type(fabric._precision) is kind
    assert fabric._precision.precision == name
    assert fabric._connector._precision_input == name
    assert fabric._precision.compute_dtype == compute
    assert {p.dtype for p in model.parameters()} == {parameters}
    assert model.steps.dtype is torch.long
    assert model.seen.dtype is (inputs or F32)
    assert model.module.layer(model.seen.to(parameters)).dtype is parameters
    assert output.dtype is F32
    assert torch.get_default_dtype() is F32


@pytest.mark.parametrize(
    ("alias", "name"),
    [(None, "32-true"), (32, "32-true"), ("32", "32-true"), (64, "64-true"), ("64", "64-true")],
)
def test_aliases_without_a_warning(alias: Any, name: str) -> None:
    fabric = Fabric(accelerator="cpu", precision=alias)
    assert (fabric._precision.precision, type(fabric._precision)) == (name, TABLE[name][0])


def test_the_alias_of_bf16_says_what_it_stands_for() -> None:
    with pytest.warns(UserWarning, match=r"`precision='bf16'` does not say .* Write `precision='bf16-mixed'`"):
        fabric = Fabric(accelerator="cpu", precision="bf16")
    assert fabric._precision.precision == "bf16-mixed"


@pytest.mark.parametrize("alias", [16, "16"])
def test_the_alias_of_16_on_a_cpu_runs_as_bf16(alias: Any) -> None:
    with pytest.warns(UserWarning, match="bf16-mixed|16-mixed") as warned:
        fabric = Fabric(accelerator="cpu", precision=alias)
    first, second = (str(warning.message) for warning in warned)
    assert f"`precision={alias!r}` does not say how 16 bits are used. Write `precision='16-mixed'`" in first
    assert "runs as 'bf16-mixed'" in second
    assert fabric._precision.precision == "bf16-mixed"
    assert fabric._precision.scaler is None


@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed"])
def test_autocast_is_active_inside_the_forward_only(name: Any) -> None:
    fabric = Fabric(accelerator="cpu", plugins=MixedPrecision(name, device="cpu"))
    model = fabric.setup(Recorder())
    output = model(torch.ones(4, 3))
    assert model.autocast is fabric._precision.compute_dtype
    assert output.dtype is F32
    assert not torch.is_autocast_enabled("cpu")
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is fabric._precision.compute_dtype
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", TRUE)
def test_the_forward_and_autocast_run_under_the_default_data_type(name: str) -> None:
    fabric, model = make(name)
    model(torch.ones(1, 3))
    assert (model.default, model.autocast) == (TABLE[name][1], None)
    with fabric.autocast():
        assert torch.ones(1).dtype is TABLE[name][1]
    assert torch.ones(1).dtype is F32


def test_full_precision_changes_nothing() -> None:
    fabric, model = make("32-true")
    double = torch.ones(2, dtype=F64)
    model([double])
    assert model.seen[0] is double
    assert (model.default, model.autocast) == (F32, None)
    with fabric.autocast():
        assert torch.ones(1).dtype is F32
    assert fabric._precision.state_dict() == {}
    assert not fabric._precision.requires_fabric_backward


@pytest.mark.parametrize("name", [*TRUE, "bf16-mixed"])
def test_nested_inputs_are_converted_and_everything_else_is_not(name: str) -> None:
    _, model = make(name)
    data = {
        "pair": Pair(torch.ones(1), [torch.ones(1, dtype=F64)]),
        "ids": torch.arange(3),
        "mask": torch.tensor([True, False]),
        "bytes": torch.ones(2, dtype=torch.uint8),
        "complex": torch.ones(2, dtype=torch.complex64),
        "batch": Batch(torch.ones(2), "a"),
        "text": "abc",
        "none": None,
        "number": 1.5,
    }
    output = model(data)
    for found, dtype in ((model.seen, TABLE[name][2]), (output, F32)):
        assert isinstance(found["pair"], Pair)
        assert found["pair"].first.dtype is found["pair"].second[0].dtype is found["batch"].x.dtype is dtype
        assert found["ids"].dtype is torch.int64
        assert found["mask"].dtype is torch.bool
        assert found["bytes"].dtype is torch.uint8
        assert found["complex"].dtype is torch.complex64
        assert (found["text"], found["none"], found["number"], found["batch"].name) == ("abc", None, 1.5, "a")
    assert data["pair"].first.dtype is F32
    assert data["batch"].x.dtype is F32


@pytest.mark.parametrize("name", [*TRUE, "bf16-mixed"])
def test_keyword_arguments_are_converted(name: str) -> None:
    _, model = make(name)
    model(torch.arange(3), extra=[torch.ones(1)], index=torch.arange(2))
    assert model.seen["extra"][0].dtype is TABLE[name][2]
    assert model.seen["index"].dtype is torch.int64


def test_outputs_have_the_data_type_that_is_torchs_default() -> None:
    _, model = make("bf16-true")
    torch.set_default_dtype(F64)
    assert model(torch.ones(1, 3)).dtype is F64


def test_gradients_flow_through_the_conversions() -> None:
    for name in TABLE:
        fabric, model = make(name)
        x = torch.ones(2, 3, requires_grad=True)
        fabric.backward(model(x).sum())
        assert x.grad is not None
        assert x.grad.dtype is F32
        assert {p.grad.dtype for p in model.parameters()} == {TABLE[name][1]}


class TestInit:
    @pytest.mark.parametrize("name", TABLE)
    def test_tensors(self, name: str) -> None:
        fabric = Fabric(accelerator="cpu", precision=name)
        with fabric.init_tensor():
            x, ids = torch.ones(2), torch.arange(2)
        # mixed precision keeps parameters, and what is made beside them, in 32 bits
        assert (x.dtype, x.device.type) == (TABLE[name][1], "cpu")
        assert ids.dtype is torch.int64

    @pytest.mark.parametrize("empty", [None, False, True])
    @pytest.mark.parametrize("name", TABLE)
    def test_modules(self, name: str, empty: bool | None) -> None:
        fabric = Fabric(accelerator="cpu", precision=name)
        with fabric.init_module(empty_init=empty):
            module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        assert {p.dtype for p in module.parameters()} == {TABLE[name][1]}
        assert {p.device.type for p in module.parameters()} == {"cpu"}

    def test_an_empty_module_is_not_initialised(self) -> None:
        fabric = Fabric(accelerator="cpu")
        for empty in (True, False):
            before = torch.get_rng_state()
            with fabric.init_module(empty_init=empty):
                nn.Linear(50, 50)
            assert torch.equal(before, torch.get_rng_state()) is empty

    def test_they_are_made_on_the_device_of_the_run(self) -> None:
        from fabric_lite.strategies import SingleDeviceStrategy

        fabric = Fabric(accelerator="cpu", strategy=SingleDeviceStrategy("meta"))
        with fabric.init_module():
            module = nn.Linear(2, 2)
        with fabric.init_tensor():
            tensor = torch.ones(2)
        assert module.weight.device.type == tensor.device.type == "meta"
        assert torch.ones(1).device.type == "cpu"

    @pytest.mark.parametrize("kind", ["init_module", "init_tensor", "autocast"])
    @pytest.mark.parametrize("name", ["64-true", "bf16-mixed"])
    def test_asking_for_the_context_does_not_enter_it(self, name: str, kind: str) -> None:
        fabric = Fabric(accelerator="cpu", precision=name)
        context = getattr(fabric, kind)()
        try:
            assert torch.get_default_dtype() is F32
            assert not torch.is_autocast_enabled("cpu")
        finally:
            with context:
                pass


def contexts(fabric: Fabric) -> dict[str, AbstractContextManager[Any]]:
    return {
        "autocast": fabric.autocast(),
        "tensor": fabric._precision.tensor_init_context(),
        "module": fabric._precision.module_init_context(),
        "forward": fabric._precision.forward_context(),
    }


@pytest.mark.parametrize("kind", ["autocast", "tensor", "module", "forward"])
@pytest.mark.parametrize("name", TABLE)
class TestNothingIsLeftBehind:
    def test_after_an_exception(self, name: str, kind: str) -> None:
        fabric = Fabric(accelerator="cpu", precision=name)
        with pytest.raises(KeyError), contexts(fabric)[kind]:
            raise KeyError
        assert torch.get_default_dtype() is F32
        assert not torch.is_autocast_enabled("cpu")

    def test_nested_and_one_inside_the_other(self, name: str, kind: str) -> None:
        outer, inner = Fabric(accelerator="cpu", precision=name), Fabric(accelerator="cpu", precision="64-true")
        with contexts(outer)[kind]:
            default = torch.get_default_dtype()
            with inner.autocast():
                with contexts(outer)[kind]:
                    assert torch.get_default_dtype() is (default if name in TRUE else F64)
                assert torch.get_default_dtype() is F64
            assert torch.get_default_dtype() is default
        assert torch.get_default_dtype() is F32
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", [*TRUE, "bf16-mixed"])
def test_a_forward_that_raises_leaves_nothing_behind(name: str) -> None:
    _, model = make(name)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.ones(4, 5))
    assert torch.get_default_dtype() is F32
    assert not torch.is_autocast_enabled("cpu")


class TestErrors:
    @pytest.mark.parametrize("precision", ["8-true", "", "32-True", 8, 16.0, 1.5, "transformer"])
    def test_an_unknown_name(self, precision: Any) -> None:
        with pytest.raises(ValueError, match=f"`Fabric\\(precision={precision!r}\\)`: choose one of.*'bf16-mixed'"):
            Fabric(accelerator="cpu", precision=precision)

    @pytest.mark.parametrize("name", ["transformer-engine", "transformer-engine-float16"])
    def test_transformer_engine_says_what_to_install(self, name: Any) -> None:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'transformer_engine\[pytorch\]'.*'bf16-mixed'"):
            Fabric(accelerator="cpu", precision=name)
        with pytest.raises(ModuleNotFoundError, match="NVIDIA's Transformer Engine"):
            TransformerEnginePrecision(weights_dtype=BF16)

    def test_half_precision_of_another_name(self) -> None:
        with pytest.raises(ValueError, match=r"HalfPrecision\(precision='16-mixed'\).*'16-true' or 'bf16-true'"):
            HalfPrecision("16-mixed")  # type: ignore[arg-type]

    def test_mixed_precision_of_another_name(self) -> None:
        with pytest.raises(ValueError, match=r"MixedPrecision\(precision='16'\).*'16-mixed' or 'bf16-mixed'"):
            MixedPrecision("16", device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("plugin", [Precision(), DoublePrecision(), HalfPrecision(), HalfPrecision("bf16-true")])
def test_they_copy_and_pickle(plugin: Precision) -> None:
    for copied in (copy.deepcopy(plugin), pickle.loads(pickle.dumps(plugin))):
        assert (type(copied), copied.precision) == (type(plugin), plugin.precision)
        assert copied.compute_dtype is plugin.compute_dtype
        with copied.tensor_init_context():
            assert torch.ones(1).dtype is plugin.compute_dtype


def test_a_precision_of_ones_own() -> None:
    class Doubling(Precision):
        """Overrides what it changes, and nothing else."""

        def convert_input(self, data: Any) -> Any:
            (x,), kwargs = data
            return (2 * x,), kwargs

        def forward_context(self) -> AbstractContextManager[Any]:
            return nullcontext()

        def post_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
            self.after = (tensor, module)

    precision = Doubling()
    fabric = Fabric(accelerator="cpu", plugins=[precision])
    model = fabric.setup(nn.Identity())
    x = torch.ones(2, requires_grad=True)
    loss = model(x).sum()
    assert loss == 4
    assert precision.requires_fabric_backward
    with pytest.raises(RuntimeError, match=r"needs `fabric.backward\(loss\)`"):
        loss.backward(retain_graph=True)
    fabric.backward(loss, model=model)
    assert precision.after == (loss, model.module)
