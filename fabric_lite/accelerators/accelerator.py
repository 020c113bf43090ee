"""What every kind of hardware answers: which devices it has, and how to make one ready."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from fabric_lite.accelerators.registry import _AcceleratorRegistry


class Accelerator(ABC):
    """One kind of hardware. Subclass it to teach `Fabric` another one."""

    @abstractmethod
    def setup_device(self, device: torch.device) -> None:
        """Make a device the current one of this process.

        Args:
            device: The device.
        """

    @abstractmethod
    def teardown(self) -> None:
        """Give back what `setup_device` took."""

    @staticmethod
    @abstractmethod
    def parse_devices(devices: Any) -> Any:
        """Check the ``devices`` argument of `Fabric`.

        Args:
            devices: As the user gave it.

        Returns:
            A number of devices, or a list of their indices.
        """

    @staticmethod
    @abstractmethod
    def get_parallel_devices(devices: Any) -> Any:
        """Name the devices.

        Args:
            devices: What `parse_devices` returned.

        Returns:
            A list of `torch.device`, one for each process on this machine.
        """

    @staticmethod
    @abstractmethod
    def auto_device_count() -> int:
        """How many devices ``devices="auto"`` means."""

    @staticmethod
    @abstractmethod
    def is_available() -> bool:
        """Whether this machine has the hardware."""

    @staticmethod
    @abstractmethod
    def name() -> str:
        """Its name in ``Fabric(accelerator=...)``."""

    @classmethod
    def register_accelerators(cls, accelerator_registry: _AcceleratorRegistry) -> None:
        """Add this class to a registry under its name.

        Args:
            accelerator_registry: The registry.
        """
        accelerator_registry.register(cls.name(), cls, description=cls.__name__)
