"""Checkpoints as files of `torch.save`."""

from __future__ import annotations

import glob
from typing import Any

from typing_extensions import override

from fabric_lite.plugins.io.checkpoint_io import CheckpointIO
from fabric_lite.utilities.types import _PATH


class TorchCheckpointIO(CheckpointIO):
    """Writes one file with `torch.save`, whole or not at all, and reads it with `torch.load`."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError(
                f"`{type(self).__name__}` has no storage options, but got {storage_options!r}. Leave them out, or pass"
                " a `CheckpointIO` of your own: `Fabric(plugins=...)`."
            )
        from fabric_lite.utilities.cloud_io import _atomic_save

        _atomic_save(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        from fabric_lite.utilities.cloud_io import _load

        checkpoint: dict[str, Any] = _load(path, map_location=map_location, weights_only=weights_only)
        return checkpoint

    @override
    def remove_checkpoint(self, path: _PATH) -> None:
        from fabric_lite.utilities.cloud_io import get_filesystem

        filesystem = get_filesystem(path)
        if filesystem.isdir(str(path)):
            filesystem.rm(glob.escape(str(path)), recursive=True)
        elif filesystem.exists(str(path)):
            filesystem.rm_file(filesystem._strip_protocol(str(path)))  # `rm` would take a "[" for a pattern
