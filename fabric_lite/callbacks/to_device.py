"""`ToDevice`: moves batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fabric_lite.permissions import Callback, Read, Resolution, RunFirst, StateAccess, Write
from fabric_lite.utilities.apply_func import move_data_to_device


class ToDevice(Callback):
    """Moves inputs and targets of each step.

    A `Learner` moves its batches by itself. This is for loops that do not, and for other places to move to. It runs
    before other callbacks that read or change inputs and targets, unless these say otherwise.

    State access: writes ``step.xs`` and ``step.ys``; reads ``fabric``, if it was not said where to.

    Args:
        to: A device, or a function that moves; by default the device of ``learner.fabric``.
    """

    def __init__(self, to: torch.device | str | Callable[[Any], Any] | None = None) -> None:
        self._move: Callable[[Any], Any] | None = None
        if isinstance(to, (torch.device, str)):
            device = torch.device(to)
            self._move = lambda data: move_data_to_device(data, device)
        elif to is not None:
            self._move = to

    def stateaccess(self) -> StateAccess:  # noqa: D102
        moved: StateAccess = {"step": {"xs": Write(), "ys": Write()}}
        return moved if self._move else {**moved, "fabric": Read()}

    def resolveconflict(self, other: object) -> Resolution:  # noqa: D102
        return RunFirst(self)

    def on_step_begin(self, learner: Any) -> None:
        """Move inputs and targets, those that are there."""
        step, move = learner.step, self._move or self._to_fabric(learner)
        for name in ("xs", "ys"):
            data = getattr(step, name, None)
            if data is not None:
                setattr(step, name, move(data))

    @staticmethod
    def _to_fabric(learner: Any) -> Callable[[Any], Any]:
        fabric = getattr(learner, "fabric", None)
        if fabric is None:
            raise RuntimeError(
                "`ToDevice()` moves to the device of `learner.fabric`, and there is none. Say where to:"
                ' `ToDevice("cuda")`, or pass a learner that has it.'
            )
        device = fabric.device
        return lambda data: move_data_to_device(data, device)


class ToGPU(ToDevice):
    """Moves inputs and targets of each step to the accelerator of this machine.

    State access: writes ``step.xs`` and ``step.ys``.

    Raises:
        RuntimeError: If there is none.
    """

    def __init__(self) -> None:
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is None:
            raise RuntimeError(
                "`ToGPU()` found no accelerator on this machine. `ToDevice()` goes where the Fabric is, on any machine."
            )
        super().__init__(device)
