"""What some strategies can do beyond the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


class _BackwardSyncControl(ABC):
    """For a strategy that can leave the synchronization of gradients out."""

    @abstractmethod
    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Under it, gradients of the module are not synchronized.

        Args:
            module: The module, as `Strategy.setup_module` returned it.
            enabled: Whether to leave the synchronization out.
        """


class _Sharded(ABC):
    """For a strategy that spreads the parameters of one module over processes."""

    @abstractmethod
    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Under it, new modules are made so that they can be sharded."""
