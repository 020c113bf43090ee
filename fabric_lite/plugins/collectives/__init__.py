"""Processes that speak to each other, without a strategy."""

from fabric_lite.plugins.collectives.collective import Collective
from fabric_lite.plugins.collectives.single_device import SingleDeviceCollective
from fabric_lite.plugins.collectives.torch_collective import TorchCollective

__all__ = ["Collective", "SingleDeviceCollective", "TorchCollective"]
