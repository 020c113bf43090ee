"""What the processes of a group can do together: the seam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from typing_extensions import Self

from fabric_lite.utilities.types import CollectibleGroup

__all__ = ["CollectibleGroup", "Collective"]


class Collective(ABC):
    """A group of processes, and what they do together. Each operation has to be called by all of the group."""

    def __init__(self) -> None:
        self._group: CollectibleGroup | None = None

    @property
    @abstractmethod
    def rank(self) -> int:
        """Index of this process in the group."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Number of processes in the group."""

    @property
    def group(self) -> CollectibleGroup:
        """The group.

        Raises:
            RuntimeError: If there is none yet.
        """
        if self._group is None:
            name = type(self).__name__
            raise RuntimeError(f"This `{name}` has no group. Make one first: `collective.setup().create_group()`.")
        return self._group

    # -- operations ----------------------------------------------------------------------------------------------

    @abstractmethod
    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """Fill the tensor of each process with that of one.

        Args:
            tensor: Of the same shape everywhere.
            src: Rank of the process that sends.

        Returns:
            The tensor that was passed in.
        """

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: str) -> Tensor:
        """Combine the tensors of all processes, in place.

        Args:
            tensor: Of the same shape everywhere.
            op: The name of the operation.

        Returns:
            The tensor that was passed in.
        """

    @abstractmethod
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Tensor:
        """Combine the tensors of all processes in one of them, in place.

        Args:
            tensor: Of the same shape everywhere.
            dst: Rank of the process that gets the result; what the others have afterwards is not defined.
            op: The name of the operation.

        Returns:
            The tensor that was passed in.
        """

    @abstractmethod
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """Collect the tensors of all processes in all processes.

        Args:
            tensor_list: A tensor to fill for each process.
            tensor: That of this process.

        Returns:
            The tensors by rank.
        """

    @abstractmethod
    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """Collect the tensors of all processes in one of them.

        Args:
            tensor: That of this process.
            gather_list: A tensor to fill for each process; empty or None but in the process that collects.
            dst: Rank of the process that collects.

        Returns:
            The list that was passed in.
        """

    @abstractmethod
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Give each process one of the tensors of one process.

        Args:
            tensor: To be filled.
            scatter_list: A tensor for each process; empty or None but in the process that sends.
            src: Rank of the process that sends.

        Returns:
            The tensor that was passed in.
        """

    @abstractmethod
    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: str) -> Tensor:
        """Combine the lists of all processes, and give each process one tensor of the result.

        Args:
            output: To be filled.
            input_list: A tensor for each process.
            op: The name of the operation.

        Returns:
            The tensor that was passed in as output.
        """

    @abstractmethod
    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """Give each process one tensor, and get one from each.

        Args:
            output_tensor_list: A tensor to fill for each process.
            input_tensor_list: A tensor for each process.

        Returns:
            The tensors that this process got, by rank.
        """

    @abstractmethod
    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send a tensor to one process, which has to call `recv`.

        Args:
            tensor: The tensor.
            dst: Rank of the other process.
            tag: A number by which the two tell messages apart.
        """

    @abstractmethod
    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Receive a tensor from one process, which has to call `send`.

        Args:
            tensor: To be filled.
            src: Rank of the other process; by default any.
            tag: A number by which the two tell messages apart.

        Returns:
            The tensor that was passed in.
        """

    @abstractmethod
    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes of the group are here.

        Args:
            device_ids: The devices to wait for, where the backend wants to know.
        """

    # -- groups --------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether it can be used here."""

    @classmethod
    @abstractmethod
    def is_initialized(cls) -> bool:
        """Whether the processes are connected."""

    @classmethod
    @abstractmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Connect the processes.

        Args:
            **kwargs: For the library that does it.
        """

    @classmethod
    @abstractmethod
    def new_group(cls, **kwargs: Any) -> CollectibleGroup:
        """Make a group of some of the processes. All of them have to call it.

        Args:
            **kwargs: For the library that does it.

        Returns:
            The group.
        """

    @classmethod
    @abstractmethod
    def destroy_group(cls, group: CollectibleGroup) -> None:
        """Give a group back.

        Args:
            group: The group.
        """

    @classmethod
    @abstractmethod
    def _convert_to_native_op(cls, op: str) -> Any:
        """The operation of a name."""

    def setup(self, **kwargs: Any) -> Self:
        """Connect the processes, unless they are.

        Args:
            **kwargs: For `init_group`.

        Returns:
            This object.
        """
        if not self.is_initialized():
            self.init_group(**kwargs)
        return self

    def create_group(self, **kwargs: Any) -> Self:
        """Make the group. The processes must be connected.

        Args:
            **kwargs: For `new_group`.

        Returns:
            This object.

        Raises:
            RuntimeError: If there is one already.
        """
        if self._group is not None:
            name = type(self).__name__
            raise RuntimeError(
                f"This `{name}` has a group already. Make another `{name}()`, or call `teardown()` first."
            )
        self._group = self.new_group(**kwargs)
        return self

    def teardown(self) -> Self:
        """Give the group back.

        Returns:
            This object.

        Raises:
            RuntimeError: If there is none.
        """
        if self._group is None:
            raise RuntimeError(
                f"This `{type(self).__name__}` has no group to tear down: `create_group()` was not called."
            )
        self.destroy_group(self._group)
        self._group = None
        return self
