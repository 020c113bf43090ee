"""Which checkpoint in a folder to go on from."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from fabric_lite.plugins.io.errors import CheckpointError
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.types import _PATH


def find_latest(folder: _PATH, suffix: str = ".ckpt") -> str | None:
    """The newest checkpoint in a folder that is whole. One that is damaged is passed over, with a warning.

    Args:
        folder: A path or fsspec URL. It need not be there.
        suffix: How names of checkpoints end, files and sharded folders.

    Returns:
        Its path, as the folder was given; None if there is none.
    """
    from fabric_lite.utilities.cloud_io import get_filesystem

    files = get_filesystem(folder)
    if not files.isdir(str(folder)):
        return None
    found = [entry for entry in files.ls(str(folder), detail=True) if entry["name"].rstrip("/").endswith(suffix)]
    for entry in sorted(found, key=lambda entry: (files.modified(entry["name"]), entry["name"]), reverse=True):
        path = f"{str(folder).rstrip('/')}/{entry['name'].rstrip('/').rpartition('/')[2]}"
        if problem := _problem(files, entry):
            rank_zero_warn(f"The checkpoint {path!r} is passed over, and an older one looked for: {problem}")
        else:
            return path
    return None


def _problem(files: Any, entry: dict[str, Any]) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    from fabric_lite.plugins.io.checksum import verify

    name = entry["name"]
    if entry["type"] == "directory":
        return _problem_of_folder(Path(name))
    with files.open(name, "rb") as file:
        try:
            if not verify(file, name) and not zipfile.is_zipfile(file):
                return "it is no file that `torch.save` has written, or only a part of one."
        except (CheckpointError, OSError) as error:
            return str(error)
    return None


def _problem_of_folder(folder: Path) -> str | None:
    from fabric_lite.utilities.shard_checksums import verify_folder

    if not (folder / ".metadata").exists():
        return "it is a folder without the metadata of a sharded one."
    try:
        verify_folder(folder)
    except (pickle.UnpicklingError, OSError) as error:
        return str(error)
    return None
