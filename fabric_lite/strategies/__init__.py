"""How work is spread over devices and processes."""

from fabric_lite.strategies.parallel import ParallelStrategy
from fabric_lite.strategies.registry import _StrategyRegistry
from fabric_lite.strategies.single_device import SingleDeviceStrategy
from fabric_lite.strategies.strategy import Strategy

STRATEGY_REGISTRY = _StrategyRegistry()

__all__ = ["STRATEGY_REGISTRY", "ParallelStrategy", "SingleDeviceStrategy", "Strategy"]
