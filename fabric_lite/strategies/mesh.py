"""The topology of a run: its processes as a grid, and what is spread along each axis of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DATA_PARALLEL = "data_parallel"
REPLICATE = "replicate"
SHARD = "shard"
TENSOR_PARALLEL = "tensor_parallel"


@dataclass(frozen=True)
class Topology:
    """The processes of a run as a grid.

    Along `TENSOR_PARALLEL` the processes compute one result together, from the same samples. Along every other axis
    each has samples of its own: `REPLICATE` for copies of the model, `SHARD` for the parts of one copy, `DATA_PARALLEL`
    for whatever the strategy does.

    Attributes:
        names: The axes, outermost first: processes of consecutive ranks are neighbours along the last one.
        sizes: Number of processes along each.
        world_size: Number of processes.

    Raises:
        ValueError: If the sizes do not multiply to the number of processes.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    world_size: int

    def __post_init__(self) -> None:
        text = ", ".join(f"{name}={size!r}" for name, size in zip(self.names, self.sizes, strict=True))
        if any(type(size) is not int or size < 1 for size in self.sizes):
            raise ValueError(f"A mesh of ({text}): each size is an integer above 0.")
        if prod(self.sizes) != self.world_size:
            raise ValueError(
                f"A mesh of ({text}) takes {' x '.join(map(str, self.sizes))} = {prod(self.sizes)} processes, but this"
                f" run has {self.world_size}. Change the sizes, or `Fabric(devices=..., num_nodes=...)`."
            )

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a process is.

        Args:
            rank: Its index among all.

        Returns:
            Its index along each axis, by name.
        """
        found = {}
        for name, size in zip(reversed(self.names), reversed(self.sizes), strict=True):
            rank, found[name] = divmod(rank, size)
        return {name: found[name] for name in self.names}

    def sampler_kwargs(self, rank: int) -> dict[str, Any]:
        """Which share of the samples a process gets.

        Args:
            rank: Its index among all.

        Returns:
            Arguments of `torch.utils.data.DistributedSampler`.
        """
        replicas = index = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if name != TENSOR_PARALLEL:
                replicas, index = (replicas or 1) * size, index * size + self.coordinates(rank)[name]
        return {"num_replicas": max(replicas, 1), "rank": index}

    def make_mesh(self, device_type: str) -> DeviceMesh:
        """Connect the processes along each axis. All of them have to call it.

        Args:
            device_type: Where the tensors are: ``"cpu"``, ``"cuda"``, ...

        Returns:
            The mesh, its dimensions named as the axes.
        """
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device_type, self.sizes, mesh_dim_names=self.names)


def sharding_topology(
    world_size: int, num_nodes: int = 1, hybrid: bool = False, shape: tuple[int, ...] | None = None
) -> Topology:
    """The grid of a model that is sharded over processes.

    Args:
        world_size: Number of processes.
        num_nodes: Number of machines.
        hybrid: Whether to shard over the processes of a machine, and keep a copy on each machine.
        shape: The sizes, where the user chose them: (copies, processes that share one), or the latter alone.

    Returns:
        The topology: one axis, or two with copies.

    Raises:
        ValueError: If the sizes do not fit.
    """
    if shape is None:
        shape = (num_nodes, max(1, world_size // num_nodes)) if hybrid else (world_size,)
    names = {1: (DATA_PARALLEL,), 2: (REPLICATE, SHARD)}.get(len(shape))
    if names is None:
        raise ValueError(f"`device_mesh={shape!r}`: pass two numbers, (copies, processes that share each copy).")
    return Topology(names, shape, world_size)


def model_parallel_topology(
    world_size: int,
    num_nodes: int = 1,
    data_parallel_size: Literal["auto"] | int = "auto",
    tensor_parallel_size: Literal["auto"] | int = "auto",
) -> Topology:
    """The grid of a model whose layers are spread over processes.

    Args:
        world_size: Number of processes.
        num_nodes: Number of machines.
        data_parallel_size: Number of groups that have samples of their own.
        tensor_parallel_size: Number of processes in each, which compute together. If one of the two sizes is
            ``"auto"``, it is what the other one leaves; if both are, the processes of each machine are a group.

    Returns:
        The topology.

    Raises:
        ValueError: If the sizes do not fit.
    """
    for name, size in (("data_parallel_size", data_parallel_size), ("tensor_parallel_size", tensor_parallel_size)):
        if size != "auto" and (type(size) is not int or size < 1):
            raise ValueError(f"`ModelParallelStrategy({name}={size!r})`: pass an integer above 0, or 'auto'.")
    if tensor_parallel_size == "auto":
        data = num_nodes if data_parallel_size == "auto" else data_parallel_size
        tensor = max(1, world_size // data)
    else:
        tensor = tensor_parallel_size
        data = max(1, world_size // tensor) if data_parallel_size == "auto" else data_parallel_size
    return Topology((DATA_PARALLEL, TENSOR_PARALLEL), (data, tensor), world_size)
