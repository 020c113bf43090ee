"""The folder of a sharded checkpoint: written beside the target, and under its final name when all of it is there."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fabric_lite.plugins.io import TorchCheckpointIO
from fabric_lite.utilities.load import _METADATA_FILENAME, _is_sharded_checkpoint
from fabric_lite.utilities.shard_checksums import Checksum, SummedFile, checksum_of, write_checksums

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 300.0


def beside(path: Path, kind: str) -> Path:
    """The name of what is written or kept beside a checkpoint.

    Args:
        path: The checkpoint.
        kind: ``tmp`` for what is not complete yet, ``old`` for what was there before.
    """
    return path.with_name(f".{path.name}.{kind}")


def found(path: Path) -> Path:
    """Where a checkpoint is: beside its name, if a process was killed between two renames, where one is not enough.

    Args:
        path: The checkpoint.
    """
    before = beside(path, "old")
    return before if not path.exists() and _is_sharded_checkpoint(before) else path


def prepare(path: Path) -> None:
    """Make the folder to write to. What killed processes have left goes.

    Args:
        path: The checkpoint.

    Raises:
        IsADirectoryError: If there are other things in the place of the checkpoint.
    """
    if path.is_dir() and any(path.iterdir()) and not _is_sharded_checkpoint(path):
        raise IsADirectoryError(f"{str(path)!r} is a folder with other things in it. Choose another path.")
    if (before := found(path)) != path:
        before.rename(path)
    for kind in ("tmp", "old"):
        _remove(beside(path, kind))
    beside(path, "tmp").mkdir(parents=True)


def finish(path: Path, rest: dict[str, Any], checksums: Mapping[str, Checksum]) -> None:
    """Add to the prepared folder what is not sharded, and give it its final name.

    Args:
        path: The checkpoint.
        rest: What is not sharded.
        checksums: Of the files that are there.
    """
    from fabric_lite.utilities.cloud_io import _sync_folder

    folder = beside(path, "tmp")
    file = folder / _METADATA_FILENAME
    TorchCheckpointIO().save_checkpoint(rest, file)
    write_checksums(folder, {**checksums, file.name: checksum_of(file)})
    _sync_folder(str(folder))
    replace(folder, path)


def replace(source: Path, target: Path) -> None:
    """Give a file or folder its final name. What was there before goes when the new one is in its place.

    Args:
        source: Where it is.
        target: Its final name.
    """
    from fabric_lite.utilities.cloud_io import _sync_folder

    before = source
    if not target.exists():
        source.rename(target)
    elif not _exchange(source, target):
        before = beside(target, "old")
        target.rename(before)
        source.rename(target)
    _sync_folder(str(target.parent))
    _remove(before)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places, at once; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- in the background, where no process speaks to another -------------------------------------------------------------


def write_parts(
    path: Path, rank: int, world_size: int, contents: dict[str, memoryview], rest: dict[str, Any] | None
) -> None:
    """Write the files of this process to the prepared folder. The first process waits for the others, and finishes.

    Args:
        path: The checkpoint.
        rank: The rank of this process.
        world_size: How many processes there are.
        contents: What to write, by the names of files.
        rest: What is not sharded, in the first process.

    Raises:
        OSError: If one of them cannot write.
    """
    folder = beside(path, "tmp")
    try:
        checksums = {name: _write(folder / name, content) for name, content in contents.items()}
        _leave(folder / f"{rank}.written", checksums)
    except OSError as error:
        with suppress(OSError):  # the first process gives up after a while
            _leave(folder / f"{rank}.failed", str(error))
        raise OSError(error.errno, f"The checkpoint {str(path)!r} was not written. {error}") from error
    if rank == 0:
        finish(path, rest or {}, _await_parts(path, world_size))


def _write(file: Path, content: memoryview) -> Checksum:
    with SummedFile(file, "w") as raw:
        done = 0
        while done < len(content):
            done += raw.write(content[done : done + (1 << 24)])
        os.fsync(raw.fileno())
        return raw.checksum


def _leave(file: Path, message: Any) -> None:
    """Tell the first process, which sees nothing or all of it."""
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(json.dumps(message))
    draft.rename(file)


def _await_parts(path: Path, world_size: int) -> dict[str, Checksum]:
    """Wait until all processes have written, as long as there is some progress."""
    folder = beside(path, "tmp")
    seen, since = -1, time.monotonic()
    while missing := [rank for rank in range(world_size) if not (folder / f"{rank}.written").exists()]:
        for rank in missing:
            if (mark := folder / f"{rank}.failed").exists():
                reason = json.loads(mark.read_text())
                raise OSError(f"The checkpoint {str(path)!r} was not written. Rank {rank} says: {reason}")
        if (size := sum(file.stat().st_size for file in folder.glob("*.distcp"))) != seen:
            seen, since = size, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_SECONDS:
            raise OSError(
                f"The checkpoint {str(path)!r} was not written: for {_PATIENCE_SECONDS:.0f} seconds, nothing came from"
                f" ranks {missing}. All processes have to see the same disk."
            )
        time.sleep(_LOOK_SECONDS)
    checksums: dict[str, Checksum] = {}
    for mark in (folder / f"{rank}.written" for rank in range(world_size)):
        checksums.update({name: Checksum(*each) for name, each in json.loads(mark.read_text()).items()})
        mark.unlink()
    return checksums
