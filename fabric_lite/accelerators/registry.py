"""The accelerators that `Fabric` knows by name."""

from __future__ import annotations

from fabric_lite.utilities.registry import _Registry


class _AcceleratorRegistry(_Registry):
    """Accelerator classes by name."""

    def available_accelerators(self) -> set[str]:
        """The names that are registered."""
        return set(self)
