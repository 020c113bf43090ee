"""The hardware that a process can run on."""

from fabric_lite.accelerators.accelerator import Accelerator
from fabric_lite.accelerators.cpu import CPUAccelerator
from fabric_lite.accelerators.cuda import CUDAAccelerator
from fabric_lite.accelerators.mps import MPSAccelerator
from fabric_lite.accelerators.registry import _AcceleratorRegistry

ACCELERATOR_REGISTRY = _AcceleratorRegistry()
for _kind in (CPUAccelerator, CUDAAccelerator, MPSAccelerator):
    _kind.register_accelerators(ACCELERATOR_REGISTRY)

__all__ = ["ACCELERATOR_REGISTRY", "Accelerator", "CPUAccelerator", "CUDAAccelerator", "MPSAccelerator"]
