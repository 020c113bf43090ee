"""The strategies that `Fabric` knows by name."""

from __future__ import annotations

from fabric_lite.utilities.registry import _Registry


class _StrategyRegistry(_Registry):
    """Strategy classes, and the arguments to make them with, by name."""

    def available_strategies(self) -> list[str]:
        """The names that are registered."""
        return list(self)
