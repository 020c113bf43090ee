"""Moving optimizer state."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

from torch.optim import Optimizer

from fabric_lite.utilities.apply_func import move_data_to_device
from fabric_lite.utilities.types import _DEVICE


def _optimizers_to_device(optimizers: Iterable[Optimizer], device: _DEVICE) -> None:
    """Move the state of several optimizers to a device."""
    for optimizer in optimizers:
        _optimizer_to_device(optimizer, device)


def _optimizer_to_device(optimizer: Optimizer, device: _DEVICE) -> None:
    """Move the state of an optimizer to a device."""
    for parameter, state in optimizer.state.items():
        if not isinstance(state, MutableMapping):  # optimizers from elsewhere may keep anything
            optimizer.state[parameter] = move_data_to_device(state, device)
            continue
        for key, value in state.items():
            if key != "step":  # torch's optimizers count on the CPU, so that a step need not wait for the device
                state[key] = move_data_to_device(value, device)
