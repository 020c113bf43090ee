"""A group of processes, by `torch.distributed`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self, override

from fabric_lite.plugins.collectives.collective import CollectibleGroup, Collective
from fabric_lite.utilities.types import RedOpType, ReduceOp

if dist.is_available():
    from torch.distributed.constants import default_pg_timeout
else:
    default_pg_timeout = timedelta(minutes=30)

__all__ = ["TorchCollective", "default_pg_timeout"]


class TorchCollective(Collective):
    """A group of processes, by `torch.distributed`: all of them, until `create_group` is called.

    Attributes:
        manages_default_group: Whether one of these objects has connected the processes; it then takes the connection
            down with the last group.
        addr_key: The variable with the address at which the processes meet.
        port_key: The variable with the port.

    Raises:
        RuntimeError: If this build of torch has no `torch.distributed`.
    """

    manages_default_group = False
    addr_key = "MASTER_ADDR"
    port_key = "MASTER_PORT"

    def __init__(self) -> None:
        if not dist.is_available():
            raise RuntimeError(
                "This build of torch has no `torch.distributed`. Install another one, or use `SingleDeviceCollective`."
            )
        super().__init__()

    @property
    @override
    def group(self) -> CollectibleGroup:
        if self._group is None:
            self._group = dist.GroupMember.WORLD
        return super().group

    @property
    def _pg(self) -> Any:
        """The group, as torch sees it."""
        return self.group

    @property
    @override
    def rank(self) -> int:
        return dist.get_rank(self._pg)

    @property
    @override
    def world_size(self) -> int:
        return dist.get_world_size(self._pg)

    # -- operations ----------------------------------------------------------------------------------------------

    @override
    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        dist.broadcast(tensor, src, group=self._pg)
        return tensor

    @override
    def all_reduce(self, tensor: Tensor, op: str | ReduceOp | RedOpType = "sum") -> Tensor:
        dist.all_reduce(tensor, op=self._convert_to_native_op(op), group=self._pg)
        return tensor

    @override
    def reduce(self, tensor: Tensor, dst: int, op: str | ReduceOp | RedOpType = "sum") -> Tensor:
        dist.reduce(tensor, dst, op=self._convert_to_native_op(op), group=self._pg)
        return tensor

    @override
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        dist.all_gather(tensor_list, tensor, group=self._pg)
        return tensor_list

    @override
    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        dist.gather(tensor, gather_list, dst, group=self._pg)
        return gather_list

    @override
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        dist.scatter(tensor, scatter_list, src, group=self._pg)
        return tensor

    @override
    def reduce_scatter(
        self, output: Tensor, input_list: list[Tensor], op: str | ReduceOp | RedOpType = "sum"
    ) -> Tensor:
        dist.reduce_scatter(output, input_list, op=self._convert_to_native_op(op), group=self._pg)
        return output

    @override
    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        dist.all_to_all(output_tensor_list, input_tensor_list, group=self._pg)
        return output_tensor_list

    @override
    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        dist.send(tensor, dst, tag=tag, group=self._pg)

    @override
    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        dist.recv(tensor, src, tag=tag, group=self._pg)
        return tensor

    def all_gather_object(self, object_list: list[Any], obj: Any) -> list[Any]:
        """Collect the objects of all processes in all processes.

        Args:
            object_list: As long as there are processes; what is in it is replaced.
            obj: That of this process; it has to pickle.

        Returns:
            The objects by rank.
        """
        dist.all_gather_object(object_list, obj, group=self._pg)
        return object_list

    def broadcast_object_list(self, object_list: list[Any], src: int, device: torch.device | None = None) -> list[Any]:
        """Replace the objects of each process by those of one.

        Args:
            object_list: As long everywhere; the objects have to pickle.
            src: Rank of the process that sends.
            device: Through which they travel; by default the one that suits the backend.

        Returns:
            The list that was passed in.
        """
        dist.broadcast_object_list(object_list, src, group=self._pg, device=device)
        return object_list

    def gather_object(self, obj: Any, object_gather_list: list[Any], dst: int = 0) -> list[Any]:
        """Collect the objects of all processes in one of them.

        Args:
            obj: That of this process; it has to pickle.
            object_gather_list: As long as there are processes; None but in the process that collects.
            dst: Rank of the process that collects.

        Returns:
            The list that was passed in.
        """
        dist.gather_object(obj, object_gather_list, dst, group=self._pg)
        return object_gather_list

    def scatter_object_list(
        self, scatter_object_output_list: list[Any], scatter_object_input_list: list[Any], src: int = 0
    ) -> list[Any]:
        """Give each process one of the objects of one process.

        Args:
            scatter_object_output_list: Its first element is replaced.
            scatter_object_input_list: An object for each process; None but in the process that sends.
            src: Rank of the process that sends.

        Returns:
            The list that was passed in as output.
        """
        dist.scatter_object_list(scatter_object_output_list, scatter_object_input_list, src, group=self._pg)
        return scatter_object_output_list

    @override
    def barrier(self, device_ids: list[int] | None = None) -> None:
        if self._pg != dist.GroupMember.NON_GROUP_MEMBER:
            dist.barrier(group=self._pg, device_ids=device_ids)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """Wait for all processes of the group, and raise naming those that do not come. For gloo.

        Args:
            timeout: How long; by default that of the group.
            wait_all_ranks: Whether to name all that do not come, or the first one.
        """
        dist.monitored_barrier(group=self._pg, timeout=timeout, wait_all_ranks=wait_all_ranks)

    # -- groups --------------------------------------------------------------------------------------------------

    @override
    def setup(self, main_address: str | None = None, main_port: str | None = None, **kwargs: Any) -> Self:
        """Connect the processes, unless they are.

        Args:
            main_address: Where they meet, if the environment does not say.
            main_port: At which port, if the environment does not say.
            **kwargs: For `torch.distributed.init_process_group`.

        Returns:
            This object.
        """
        if self.is_initialized():
            return self
        meeting = {self.addr_key: main_address, self.port_key: main_port}
        added = {key: str(value) for key, value in meeting.items() if value is not None and key not in os.environ}
        os.environ.update(added)  # torch reads them there
        try:
            super().setup(**kwargs)
        finally:
            for key in added:
                os.environ.pop(key, None)
        TorchCollective.manages_default_group = True
        return self

    @override
    def teardown(self) -> Self:
        is_member = self._pg != dist.GroupMember.NON_GROUP_MEMBER
        super().teardown()
        if not TorchCollective.manages_default_group:
            return self
        world = dist.GroupMember.WORLD
        # Whoever is not in the last group must not take the connection down under those that are.
        if world is not None and is_member and len(dist.distributed_c10d._pg_map) == 1:
            self.destroy_group(world)
            world = None
        TorchCollective.manages_default_group = world is not None
        return self

    @classmethod
    @override
    def is_available(cls) -> bool:
        return dist.is_available()

    @classmethod
    @override
    def is_initialized(cls) -> bool:
        return cls.is_available() and dist.is_initialized()

    @classmethod
    @override
    def init_group(cls, **kwargs: Any) -> None:
        dist.init_process_group(**kwargs)

    @classmethod
    @override
    def new_group(cls, **kwargs: Any) -> CollectibleGroup:
        group: CollectibleGroup = dist.new_group(**kwargs)
        return group

    @classmethod
    @override
    def destroy_group(cls, group: CollectibleGroup) -> None:
        # Neither what stands for a group that this process is not in, nor a group that is gone already.
        if group in dist.distributed_c10d._pg_map:
            dist.destroy_process_group(group)

    @classmethod
    @override
    def _convert_to_native_op(cls, op: str | ReduceOp | RedOpType) -> ReduceOp | RedOpType:
        if isinstance(op, (ReduceOp, RedOpType)):
            return op
        if not isinstance(op, str) or op.upper() not in RedOpType.__members__:
            names = ", ".join(name.lower() for name in RedOpType.__members__)
            raise ValueError(f"`TorchCollective` has no operation {op!r}. Choose one of: {names}.")
        return RedOpType.__members__[op.upper()]
