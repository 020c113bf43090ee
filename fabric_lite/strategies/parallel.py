"""One process for each of several devices: what such strategies share."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from typing_extensions import override

from fabric_lite.accelerators import Accelerator
from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.plugins.io import CheckpointIO
from fabric_lite.plugins.precision import Precision
from fabric_lite.strategies.communication import TBroadcast
from fabric_lite.strategies.strategy import Strategy
from fabric_lite.utilities.rank_zero import rank_zero_only
from fabric_lite.utilities.types import RedOpType, ReduceOp


class ParallelStrategy(Strategy, ABC):
    """Runs one process for each device; they speak through `torch.distributed`.

    Args:
        accelerator: The hardware; `Fabric` chooses if there is none.
        parallel_devices: The devices of the processes on this machine.
        cluster_environment: Where the processes find each other.
        checkpoint_io: How checkpoints are kept.
        precision: How numbers are represented.
        process_group_backend: Of `torch.distributed`; by default the one for the devices (gloo for the CPU).
        timeout: How long a process waits for the others: by default, 30 minutes. None for torch's default.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        if timeout is not None and not isinstance(timeout, timedelta):
            raise TypeError(
                f"`{type(self).__name__}(timeout={timeout!r})`: pass a `datetime.timedelta`, such as"
                " `timedelta(minutes=5)`, or None."
            )
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision=precision)
        self.parallel_devices = parallel_devices
        self.cluster_environment = cluster_environment
        self.num_nodes = 1
        self._process_group_backend = process_group_backend
        self._timeout = timeout

    @override
    def connect(
        self, parallel_devices: Sequence[torch.device], cluster_environment: ClusterEnvironment, num_nodes: int
    ) -> None:
        self.parallel_devices = self.parallel_devices or list(parallel_devices)
        self.cluster_environment = self.cluster_environment or cluster_environment
        self.num_nodes = num_nodes
        self._set_world_ranks()
        self._configure_launcher()

    def _configure_launcher(self) -> None:
        """Choose how the other processes of this machine are started."""

    def _set_world_ranks(self) -> None:
        """Tell the environment how many processes there are, and which one this is, where it does not know."""
        environment = self._environment
        environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
        environment.set_world_size(self.num_nodes * self.num_processes)
        rank_zero_only.rank = self.global_rank

    @property
    def _environment(self) -> ClusterEnvironment:
        if self.cluster_environment is None:
            raise RuntimeError(
                f"`{type(self).__name__}` has no cluster environment yet: `Fabric(strategy=...)` gives one."
            )
        return self.cluster_environment

    # -- ranks ---------------------------------------------------------------------------------------------------

    @property
    @override
    def root_device(self) -> torch.device:
        devices = self.parallel_devices
        if not devices:
            raise RuntimeError(f"`{type(self).__name__}` has no devices yet: `Fabric(strategy=...)` gives it some.")
        return devices[self.local_rank]

    @property
    def num_processes(self) -> int:
        """Number of processes on this machine."""
        return len(self.parallel_devices) if self.parallel_devices is not None else 0

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

    # -- processes -----------------------------------------------------------------------------------------------

    @property
    def process_group_backend(self) -> str | None:
        """Of `torch.distributed`; None until the processes are connected, if the user has not chosen it."""
        return self._process_group_backend

    def _setup_distributed(self) -> None:
        """Connect this process with the others. A subclass calls it in its `setup_environment`."""
        from fabric_lite.utilities.distributed import (
            _get_default_process_group_backend_for_device,
            _init_dist_connection,
        )

        self._set_world_ranks()
        device = self.root_device
        if self._process_group_backend is None:
            self._process_group_backend = _get_default_process_group_backend_for_device(device)
        _init_dist_connection(
            self._environment,
            self._process_group_backend,
            timeout=self._timeout,
            device_id=None if device.type == "cpu" else device,
        )

    @override
    def teardown(self) -> None:
        if self.cluster_environment is not None:
            self.cluster_environment.teardown()
        super().teardown()

    # -- collectives ---------------------------------------------------------------------------------------------

    @override
    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        from fabric_lite.utilities.distributed import _all_gather_ddp_if_available

        self._check_calls(lambda: f"all_gather({_described(tensor)})", group)
        return _all_gather_ddp_if_available(tensor, group=group, sync_grads=sync_grads)

    @override
    def all_reduce(
        self, tensor: Any, group: Any | None = None, reduce_op: ReduceOp | RedOpType | str | None = "mean"
    ) -> Tensor | Any:
        from fabric_lite.utilities.distributed import _sync_ddp_if_available

        if not isinstance(tensor, Tensor):
            return tensor
        self._check_calls(lambda: f"all_reduce({_described(tensor)})", group)
        return _sync_ddp_if_available(tensor, group, reduce_op)

    @override
    def barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            self._check_calls(lambda: f"barrier({name!r})")
            torch.distributed.barrier(device_ids=self._device_ids)

    @override
    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        from fabric_lite.utilities.distributed import _broadcast_object

        if not torch.distributed.is_initialized():
            return obj
        self._check_calls(lambda: f"broadcast(..., src={src})")
        sent: TBroadcast = _broadcast_object(obj, src, self.root_device)
        return sent

    def _check_calls(self, describe: Callable[[], str], group: Any | None = None) -> None:
        """With ``FABRIC_LITE_DEBUG=1``, raise in all processes if they are about to make different calls."""
        if os.environ.get("FABRIC_LITE_DEBUG") != "1" or not torch.distributed.is_initialized():
            return
        from fabric_lite.utilities.distributed import _gather_objects

        calls = _gather_objects(describe(), self.root_device, group)
        rank = next((rank for rank, call in enumerate(calls) if call != calls[0]), None)
        if rank is not None:
            where = "" if group is None else " of the group"
            raise RuntimeError(
                f"`fabric.{calls[0]}` was reached on rank 0{where}, `fabric.{calls[rank]}` on rank {rank}{where}. All"
                " processes make the same calls in the same order, with tensors of the same shape: look for an `if`"
                " around one of them."
            )

    @override
    def gather_objects(self, obj: Any) -> list[Any]:
        from fabric_lite.utilities.distributed import _gather_objects

        if not torch.distributed.is_initialized():
            return [obj] * self.world_size
        return _gather_objects(obj, self.root_device)

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        votes = torch.tensor(int(decision), device=self.root_device)
        votes = self.all_reduce(votes, reduce_op=ReduceOp.SUM)
        return bool(votes == self.world_size) if all else bool(votes)

    @property
    def _device_ids(self) -> list[int] | None:
        """The index of this process's device, as torch wants it; None on the CPU."""
        index = self.root_device.index
        return None if self.root_device.type == "cpu" or index is None else [index]


def _described(tensor: Tensor) -> str:
    return f"<{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}>"
