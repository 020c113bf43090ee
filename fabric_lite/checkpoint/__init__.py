"""What is in a checkpoint, and how it goes back into the objects that it came from."""

from fabric_lite.plugins.io.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["CheckpointError", "UnsafeCheckpointError"]
