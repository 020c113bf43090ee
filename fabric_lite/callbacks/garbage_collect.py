"""Collect garbage at chosen moments."""

from __future__ import annotations

import gc
from typing import Any

from fabric_lite.permissions import Callback


class GarbageCollect(Callback):
    """Collects Python's garbage every so many steps and at the end of an epoch, and at no other moment.

    Left alone, each process pauses for it whenever its own counters say so. On many processes, each of these pauses
    is at another moment, and all others wait for it in the next collective operation. Here they pause together. (The
    idea is that of torchtnt and torchtitan.)

    The automatic collection is off from the beginning of fitting to its end, also by an exception, and left as it was
    then. A hand-written loop that does not call ``on_fit_begin`` keeps it.

    State access: none.

    Args:
        every_n_steps: How often, counted over all phases. The collection in between looks at the younger objects;
            that at the end of an epoch, at all.

    Raises:
        ValueError: If it is less than 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"`GarbageCollect(every_n_steps={every_n_steps!r})`: it collects every so many steps, 1 or more."
            )
        self.every_n_steps = every_n_steps
        self._steps = 0
        self._was_enabled = False

    def on_fit_begin(self) -> None:
        """Switch the automatic collection off."""
        self._was_enabled = self._was_enabled or gc.isenabled()
        gc.disable()

    def on_step_end(self) -> None:
        """Collect, if it is time."""
        self._steps += 1
        if self._steps % self.every_n_steps == 0:
            gc.collect(1)

    def on_epoch_end(self) -> None:
        """Collect."""
        gc.collect()

    def on_fit_end(self) -> None:
        """Switch the automatic collection on again, if it was on."""
        if self._was_enabled:
            gc.enable()
        self._was_enabled = False

    def on_exception(self) -> None:
        """Do the same."""
        self.on_fit_end()

    def state_dict(self) -> dict[str, Any]:
        """How many steps it has counted."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` returned."""
        self._steps = state["steps"]
