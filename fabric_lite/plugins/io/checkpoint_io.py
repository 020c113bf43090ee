"""Where and how a checkpoint is kept: the seam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from fabric_lite.utilities.types import _PATH


class CheckpointIO(ABC):
    """Writes, reads and removes checkpoints. Subclass it to keep them elsewhere: ``Fabric(plugins=MyCheckpointIO())``.

    What a checkpoint contains, and which processes write it, is decided outside.
    """

    @abstractmethod
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What to write: tensors and plain values in any nesting.
            path: Where.
            storage_options: Whatever this kind of storage offers.
        """

    @abstractmethod
    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: Where it is.
            map_location: Where its tensors go, as for `torch.load`.
            weights_only: Whether to refuse everything but tensors and plain values. None means True.

        Returns:
            What was written.
        """

    @abstractmethod
    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, if it is there.

        Args:
            path: Where it is.
        """

    def teardown(self) -> None:
        """Give back what is held beyond the run."""
