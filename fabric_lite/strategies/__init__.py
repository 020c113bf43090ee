"""How work is spread over devices and processes."""

from fabric_lite.strategies.ddp import DDPStrategy
from fabric_lite.strategies.fsdp import FSDPStrategy
from fabric_lite.strategies.model_parallel import ModelParallelStrategy
from fabric_lite.strategies.parallel import ParallelStrategy
from fabric_lite.strategies.registry import _StrategyRegistry
from fabric_lite.strategies.single_device import SingleDeviceStrategy
from fabric_lite.strategies.strategy import Strategy

STRATEGY_REGISTRY = _StrategyRegistry()
DDPStrategy.register_strategies(STRATEGY_REGISTRY)
FSDPStrategy.register_strategies(STRATEGY_REGISTRY)

__all__ = [
    "STRATEGY_REGISTRY",
    "DDPStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "Strategy",
]
