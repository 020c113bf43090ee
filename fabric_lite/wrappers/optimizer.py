"""An optimizer that was set up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from fabric_lite.hooks import Callbacks
from fabric_lite.strategies import Strategy


class _FabricOptimizer:
    """An optimizer whose step goes through the strategy. For everything else it is the optimizer.

    It takes the class of the optimizer on (`isinstance` holds), and each attribute is read from and written to it.

    Args:
        optimizer: The optimizer.
        strategy: Makes the step.
        callbacks: Called ``on_after_optimizer_step`` after each step.
    """

    def __init__(self, optimizer: Optimizer, strategy: Strategy, callbacks: Any = None) -> None:
        shared = callbacks if isinstance(callbacks, Callbacks) else Callbacks(callbacks)
        plain = getattr(type(strategy), "optimizer_step", None) is Strategy.optimizer_step
        self.__dict__.update(_optimizer=optimizer, _strategy=strategy, _callbacks=shared, _plain_strategy=plain)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that was set up."""
        return self._optimizer  # type: ignore[no-any-return]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._optimizer)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters.

        Args:
            closure: Computes the loss again, for optimizers that need it.

        Returns:
            What the optimizer's step returned.
        """
        strategy, optimizer = self._strategy, self._optimizer
        if closure is None:
            # Past two functions that would only hand it on, in every step of most runs.
            plain = self._plain_strategy and strategy.has_plain_precision
            output = optimizer.step() if plain else strategy.optimizer_step(optimizer)
        else:
            output = strategy.optimizer_step(optimizer, closure=closure)
        if self._callbacks.order:
            self._callbacks.dispatch("on_after_optimizer_step", (), {"strategy": strategy, "optimizer": optimizer})
        return output

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer.zero_grad`."""
        self._optimizer.zero_grad(set_to_none)  # found without `__getattr__`: it is part of every step

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer, as the strategy saves it."""
        return self._strategy.get_optimizer_state(self._optimizer)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if "_optimizer" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # A scheduler counts steps by putting its own `step` on the object that it was given: on this one, then.
        if name in self.__dict__ or hasattr(_FabricOptimizer, name):
            self.__dict__[name] = value
        else:
            setattr(self._optimizer, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            del self.__dict__[name]
        else:
            delattr(self._optimizer, name)

    def __repr__(self) -> str:
        return f"Fabric{self._optimizer!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> _FabricOptimizer:
        # Strategy and callbacks belong to the process, unless the Fabric is being copied, too.
        strategy, callbacks = (memo.get(id(part), part) for part in (self._strategy, self._callbacks))
        return _FabricOptimizer(copy.deepcopy(self._optimizer, memo), strategy, callbacks)

    def __reduce__(self) -> tuple[Any, ...]:
        return _FabricOptimizer, (self._optimizer, self._strategy)  # callbacks stay with their process
