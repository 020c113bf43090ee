"""A strategy that wraps modules on one process, and what tells whether a module was left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fabric_lite.strategies import SingleDeviceStrategy


class Wrapper(nn.Module):
    """Does around a module what DistributedDataParallel does: its forward has to be called, or it misses out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():  # a number that changes would have it compiled again and again
            self.calls += 1
        return self.module(*args, **kwargs)


class WrappingStrategy(SingleDeviceStrategy):
    """Wraps each module, as strategies of several processes do."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        return Wrapper(module)

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        return super().get_module_state_dict(module.module if isinstance(module, Wrapper) else module)


def describe(value: Any) -> Any:
    """Which object it is, and what conversions in place change about it."""
    if isinstance(value, dict):
        return {key: describe(each) for key, each in value.items()}
    if isinstance(value, Tensor):
        return id(value), value.dtype, value.device, describe(value._backward_hooks or {})
    return id(value)


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Everything that a module and those in it hold: attributes, parameters, hooks."""
    return {name: describe(vars(each)) for name, each in module.named_modules()}


@pytest.fixture(scope="session")
def wrapping() -> type[WrappingStrategy]:
    return WrappingStrategy


@pytest.fixture(scope="session")
def snapshot() -> Callable[[nn.Module], dict[str, Any]]:
    return describe_module


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
