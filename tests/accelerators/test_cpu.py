"""The CPU: devices are a number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.accelerators import ACCELERATOR_REGISTRY, Accelerator, CPUAccelerator


@pytest.mark.parametrize(("devices", "number"), [(1, 1), (4, 4), ("1", 1), ("3", 3), (" 2 ", 2)])
def test_devices(devices: Any, number: int) -> None:
    assert CPUAccelerator.parse_devices(devices) == number
    assert CPUAccelerator.get_parallel_devices(devices) == [torch.device("cpu")] * number


@pytest.mark.parametrize("devices", [0, -1, "0", "-1", "", "one", "0,1", 1.5, [0], [0, 1], [], None, (1,), "²"])
def test_everything_else_is_refused_with_its_value(devices: Any) -> None:
    with pytest.raises(TypeError) as error:
        CPUAccelerator.parse_devices(devices)
    assert f"`Fabric(accelerator='cpu', devices={devices!r})`" in str(error.value)
    assert "the number of processes, an integer above 0" in str(error.value)


@pytest.mark.parametrize("devices", [-1, [0], "0,1", "one"])
def test_the_fabric_passes_the_error_on(devices: Any) -> None:
    with pytest.raises(TypeError, match="an integer above 0"):
        Fabric(accelerator="cpu", devices=devices)


def test_what_it_says_of_itself() -> None:
    assert (CPUAccelerator.name(), CPUAccelerator.auto_device_count(), CPUAccelerator.is_available()) == (
        "cpu",
        1,
        True,
    )
    assert CPUAccelerator().teardown() is None


def test_another_device_is_refused() -> None:
    accelerator = CPUAccelerator()
    accelerator.setup_device(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"`CPUAccelerator` was given the device cuda:1. Pass `torch.device\('cpu'\)`"):
        accelerator.setup_device(torch.device("cuda", 1))


def test_it_is_registered() -> None:
    assert ACCELERATOR_REGISTRY.available_accelerators() >= {"cpu", "cuda", "mps"}
    assert isinstance(ACCELERATOR_REGISTRY.get("cpu"), CPUAccelerator)


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Accelerator()  # type: ignore[abstract]
