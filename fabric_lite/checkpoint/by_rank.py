"""State that differs from process to process: random number generators, positions of dataloaders.

`Fabric.save` gathers it from all of them, and `Fabric.load` hands each its own. An object says that its state is of
this kind by an attribute ``differs_by_rank`` that is true.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from fabric_lite.utilities.rank_zero import rank_zero_warn

_KEY = "state of each rank"


class OfEachRank:
    """Stands for an object in the state that is saved and loaded.

    Args:
        obj: The object.
        rank: Index of this process among all.
        world_size: How many there are.
        gather: Collects an object from all of them.
    """

    def __init__(self, obj: Any, rank: int, world_size: int, gather: Callable[[Any], list[Any]]) -> None:
        self.obj = obj
        self.rank = rank
        self.world_size = world_size
        self.gather = gather

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes; of one alone, its own."""
        state: dict[str, Any] = self.obj.state_dict()
        return state if self.world_size == 1 else {_KEY: self.gather(state)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Give the object the state of this process.

        Args:
            saved: From `state_dict`, perhaps with another number of processes: then the object adapts what there is, by
                ``adapt_state(states, world_size)``, or the processes that had none keep what they have.
        """
        states = saved.get(_KEY, [saved])
        if len(states) == self.world_size:
            self.obj.load_state_dict(states[self.rank])
            return
        rank_zero_warn(
            f"The state of `{type(self.obj).__name__}` was saved by {len(states)} processes and is loaded by"
            f" {self.world_size}: the run goes on, but not bit for bit as it would have."
        )
        if hasattr(self.obj, "adapt_state"):
            self.obj.load_state_dict(self.obj.adapt_state(states, self.world_size))
        elif self.rank < len(states):
            self.obj.load_state_dict(states[self.rank])


def of_each_rank(state: Any, rank: int, world_size: int, gather: Callable[[Any], list[Any]]) -> Any:
    """Put `OfEachRank` in the place of the objects whose state differs, in dictionaries, lists and tuples.

    Args:
        state: What is saved or loaded. It stays as it is.
        rank: Index of this process among all.
        world_size: How many there are.
        gather: Collects an object from all of them.

    Returns:
        The same object if there are none.
    """
    if getattr(state, "differs_by_rank", False) is True:
        return OfEachRank(state, rank, world_size, gather)
    if hasattr(state, "state_dict") or not isinstance(state, (dict, list, tuple)):
        return state
    keys = list(state) if isinstance(state, dict) else range(len(state))
    parts = [of_each_rank(state[key], rank, world_size, gather) for key in keys]
    if all(state[key] is part for key, part in zip(keys, parts, strict=True)):
        return state
    if isinstance(state, tuple):
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    copied = copy.copy(state)
    for key, part in zip(keys, parts, strict=True):
        copied[key] = part
    return copied
