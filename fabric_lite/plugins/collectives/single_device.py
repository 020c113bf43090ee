"""A group of one process."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from fabric_lite.plugins.collectives.collective import CollectibleGroup, Collective


class SingleDeviceCollective(Collective):
    """A group of one process, whose operations give back what they got."""

    @property
    @override
    def rank(self) -> int:
        return 0

    @property
    @override
    def world_size(self) -> int:
        return 1

    @override
    def broadcast(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    @override
    def all_reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    @override
    def reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    @override
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor, **__: Any) -> list[Tensor]:
        return [tensor]

    @override
    def gather(self, tensor: Tensor, *_: Any, **__: Any) -> list[Tensor]:
        return [tensor]

    @override
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        return scatter_list[0]

    @override
    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        return input_list[0]

    @override
    def all_to_all(
        self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        return input_tensor_list

    @override
    def send(self, *_: Any, **__: Any) -> None: ...

    @override
    def recv(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    @override
    def barrier(self, *_: Any, **__: Any) -> None: ...

    @classmethod
    @override
    def is_available(cls) -> bool:
        return True

    @classmethod
    @override
    def is_initialized(cls) -> bool:
        return True

    @classmethod
    @override
    def init_group(cls, **_: Any) -> None: ...

    @classmethod
    @override
    def new_group(cls, **_: Any) -> CollectibleGroup:
        return _One()

    @classmethod
    @override
    def destroy_group(cls, group: CollectibleGroup) -> None: ...

    @classmethod
    @override
    def _convert_to_native_op(cls, op: str) -> str:
        return op


class _One:
    """A group of one process."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0
