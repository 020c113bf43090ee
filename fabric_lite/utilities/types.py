"""Type aliases and structural types that the whole package shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

UntypedStorage: TypeAlias = torch.UntypedStorage

_PATH: TypeAlias = str | Path
_DEVICE: TypeAlias = torch.device | str | int
_MAP_LOCATION_TYPE: TypeAlias = (
    _DEVICE | Callable[[UntypedStorage, str], UntypedStorage | None] | dict[_DEVICE, _DEVICE] | None
)
_PARAMETERS: TypeAlias = Iterator[torch.nn.Parameter]

if torch.distributed.is_available():
    from torch.distributed import ProcessGroup as ProcessGroup
    from torch.distributed import ReduceOp as ReduceOp

    RedOpType: TypeAlias = ReduceOp.RedOpType
else:  # a torch that was built without distributed: the names must exist for annotations and isinstance checks
    ProcessGroup = Any  # type: ignore[assignment,misc]
    ReduceOp = RedOpType = object  # type: ignore[assignment,misc]

_DictKey = TypeVar("_DictKey")


@runtime_checkable
class _Stateful(Protocol[_DictKey]):
    """Anything whose state can be taken out and put back: modules, optimizers, samplers, callbacks."""

    def state_dict(self) -> dict[_DictKey, Any]:
        """The state, by name."""

    def load_state_dict(self, state_dict: dict[_DictKey, Any]) -> None:
        """Take over a state."""


@runtime_checkable
class CollectibleGroup(Protocol):
    """A process group, as far as collectives need to know it."""

    def size(self) -> int:
        """How many processes there are in the group."""

    def rank(self) -> int:
        """Which of them this one is."""


@runtime_checkable
class Steppable(Protocol):
    """Anything with the ``step`` of an optimizer."""

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = ...) -> float | None:
        """Update the parameters once."""


@runtime_checkable
class Optimizable(Steppable, Protocol):
    """Anything that looks like a ``torch.optim.Optimizer``."""

    param_groups: list[dict[Any, Any]]
    defaults: dict[Any, Any]
    state: defaultdict[Tensor, Any]

    def state_dict(self) -> dict[str, dict[Any, Any]]:
        """The state, by name."""

    def load_state_dict(self, state_dict: dict[str, dict[Any, Any]]) -> None:
        """Take over a state."""
