"""Helpers around `torch.distributed`."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import pickle
import sys
import time
import uuid
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from fabric_lite.utilities.cloud_io import _is_local_file_protocol
from fabric_lite.utilities.data import _num_cpus_available
from fabric_lite.utilities.ending import let_threads_finish
from fabric_lite.utilities.rank_zero import rank_zero_info
from fabric_lite.utilities.samplers import DistributedSamplerWrapper
from fabric_lite.utilities.types import _PATH, ProcessGroup, RedOpType, ReduceOp

if torch.distributed.is_available():
    from torch.distributed import group
else:

    class group:  # type: ignore[no-redef]  # noqa: D101
        WORLD = None


if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["DistributedSamplerWrapper", "ReduceOp", "group", "is_shared_filesystem"]

log = logging.getLogger(__name__)


class _Strategy(Protocol):
    """What `is_shared_filesystem` needs of a strategy."""

    @property
    def is_global_zero(self) -> bool: ...

    def broadcast(self, obj: Any, src: int = ...) -> Any: ...

    def reduce_boolean_decision(self, decision: bool, all: bool = ...) -> bool: ...


class _ClusterEnvironment(Protocol):
    """What `_init_dist_connection` needs of a cluster environment."""

    @property
    def main_address(self) -> str: ...

    @property
    def main_port(self) -> int: ...

    def global_rank(self) -> int: ...

    def world_size(self) -> int: ...


def is_shared_filesystem(strategy: _Strategy, path: _PATH | None = None, timeout: int = 3) -> bool:
    """Find out whether all processes see the same files under a path. Call it on all of them.

    Args:
        strategy: The strategy by which they communicate, `fabric.strategy`.
        path: An existing, writable folder, or a file in one; by default the current folder.
        timeout: For how many seconds the others look for the file that rank 0 writes.

    Returns:
        Whether they do; True for URLs (`s3://…`) and if there is only one process.

    Raises:
        FileNotFoundError: If the path does not exist on some process.
        OSError: If rank 0 cannot write there.
    """
    if path is not None and not _is_local_file_protocol(path):
        return True
    if getattr(strategy, "world_size", 1) == 1:
        return True
    path = (Path.cwd() if path is None else Path(path)).resolve()
    if not strategy.reduce_boolean_decision(strategy.broadcast(path) == path, all=True):
        return False
    if not strategy.reduce_boolean_decision(path.exists(), all=True):
        raise FileNotFoundError(f"The path {str(path)!r} does not exist on every process. Make the folder first.")

    # The name is new each time: a file that an earlier or a simultaneous check left behind proves nothing.
    folder = path.parent if path.is_file() else path
    file: Path = strategy.broadcast(folder / f".shared_filesystem_check_{uuid.uuid4().hex}")
    problem: str | None = None
    if strategy.is_global_zero:
        try:
            file.touch()
        except OSError as error:
            problem = str(error)
    problem = strategy.broadcast(problem)  # nobody looks for the file before this is through
    if problem is not None:
        raise OSError(f"Rank 0 cannot write to the folder {str(folder)!r}, which the check needs: {problem}")
    deadline = time.monotonic() + timeout
    while not (found := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    shared = strategy.reduce_boolean_decision(found, all=True)
    if strategy.is_global_zero:
        file.unlink(missing_ok=True)
    return shared


def _distributed_is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gather_all_tensors(result: Tensor, group: ProcessGroup | None = None) -> list[Tensor]:
    """Gather a tensor from all processes of a group; all must have as many dimensions, of any lengths.

    Args:
        result: This process's tensor.
        group: The processes, by default all.

    Returns:
        The tensors of all processes, by rank.
    """
    world_size = torch.distributed.get_world_size(group)
    result = result.contiguous()
    shape = torch.tensor(result.shape, dtype=torch.int64, device=result.device)
    shapes = [torch.zeros_like(shape) for _ in range(world_size)]
    if result.ndim > 0:
        torch.distributed.all_gather(shapes, shape, group=group)
    sizes = [tuple(s.tolist()) for s in shapes]
    largest = [max(lengths) for lengths in zip(*sizes, strict=True)]
    # Collectives need equal shapes: fill up at the end of each dimension, and cut off again.
    padding = [amount for own, most in zip(result.shape, largest, strict=True) for amount in (most - own, 0)]
    padded = F.pad(result, padding[::-1]) if any(padding) else result
    gathered = [torch.zeros_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, padded, group=group)
    return [tensor[tuple(slice(n) for n in size)] for tensor, size in zip(gathered, sizes, strict=True)]


# Those of torch work only where NumPy is installed, which torch does not demand.


def _gather_objects(obj: Any, device: torch.device | str = "cpu", group: ProcessGroup | None = None) -> list[Any]:
    """Gather an object from all processes of a group.

    Args:
        obj: This process's object; it has to pickle.
        device: One that the group can send from.
        group: The processes, by default all.

    Returns:
        The objects of all processes, by rank.
    """
    return [_unpickled(each) for each in _gather_all_tensors(_pickled(obj, device), group)]


def _broadcast_object(obj: Any, src: int, device: torch.device | str = "cpu") -> Any:
    """Send an object from one process to all.

    Args:
        obj: The object of the process that sends; it has to pickle. That of the others does not matter.
        src: The rank of the process that sends.
        device: One that the processes can send from.

    Returns:
        The object of the process that sends.
    """
    sends = torch.distributed.get_rank() == src
    data = _pickled(obj if sends else None, device)
    length = torch.tensor(len(data), device=device)
    torch.distributed.broadcast(length, src)
    if not sends:
        data = torch.empty(int(length), dtype=torch.uint8, device=device)
    torch.distributed.broadcast(data, src)
    return obj if sends else _unpickled(data)


def _pickled(obj: Any, device: torch.device | str) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8).to(device)


def _unpickled(data: Tensor) -> Any:
    data = data.cpu()
    return pickle.loads(ctypes.string_at(data.data_ptr(), len(data)))


def _sync_ddp_if_available(
    result: Tensor, group: ProcessGroup | None = None, reduce_op: ReduceOp | RedOpType | str | None = None
) -> Tensor:
    """As `_sync_ddp`; without initialized processes the tensor itself."""
    return _sync_ddp(result, group, reduce_op) if _distributed_is_initialized() else result


def _sync_ddp(
    result: Tensor, group: ProcessGroup | None = None, reduce_op: ReduceOp | RedOpType | str | None = None
) -> Tensor:
    """Reduce a tensor over the processes of a group, in place.

    Args:
        result: This process's tensor.
        group: The processes, by default all.
        reduce_op: The operation, or its name; by default the sum. "mean" and "avg" are the same.

    Returns:
        The tensor that was passed in, reduced.

    Raises:
        ValueError: If there is no operation of that name.
    """
    divide = False
    op: Any = ReduceOp.SUM if reduce_op is None else reduce_op
    if isinstance(op, str):
        name = "AVG" if op.lower() in ("mean", "avg") else op.upper()
        if name not in ReduceOp.RedOpType.__members__:
            names = ", ".join(member.lower() for member in ReduceOp.RedOpType.__members__)
            raise ValueError(f"There is no reduce operation {reduce_op!r}. Choose one of: mean, {names}.")
        # NCCL can take the mean by itself, gloo cannot.
        divide = name == "AVG" and torch.distributed.get_backend(group) != "nccl"
        op = ReduceOp.SUM if divide else getattr(ReduceOp, name)
    torch.distributed.all_reduce(result, op=op, group=group)
    if divide:
        with torch.no_grad():  # as the reduction itself, this is no step for autograd
            result.copy_(result / torch.distributed.get_world_size(group))
    return result


def _all_gather_ddp_if_available(tensor: Tensor, group: ProcessGroup | None = None, sync_grads: bool = False) -> Tensor:
    """Gather tensors of one shape from the processes of a group.

    Args:
        tensor: This process's tensor, of shape (…).
        group: The processes, by default all.
        sync_grads: Whether gradients flow back to the processes.

    Returns:
        A tensor of shape (processes, …); without initialized processes, the tensor itself.
    """
    if not _distributed_is_initialized():
        return tensor
    if sync_grads:
        return _AllGather.apply(tensor, group)  # type: ignore[no-any-return,no-untyped-call]
    return _stack_all(tensor, group)


def _stack_all(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    tensor = tensor.detach().contiguous()
    gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, tensor, group=group)
    return torch.stack(gathered)


class _AllGather(torch.autograd.Function):
    """Gathers tensors, and brings their gradients back (for which torch has nothing public any more)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _stack_all(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Each process has used the tensors of all, and so has a part of each one's gradient.
        grad = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(grad, group=ctx.group)
        return grad[torch.distributed.get_rank(ctx.group)], None


def _init_dist_connection(
    cluster_environment: _ClusterEnvironment,
    torch_distributed_backend: str,
    global_rank: int | None = None,
    world_size: int | None = None,
    **kwargs: Any,
) -> None:
    """Connect this process with the others; does nothing if it is already.

    Args:
        cluster_environment: Knows where the processes meet: ``MASTER_ADDR`` and ``MASTER_PORT`` are set accordingly.
        torch_distributed_backend: For example "nccl" or "gloo".
        global_rank: The rank of this process, if not that of the environment.
        world_size: The number of processes, if not that of the environment.
        **kwargs: For `torch.distributed.init_process_group`. With an `init_method` or a `store` of one's own, no
            variables are set.

    Raises:
        RuntimeError: If this build of torch has no `torch.distributed`.
    """
    if not torch.distributed.is_available():
        raise RuntimeError(
            "This build of torch has no `torch.distributed`. Install another one, or write `Fabric(devices=1)`."
        )
    if torch.distributed.is_initialized():
        log.debug("torch.distributed is already initialized")
        return
    global_rank = cluster_environment.global_rank() if global_rank is None else global_rank
    world_size = cluster_environment.world_size() if world_size is None else world_size
    if "init_method" not in kwargs and "store" not in kwargs:
        os.environ["MASTER_ADDR"] = cluster_environment.main_address
        os.environ["MASTER_PORT"] = str(cluster_environment.main_port)
    log.info(f"Process {global_rank} joins {world_size} processes with backend {torch_distributed_backend}")
    torch.distributed.init_process_group(torch_distributed_backend, rank=global_rank, world_size=world_size, **kwargs)
    if torch.distributed.get_backend() == "gloo":
        torch.distributed.barrier()  # one that was done at once would close connections that another is still opening
    # A process group that is still there at the end of the program is a warning with NCCL. Registered once only.
    atexit.unregister(_leave_dist_connection)
    atexit.register(_leave_dist_connection)
    rank_zero_info(f"All {world_size} processes are connected (backend {torch_distributed_backend})")


def _destroy_dist_connection() -> None:
    """Take down the process groups, if there are any."""
    if _distributed_is_initialized():
        torch.distributed.destroy_process_group()


def _leave_dist_connection() -> None:
    """Take down the process groups at the end of the program."""
    _destroy_dist_connection()
    let_threads_finish()


def _get_default_process_group_backend_for_device(device: torch.device) -> str:
    """The backend for tensors on this device; gloo where torch has none for it."""
    backends: dict[str, str] = torch.distributed.Backend.default_device_backend_map
    return backends.get(device.type, "gloo")


def _suggested_max_num_threads(num_processes: int = 1) -> int:
    """Each process's share of the CPU cores, at least 1."""
    if num_processes < 1:
        raise ValueError(f"`num_processes` must be at least 1, got {num_processes}.")
    return max(1, _num_cpus_available() // num_processes)


def _set_num_threads_if_needed(num_processes: int = 1) -> None:
    """Share the CPU cores between processes, unless the user has decided by ``OMP_NUM_THREADS``."""
    if "OMP_NUM_THREADS" not in os.environ:
        num_threads = _suggested_max_num_threads(num_processes)
        torch.set_num_threads(num_threads)
        os.environ["OMP_NUM_THREADS"] = str(num_threads)


class _InfiniteBarrier:
    """A context whose processes wait for each other at its end, for as long as it takes.

    If one fails in it, the others fail where they wait, instead of waiting for ever.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self._broken = False

    def __call__(self) -> None:
        self.barrier()

    def barrier(self, error: BaseException | None = None) -> None:
        """Wait for the others, and tell them of an error.

        Args:
            error: With which this process leaves the context.

        Raises:
            RuntimeError: If another process left it with an error, and this one did not.
        """
        if self.group is None or self._broken:
            return
        mine = None if error is None else f"{type(error).__name__}: {error}"
        errors = _gather_objects(mine, group=self.group)
        rank = next((rank for rank, other in enumerate(errors) if other is not None), None)
        self._broken = rank is not None
        if rank is not None and error is None:
            raise RuntimeError(
                f"Rank {rank} failed in the block of `fabric.rank_zero_first()`, so that this rank does not go on:"
                f" {errors[rank]}. The traceback of rank {rank} says where."
            )

    def __enter__(self) -> Self:
        if _distributed_is_initialized():
            # Only with gloo can a timeout be of any length.
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=10000))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.barrier(exc)
        except RuntimeError as lost:
            if exc is None:
                raise
            log.debug(f"no other process could be told of an error: {lost}")  # which must not hide that error
        finally:
            if self.group is not None:
                torch.distributed.destroy_process_group(self.group)


def _is_dtensor(tensor: Any) -> TypeGuard[DTensor]:
    # Where nobody has imported this module (which takes long), there are no DTensors.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
