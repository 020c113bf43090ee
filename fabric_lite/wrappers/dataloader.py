"""A dataloader that was set up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from fabric_lite.utilities.apply_func import move_data_to_device
from fabric_lite.utilities.data import _set_sampler_epoch


class _FabricDataLoader:
    """A dataloader that yields its batches on a device. For everything else it is the dataloader.

    Args:
        dataloader: The dataloader.
        device: Where the batches go; None to leave them where they are.
    """

    def __init__(self, dataloader: DataLoader[Any], device: torch.device | None = None) -> None:
        self.__dict__.update(_dataloader=dataloader, _device=device, _num_iter_calls=0)

    @property
    def device(self) -> torch.device | None:
        """Where the batches go; None if they stay where they are."""
        return self._device  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        # Without it, a sampler that shuffles by the number of the epoch would repeat the first one.
        _set_sampler_epoch(self._dataloader, self._num_iter_calls)
        self._num_iter_calls += 1
        for batch in self._dataloader:
            yield batch if self._device is None else move_data_to_device(batch, self._device)

    def __getattr__(self, name: str) -> Any:
        if "_dataloader" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self._dataloader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self._dataloader, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._dataloader, name)
