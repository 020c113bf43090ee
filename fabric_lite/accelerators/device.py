"""Any device that `torch.accelerator` knows: CUDA, MPS, XPU and what other packages bring along."""

from __future__ import annotations

from typing import ClassVar

import torch
from typing_extensions import override

from fabric_lite.accelerators.accelerator import Accelerator
from fabric_lite.utilities.exceptions import MisconfigurationException


class DeviceAccelerator(Accelerator):
    """Runs on the accelerator of this machine, as `torch.accelerator` reports it.

    A subclass names the `device_type`. `for_type` makes one for a type that has no class of its own.
    """

    device_type: ClassVar[str]

    @staticmethod
    def for_type(device_type: str) -> type[DeviceAccelerator]:
        """Make the accelerator class of a device type.

        Args:
            device_type: As in `torch.device.type`, such as ``"xpu"``.
        """
        namespace = {"device_type": device_type, "__reduce__": lambda self: (_of_type, (self.device_type,))}
        return type(f"{device_type.upper()}Accelerator", (DeviceAccelerator,), namespace)

    @override
    def setup_device(self, device: torch.device) -> None:
        if device.type != self.device_type:
            raise ValueError(
                f"`{type(self).__name__}` was given the device {device}. Pass `torch.device({self.device_type!r})`."
            )
        if device.index is not None:
            torch.accelerator.set_device_index(device.index)

    @override
    def teardown(self) -> None:
        if self.is_available():
            torch.get_device_module(self.device_type).empty_cache()

    @classmethod
    @override
    def parse_devices(cls, devices: int | str | list[int] | tuple[int, ...]) -> list[int]:
        """Turn what a user may write into device indices.

        Args:
            devices: A number of devices, ``-1`` or ``"-1"`` for all, a list of indices, or ``"0,2"``.

        Returns:
            The indices.

        Raises:
            TypeError: If it is none of these.
            MisconfigurationException: If a device is named twice, or is not there.
        """
        wanted = _indices(devices)
        there = list(range(cls.auto_device_count()))
        if isinstance(wanted, int):
            wanted = there if wanted == -1 else list(range(wanted))
        if len(set(wanted)) != len(wanted):
            raise MisconfigurationException(f"`devices={devices!r}` names a device twice. Name each one once.")
        missing = [index for index in wanted if index not in there]
        if missing or not wanted:
            raise MisconfigurationException(
                f"`devices={devices!r}` asks for the {cls.device_type} devices {wanted}, but this machine has {there}."
                " Choose among those, or `devices='auto'`."
            )
        return wanted

    @classmethod
    @override
    def get_parallel_devices(cls, devices: list[int]) -> list[torch.device]:
        return [torch.device(cls.device_type, index) for index in devices]

    @classmethod
    @override
    def auto_device_count(cls) -> int:
        return torch.accelerator.device_count() if cls.is_available() else 0

    @classmethod
    @override
    def is_available(cls) -> bool:
        current = torch.accelerator.current_accelerator(check_available=True)
        return current is not None and current.type == cls.device_type

    @classmethod
    @override
    def name(cls) -> str:
        return cls.device_type


def _of_type(device_type: str) -> DeviceAccelerator:
    """An accelerator whose class was made by `for_type`, out of a pickle."""
    return DeviceAccelerator.for_type(device_type)()


def _indices(devices: object) -> int | list[int]:
    """A number of devices (-1: all) or a list of indices."""
    if isinstance(devices, str):
        parts = [part.strip() for part in devices.split(",") if part.strip()]
        if parts and all(part.removeprefix("-").isdecimal() for part in parts):
            return int(parts[0]) if "," not in devices else [int(part) for part in parts]
    elif type(devices) is int:  # a bool is an int, but not a number of devices
        return devices
    elif isinstance(devices, (list, tuple)) and all(type(index) is int for index in devices):
        return list(devices)
    raise TypeError(
        f"`devices={devices!r}` is neither a number of devices, nor a list of device indices such as `[0, 1]` or"
        " `'0,1'`, nor `-1` for all of them."
    )
