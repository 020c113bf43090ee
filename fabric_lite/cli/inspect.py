"""``fabric-lite inspect``: what is in a checkpoint."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fabric_lite.cli._errors import CommandError
from fabric_lite.plugins.io.checksum import verify
from fabric_lite.plugins.io.errors import CheckpointError
from fabric_lite.plugins.io.outline import Foreign, TensorOutline, read_outline
from fabric_lite.utilities.load import _METADATA_FILENAME, _is_sharded_checkpoint
from fabric_lite.utilities.shard_checksums import verify_folder

_STEPS = re.compile(r"(progress\.)?(global_)?(step|epoch|iter|iteration|iter_num)s?")
_WIDTH = 40


class Entry(NamedTuple):
    """A line of the table.

    Attributes:
        key: The keys that lead to it, with dots between them.
        kind: Data type of a tensor, or type of a value.
        shown: Shape of a tensor, or a value.
        nbytes: Size of a tensor.
    """

    key: str
    kind: str
    shown: str
    nbytes: int | None


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show what is in a checkpoint",
        description="Prints the keys of a checkpoint with types, shapes and sizes, and whether its checksum fits. Runs"
        " no code of the checkpoint, and reads no tensors but for the checksum.",
        epilog="The exit status is 1 if the checkpoint is damaged.",
    )
    parser.add_argument("checkpoint", help="a file, or the folder of a sharded checkpoint")
    parser.add_argument("--no-checksum", action="store_true", help="do not check it: large files are shown at once")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show what is in a checkpoint.

    Returns:
        0, or 1 if it is damaged.

    Raises:
        CommandError: If it cannot be read.
    """
    path = Path(arguments.checkpoint)
    try:
        is_folder = _is_sharded_checkpoint(path)
        files = [file for file in path.iterdir() if file.is_file()] if is_folder else [path]
        size = sum(file.stat().st_size for file in files)
        checksum, is_damaged = ("not checked", False) if arguments.no_checksum else _checksum(path, is_folder)
        entries = [] if is_damaged else list(_sharded(path) if is_folder else _in_file(path))
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        raise CommandError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from error
    print(f"{path}: {_size(size)}, checksum: {checksum}")
    if not is_damaged:
        _print(entries)
    return int(is_damaged)


def _checksum(path: Path, is_folder: bool) -> tuple[str, bool]:
    """What there is to say of the checksum, and whether the checkpoint is damaged."""
    try:
        if is_folder:
            fits = verify_folder(path)
        else:
            with path.open("rb") as file:
                fits = verify(file, str(path))
    except (CheckpointError, pickle.UnpicklingError) as error:
        return f"DAMAGED. {error}", True
    return "fits" if fits else "none", False


def _in_file(path: Path) -> Iterator[Entry]:
    """The lines of a file."""
    with path.open("rb") as file:
        yield from _entries(read_outline(file))


def _entries(value: Any, key: str = "") -> Iterator[Entry]:
    """The lines of a nesting."""
    if isinstance(value, TensorOutline):
        shape = "×".join(map(str, value.shape)) or "scalar"
        yield Entry(key, str(value.dtype).removeprefix("torch."), shape, value.nbytes)
    elif isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _entries(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        for index, part in enumerate(value):
            yield from _entries(part, f"{key}.{index}")
    else:
        shown = repr(value)
        kind = "object" if isinstance(value, Foreign) else type(value).__name__
        yield Entry(key, kind, shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + "…", None)


def _sharded(folder: Path) -> Iterator[Entry]:
    """The lines of a folder that several processes have saved."""
    if os.path.isfile(folder / ".metadata"):
        from fabric_lite.utilities.shards import ShardReader

        reader = ShardReader(folder)
        tensors = reader.tensors()
        for name, keys in reader.paths().items():
            key = ".".join(map(str, keys))
            if name in tensors:
                yield from _entries(TensorOutline(tensors[name].dtype, tuple(tensors[name].shape), name), key)
            else:
                yield Entry(key, "object", "", None)
    if os.path.isfile(folder / _METADATA_FILENAME):
        yield from _in_file(folder / _METADATA_FILENAME)


def _print(entries: list[Entry]) -> None:
    rows = [
        (key if key.isprintable() else repr(key), kind, shown, "" if nbytes is None else _size(nbytes))
        for key, kind, shown, nbytes in entries
    ]
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    sizes = [entry.nbytes for entry in entries if entry.nbytes is not None]
    steps = [f"{entry.key} {entry.shown}" for entry in entries if entry.kind == "int" and _STEPS.fullmatch(entry.key)]
    print(", ".join([f"{len(sizes)} tensors of {_size(sum(sizes))}", f"{len(entries) - len(sizes)} values", *steps]))


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
