"""How `Learner.fit` goes on from a checkpoint."""

from __future__ import annotations

import copy
import logging
from typing import Any

from fabric_lite.callbacks._training_state import training_state
from fabric_lite.permissions import unwrap
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.seed import RNGState
from fabric_lite.utilities.types import _PATH

_log = logging.getLogger(__name__)


def find_checkpoint(learner: Any, resume: _PATH | None) -> _PATH | None:
    """The checkpoint that is meant.

    Args:
        learner: The learner.
        resume: A path, ``"latest"`` or None.

    Returns:
        Its path; None if there is none to go on from.

    Raises:
        ValueError: If the latest one is meant, and no `Checkpointer` knows where it is.
    """
    if resume != "latest":
        return resume
    from fabric_lite.callbacks.checkpointer import Checkpointer

    found = [unwrap(callback) for callback in learner.callbacks if isinstance(unwrap(callback), Checkpointer)]
    if not found:
        raise ValueError(
            "`learner.fit(..., resume='latest')` looks for the newest checkpoint of a `Checkpointer`, and none is among"
            " the callbacks. Add one, `Learner(..., callbacks=[Checkpointer(folder)])`, or pass a path."
        )
    newest: str | None = learner.fabric.broadcast(found[0].find_latest() if learner.fabric.is_global_zero else None)
    if newest is None:
        _log.info("there is no checkpoint in %s yet: training begins at the beginning", found[0].folder)
    return newest


class Resumed:
    """The state of a training that goes on from a checkpoint.

    What is saved in the middle of an epoch is the state after the callbacks have seen its beginning. They see it again,
    so that those without a state are ready; then they and the random numbers get that state once more.

    Args:
        learner: The learner. It gets the state.
        path: The checkpoint.
    """

    def __init__(self, learner: Any, path: _PATH) -> None:
        state = training_state(learner, more_of(learner))
        learner.fabric.load(path, state)
        _log.info("training goes on from %s, after %d epochs", path, learner.progress.epochs)
        self.within = learner.progress.within
        self.callbacks = copy.deepcopy(learner.callbacks.state_dict())
        self.rng = RNGState().state_dict()
        if self.within and len(state.get("data", {})) < len(learner.data):
            rank_zero_warn(
                f"The checkpoint {str(path)!r} was saved in the middle of an epoch, but data that is no"
                " `torch.utils.data.DataLoader` has no position to go on from: that epoch begins anew."
            )

    def restore(self, learner: Any) -> None:
        """Give the callbacks and the random number generators the saved state once more, at the beginning of an epoch.

        Args:
            learner: The learner.
        """
        if self.within:
            learner.callbacks.load_state_dict(self.callbacks)
            RNGState().load_state_dict(self.rng)


def more_of(learner: Any) -> dict[str, Any]:
    """The further objects that the `Checkpointer` among the callbacks saves."""
    from fabric_lite.callbacks.checkpointer import Checkpointer

    state: dict[str, Any] = {}
    for callback in map(unwrap, learner.callbacks):
        if isinstance(callback, Checkpointer):
            state.update(callback.state)
    return state
