"""Layers spread over processes in ways that the user chooses, on a mesh of two dimensions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import nn
from torch.distributed.constants import default_pg_timeout
from typing_extensions import override

from fabric_lite.strategies.mesh import Topology, model_parallel_topology
from fabric_lite.strategies.sharded import _ShardedBackwardSyncControl, _ShardedStrategy
from fabric_lite.utilities.distributed import _is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

TModel = TypeVar("TModel", bound=nn.Module)


class ModelParallelStrategy(_ShardedStrategy):
    """Lets a function of the user spread a module over a mesh: tensor parallel, `fully_shard`, or both.

    Args:
        parallelize_fn: ``(model, device_mesh) -> model``. The mesh has the dimensions ``"data_parallel"`` and
            ``"tensor_parallel"``; for the data-parallel one, apply `torch.distributed.fsdp.fully_shard`.
        data_parallel_size: Number of groups of processes that have samples of their own.
        tensor_parallel_size: Number of processes in a group, which compute together on the same samples. If one of the
            two sizes is ``"auto"``, it is what the other one leaves; if both are, each machine is a group.
        save_distributed_checkpoint: Whether `Fabric.save` writes a folder with the shards of each process, or one file.
        process_group_backend: Of `torch.distributed`; by default the one for the devices (gloo for the CPU).
        timeout: How long a process waits for the others: by default, 30 minutes. None for torch's default.
    """

    _to_save_one_file = "save_distributed_checkpoint=False"

    def __init__(
        self,
        parallelize_fn: Callable[[TModel, DeviceMesh], TModel],
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        if not callable(parallelize_fn):
            raise TypeError(
                f"`ModelParallelStrategy({parallelize_fn!r})`: pass a function `parallelize(model, device_mesh)` that"
                " returns the model."
            )
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self._parallelize_fn: Callable[[Any, DeviceMesh], Any] = parallelize_fn
        self._data_parallel_size = data_parallel_size
        self._tensor_parallel_size = tensor_parallel_size
        self._saves_shards = save_distributed_checkpoint
        self._backward_sync_control = _ShardedBackwardSyncControl()

    @property
    @override
    def topology(self) -> Topology:
        return model_parallel_topology(
            self.world_size, self.num_nodes, self._data_parallel_size, self._tensor_parallel_size
        )

    @override
    def _shard(self, module: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        parallel = self._parallelize_fn(module, self.device_mesh)
        name = getattr(self._parallelize_fn, "__name__", repr(self._parallelize_fn))
        if not isinstance(parallel, nn.Module):
            raise TypeError(f"`{name}(model, device_mesh)` returned {parallel!r}. Let it return the model.")
        if any(isinstance(part, FullyShardedDataParallel) for part in parallel.modules()):
            raise TypeError(
                f"`{name}(model, device_mesh)` has wrapped modules in `FullyShardedDataParallel`, which does not go"
                " with other ways to spread a module. Call `torch.distributed.fsdp.fully_shard` on them instead."
            )
        device = self.root_device
        if any(t.device.type not in (device.type, "meta") for t in parallel.parameters() if not _is_dtensor(t)):
            parallel._apply(  # type: ignore[no-untyped-call]
                lambda tensor: tensor if tensor.is_meta or _is_dtensor(tensor) else tensor.to(device)
            )
        return parallel
