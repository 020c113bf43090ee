"""NVIDIA GPUs."""

from __future__ import annotations

from fabric_lite.accelerators.device import DeviceAccelerator


class CUDAAccelerator(DeviceAccelerator):
    """Runs on NVIDIA GPUs, and on those of AMD, which torch calls ``cuda``, too."""

    device_type = "cuda"
