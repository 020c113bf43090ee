"""A dataloader that was set up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from fabric_lite.utilities.apply_func import move_data_to_device
from fabric_lite.utilities.data import _set_sampler_epoch
from fabric_lite.wrappers.position import Epoch, continued, draws_of, own_state, resumed, set_draws, set_own_state


class _FabricDataLoader:
    """A dataloader that yields its batches on a device. For everything else it is the dataloader.

    Args:
        dataloader: The dataloader.
        device: Where the batches go; None to leave them where they are.
    """

    differs_by_rank = True
    _dataloader: DataLoader[Any]
    _device: torch.device | None
    _num_iter_calls: int
    _epoch: Epoch | None
    _resume: Epoch | None
    _broken: bool
    replay: bool

    def __init__(self, dataloader: DataLoader[Any], device: torch.device | None = None) -> None:
        own = {"_num_iter_calls": 0, "_epoch": None, "_resume": None, "_broken": False, "replay": False}
        self.__dict__.update(own, _dataloader=dataloader, _device=device)

    @property
    def device(self) -> torch.device | None:
        """Where the batches go; None if they stay where they are."""
        return self._device

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        # Without it, a sampler that shuffles by the number of the epoch would repeat the first one.
        _set_sampler_epoch(self._dataloader, self._num_iter_calls)
        self._num_iter_calls += 1
        epoch, self._resume = self._resume, None
        if epoch is None:
            epoch = Epoch(None if self._has_own_state() else draws_of(self._dataloader))
            batches: Iterator[Any] = iter(self._dataloader)
        else:
            if epoch.draws and not epoch.position:
                epoch.draws = {**draws_of(self._dataloader), "seeded": True}
            batches = continued(self._dataloader, epoch, self.replay)
        self._epoch, self._broken = epoch, True
        try:
            for batch in batches:
                epoch.position += 1
                yield batch if self._device is None else move_data_to_device(batch, self._device)
            self._broken = False
        finally:
            if self._epoch is epoch:  # and no other one has begun meanwhile
                self._epoch = None

    def _has_own_state(self) -> bool:
        return hasattr(self._dataloader, "state_dict") and hasattr(self._dataloader, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """The number of the epoch, the position in it, and what its order is drawn from."""
        epoch = self._epoch or self._resume
        begun = self._num_iter_calls - (self._epoch is not None)
        state = {"epoch": begun, "position": 0 if epoch is None else epoch.position}
        if self._has_own_state():
            return {**state, "broken": self._broken, **own_state(self._dataloader, not begun and epoch is None)}
        return {**state, "draws": draws_of(self._dataloader) if epoch is None else epoch.draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the next time that this is iterated over, with the rest of that epoch.

        Args:
            state: From `state_dict`, of such a dataloader.

        Raises:
            ValueError: If it is of another kind of dataloader.
        """
        key = "own" if self._has_own_state() else "draws"
        if not {"epoch", "position", key} <= set(state):
            raise ValueError(
                f"The state with {', '.join(map(repr, state)) or 'nothing in it'} is not one of a"
                f" `{type(self._dataloader).__name__}`, which has 'epoch', 'position', {key!r}. Load what was saved of"
                " such a dataloader."
            )
        if key == "own":
            set_own_state(self._dataloader, dict(state))
        else:
            set_draws(self._dataloader, state[key])
        self._resume = resumed(self._dataloader, dict(state))
        self._broken = state.get("broken", False)
        self._num_iter_calls = state["epoch"]
        self._epoch = None

    def adapt_state(self, states: Sequence[Mapping[str, Any]], world_size: int) -> dict[str, Any]:
        """The state to go on from with another number of processes: as many samples of the epoch have been seen.

        Args:
            states: Those of the processes that saved.
            world_size: How many processes there are now.
        """
        first = states[0]
        return {**first, "position": first["position"] * len(states) // world_size}

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
