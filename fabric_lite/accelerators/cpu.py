"""The CPU: as many processes as one asks for, all on one device."""

from __future__ import annotations

import torch
from typing_extensions import override

from fabric_lite.accelerators.accelerator import Accelerator


class CPUAccelerator(Accelerator):
    """Runs on the CPU."""

    @override
    def setup_device(self, device: torch.device) -> None:
        if device.type != "cpu":
            raise ValueError(f"`CPUAccelerator` was given the device {device}. Pass `torch.device('cpu')`.")

    @override
    def teardown(self) -> None:
        pass

    @staticmethod
    @override
    def parse_devices(devices: int | str | list[int]) -> int:
        """Check the number of processes.

        Args:
            devices: A positive number, or one written as a string.

        Returns:
            The number.

        Raises:
            TypeError: If it is anything else.
        """
        number = int(devices) if isinstance(devices, str) and devices.strip().isdecimal() else devices
        if not isinstance(number, int) or number <= 0:
            raise TypeError(
                f"`Fabric(accelerator='cpu', devices={devices!r})`: on the CPU, `devices` is the number of processes,"
                " an integer above 0."
            )
        return number

    @staticmethod
    @override
    def get_parallel_devices(devices: int | str | list[int]) -> list[torch.device]:
        return [torch.device("cpu")] * CPUAccelerator.parse_devices(devices)

    @staticmethod
    @override
    def auto_device_count() -> int:
        return 1

    @staticmethod
    @override
    def is_available() -> bool:
        return True

    @staticmethod
    @override
    def name() -> str:
        return "cpu"
