"""How the processes of a run speak to each other: the part of a strategy that every one of them answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

from torch import Tensor

from fabric_lite.utilities.types import RedOpType, ReduceOp

TBroadcast = TypeVar("TBroadcast")
TReduce = TypeVar("TReduce")


class _Communication(ABC):
    """Ranks of, and collectives over, the processes of a run."""

    global_rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1

    @property
    @abstractmethod
    def is_global_zero(self) -> bool:
        """Whether this is the first process of all."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """Collect a tensor from all processes.

        Args:
            tensor: Of the same shape in each.
            group: The processes; by default all.
            sync_grads: Whether gradients flow back through it.

        Returns:
            A tensor with a new first dimension, the process.
        """

    @abstractmethod
    def all_reduce(
        self, tensor: Any, group: Any | None = None, reduce_op: ReduceOp | RedOpType | str | None = "mean"
    ) -> Tensor | Any:
        """Combine a tensor of all processes.

        Args:
            tensor: Of the same shape in each; it may be changed in place.
            group: The processes; by default all.
            reduce_op: How.

        Returns:
            A tensor of the same shape.
        """

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here.

        Args:
            name: Of the place in the program.
        """

    @abstractmethod
    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """Send an object from one process to all.

        Args:
            obj: The object; only that of the sender counts.
            src: Rank of the sender.

        Returns:
            The sender's object.
        """

    def gather_objects(self, obj: Any) -> list[Any]:
        """Collect an object from all processes.

        Args:
            obj: Anything that pickles.

        Returns:
            The objects, by rank.
        """
        return [obj]

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree on a decision.

        Args:
            decision: What this process would do.
            all: Whether all must say yes, or one is enough.

        Returns:
            What all do.
        """
        return decision
