"""GPUs of Apple silicon."""

from __future__ import annotations

from fabric_lite.accelerators.device import DeviceAccelerator


class MPSAccelerator(DeviceAccelerator):
    """Runs on the GPU of Apple silicon."""

    device_type = "mps"
