"""One process for each of several devices: what such strategies share."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fabric_lite.accelerators import Accelerator
from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.plugins.io import CheckpointIO
from fabric_lite.plugins.precision import Precision
from fabric_lite.strategies.strategy import Strategy
from fabric_lite.utilities.types import ReduceOp


class ParallelStrategy(Strategy, ABC):
    """Runs one process for each device. Ranks come from the cluster environment.

    Args:
        accelerator: The hardware; `Fabric` chooses if there is none.
        parallel_devices: The devices of the processes on this machine.
        cluster_environment: Where the processes find each other.
        checkpoint_io: How checkpoints are kept.
        precision: How numbers are represented.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision)
        self.parallel_devices = parallel_devices
        self.cluster_environment = cluster_environment
        self._num_nodes = 1

    @override
    def connect(
        self, parallel_devices: Sequence[torch.device], cluster_environment: ClusterEnvironment, num_nodes: int
    ) -> None:
        self.parallel_devices = self.parallel_devices or list(parallel_devices)
        self.cluster_environment = self.cluster_environment or cluster_environment
        self._num_nodes = num_nodes

    @property
    def global_rank(self) -> int:  # type: ignore[override]
        """Index of this process among all."""
        return self.cluster_environment.global_rank() if self.cluster_environment is not None else 0

    @property
    def local_rank(self) -> int:  # type: ignore[override]
        """Index of this process among those on the same machine."""
        return self.cluster_environment.local_rank() if self.cluster_environment is not None else 0

    @property
    def node_rank(self) -> int:  # type: ignore[override]
        """Index of this machine."""
        return self.cluster_environment.node_rank() if self.cluster_environment is not None else 0

    @property
    def world_size(self) -> int:  # type: ignore[override]
        """Number of processes on all machines together."""
        return self.cluster_environment.world_size() if self.cluster_environment is not None else 1

    @property
    @override
    def is_global_zero(self) -> bool:
        return self.global_rank == 0

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @override
    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        from fabric_lite.utilities.distributed import _all_gather_ddp_if_available

        return _all_gather_ddp_if_available(tensor, group=group, sync_grads=sync_grads)

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        votes = torch.tensor(int(decision), device=self.root_device)
        votes = self.all_reduce(votes, reduce_op=ReduceOp.SUM)
        return bool(votes == self.world_size) if all else bool(votes)

    @override
    def teardown(self) -> None:
        if self.cluster_environment is not None:
            self.cluster_environment.teardown()
        super().teardown()
