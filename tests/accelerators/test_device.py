"""Accelerators that `torch.accelerator` knows. This machine may have none: those tests say that they simulate one."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from fabric_lite.accelerators.device import DeviceAccelerator
from fabric_lite.strategies import DDPStrategy, SingleDeviceStrategy
from fabric_lite.utilities.exceptions import MisconfigurationException

Simulation = list[int]


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch report devices that are not there; returns the list of indices that were made the current one."""

    def start(kind: str, number: int = 4) -> Simulation:
        chosen: Simulation = []
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)
        monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
        return chosen

    return start


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (1, [0]),
        (2, [0, 1]),
        (4, [0, 1, 2, 3]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ("1", [0]),
        ("3", [0, 1, 2]),
        ("3,", [3]),
        ("0,2", [0, 2]),
        (" 2, 1 ", [2, 1]),
        ([3], [3]),
        ([2, 0], [2, 0]),
        ((1, 3), [1, 3]),
    ],
)
def test_devices_of_a_simulated_machine_with_four(simulate: Any, devices: Any, indices: list[int]) -> None:
    simulate("cuda")
    assert CUDAAccelerator.parse_devices(devices) == indices
    assert CUDAAccelerator.get_parallel_devices(indices) == [torch.device("cuda", index) for index in indices]


@pytest.mark.parametrize("devices", [5, [4], [0, 4], "4,", "0,7", -2, "-2", [-1], "1,-1"])
def test_devices_that_a_simulated_machine_has_not(simulate: Any, devices: Any) -> None:
    simulate("cuda")
    with pytest.raises(MisconfigurationException) as error:
        CUDAAccelerator.parse_devices(devices)
    assert f"`devices={devices!r}` asks for the cuda devices" in str(error.value)
    assert "this machine has [0, 1, 2, 3]. Choose among those, or `devices='auto'`" in str(error.value)


@pytest.mark.parametrize("devices", [[0, 0], [1, 2, 1], "0,0"])
def test_devices_that_are_named_twice(simulate: Any, devices: Any) -> None:
    simulate("cuda")
    with pytest.raises(MisconfigurationException) as error:
        CUDAAccelerator.parse_devices(devices)
    assert f"`devices={devices!r}` names a device twice. Name each one once" in str(error.value)


@pytest.mark.parametrize(
    "devices",
    ["", ",", "one", "0;1", "0.5", "--1", "²", 1.0, True, [True], ["0"], [0.0], None, {0}, torch.device("cpu")],
)
def test_devices_of_another_kind(simulate: Any, devices: Any) -> None:
    simulate("cuda")
    with pytest.raises(TypeError) as error:
        CUDAAccelerator.parse_devices(devices)
    assert f"`devices={devices!r}` is neither a number of devices, nor a list of device indices" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("cuda", "auto", CUDAAccelerator),
        ("cuda", "gpu", CUDAAccelerator),
        ("cuda", "cuda", CUDAAccelerator),
        ("mps", "auto", MPSAccelerator),
        ("mps", "gpu", MPSAccelerator),
        ("mps", "mps", MPSAccelerator),
        ("cuda", "cpu", CPUAccelerator),
        ("cuda", CUDAAccelerator(), CUDAAccelerator),
    ],
)
def test_the_accelerator_of_a_simulated_machine(simulate: Any, kind: str, given: Any, expected: type) -> None:
    simulate(kind)
    fabric = Fabric(accelerator=given, devices=1)
    assert type(fabric.accelerator) is expected
    assert fabric.device == torch.device(*([kind, 0] if expected is not CPUAccelerator else ["cpu"]))
    assert isinstance(fabric.strategy, SingleDeviceStrategy)


@pytest.mark.parametrize("given", ["auto", "gpu", "xpu"])
def test_a_simulated_type_that_has_no_class_of_its_own(simulate: Any, given: str) -> None:
    simulate("xpu")
    fabric = Fabric(accelerator=given, devices=[2])
    assert isinstance(fabric.accelerator, DeviceAccelerator)
    assert (fabric.accelerator.name(), type(fabric.accelerator).__name__) == ("xpu", "XPUAccelerator")
    assert fabric.device == torch.device("xpu", 2)


@pytest.mark.parametrize(("devices", "index"), [("auto", 0), (1, 0), ("1", 0), ([3], 3), ("2,", 2)])
def test_the_simulated_device_is_made_the_current_one(simulate: Any, devices: Any, index: int) -> None:
    chosen = simulate("cuda", number=1 if devices == "auto" else 4)
    fabric = Fabric(devices=devices)
    assert chosen == []
    fabric.launch()
    assert (fabric.device, chosen) == (torch.device("cuda", index), [index])


def test_modules_and_data_move_to_a_simulated_device(simulate: Any) -> None:
    chosen = simulate("meta", number=1)  # the one type whose tensors can be made on every machine
    fabric = Fabric()
    model = fabric.setup(torch.nn.Linear(2, 1))
    assert model.weight.device.type == fabric.to_device({"x": torch.ones(1)})["x"].device.type == "meta"
    assert model.device == fabric.device == torch.device("meta", 0)
    assert chosen == [0]


def test_all_devices_of_a_simulated_machine_are_used(simulate: Any) -> None:
    simulate("cuda")
    strategy: Any = Fabric().strategy
    assert type(strategy) is DDPStrategy
    assert strategy.parallel_devices == [torch.device("cuda", index) for index in range(4)]
    assert strategy.root_device == torch.device("cuda", 0)


def test_in_a_notebook_auto_is_one_simulated_device(simulate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate("cuda")
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert Fabric()._connector.parallel_devices == (torch.device("cuda", 0),)


def test_mixed_precision_is_for_the_type_of_the_simulated_device(
    simulate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate("xpu")
    fabric = Fabric(devices=1, precision="bf16-mixed")
    assert fabric._precision.device == "xpu"


@pytest.mark.usefixtures("no_device")
class TestWithoutADevice:
    @pytest.mark.parametrize("name", ["cuda", "mps"])
    def test_the_error_lists_what_is_there(self, name: str) -> None:
        with pytest.raises(RuntimeError) as error:
            Fabric(accelerator=name)
        assert f"`{name.upper()}Accelerator`: this machine has no such device" in str(error.value)
        assert "Choose one of 'cpu', or `accelerator='auto'`" in str(error.value)

    def test_an_instance_is_not_believed_either(self) -> None:
        with pytest.raises(RuntimeError, match="`CUDAAccelerator`: this machine has no such device"):
            Fabric(accelerator=CUDAAccelerator())

    def test_gpu(self) -> None:
        with pytest.raises(RuntimeError, match=r"accelerator='gpu'\)`: torch finds no GPU.*`accelerator='cpu'`"):
            Fabric(accelerator="gpu")

    def test_auto_is_the_cpu(self) -> None:
        fabric = Fabric(accelerator="auto")
        assert (type(fabric.accelerator), fabric.device) == (CPUAccelerator, torch.device("cpu"))

    def test_a_type_that_torch_knows_and_the_machine_has_not(self) -> None:
        with pytest.raises(ValueError, match=r"`Fabric\(accelerator='xpu'\)`: choose one of 'auto', 'gpu', 'cpu'"):
            Fabric(accelerator="xpu")

    def test_there_are_none(self) -> None:
        for kind in (CUDAAccelerator, MPSAccelerator, DeviceAccelerator.for_type("xpu")):
            assert (kind.is_available(), kind.auto_device_count()) == (False, 0)
            assert kind().teardown() is None
            with pytest.raises(MisconfigurationException, match=r"this machine has \[\]"):
                kind.parse_devices(1)


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`CUDAAccelerator` was given the device cpu. Pass `torch.device\('cuda'\)`"):
        CUDAAccelerator().setup_device(torch.device("cpu"))


def test_a_device_without_an_index_is_left_to_torch(simulate: Any) -> None:
    chosen = simulate("cuda")
    CUDAAccelerator().setup_device(torch.device("cuda"))
    assert chosen == []


def test_teardown_empties_the_cache_of_the_simulated_device(simulate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate("xpu")
    emptied: list[str] = []
    module = ModuleType("torch.xpu")
    module.empty_cache = lambda: emptied.append("xpu")  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    DeviceAccelerator.for_type("xpu")().teardown()
    assert emptied == ["xpu"]


def test_each_kind_pickles_as_spawned_processes_need_it() -> None:
    for accelerator in (CUDAAccelerator(), MPSAccelerator(), DeviceAccelerator.for_type("xpu")()):
        copied: Any = pickle.loads(pickle.dumps(accelerator))
        assert (type(copied).__name__, copied.name()) == (type(accelerator).__name__, accelerator.name())
