"""Checkpoints as files of `torch.save`."""

from __future__ import annotations

import errno
import glob
import io
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlsplit

import torch
from typing_extensions import override

from fabric_lite.plugins.io.checkpoint_io import CheckpointIO
from fabric_lite.plugins.io.errors import CheckpointError, UnsafeCheckpointError
from fabric_lite.utilities.types import _MAP_LOCATION_TYPE, _PATH

_FLUSH_SECONDS = 0.02  # between looks at how much there is to flush
_FLUSH_BYTES = 1 << 26


class TorchCheckpointIO(CheckpointIO):
    """Writes one file with `torch.save`, whole or not at all, and reads it with `torch.load`.

    The file has a checksum, which is checked before it is read. One that was written elsewhere needs none.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError(
                f"`{type(self).__name__}` has no storage options, but got {storage_options!r}. Leave them out, or pass"
                " a `CheckpointIO` of your own: `Fabric(plugins=...)`."
            )
        _write(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = _read(path, map_location, weights_only)
        return checkpoint

    @override
    def remove_checkpoint(self, path: _PATH) -> None:
        from fabric_lite.utilities.cloud_io import get_filesystem

        filesystem = get_filesystem(path)
        if filesystem.isdir(str(path)):
            filesystem.rm(glob.escape(str(path)), recursive=True)
        elif filesystem.exists(str(path)):
            filesystem.rm_file(filesystem._strip_protocol(str(path)))  # `rm` would take a "[" for a pattern


def _write(checkpoint: Any, path: _PATH) -> None:
    """Write a checkpoint so that the path holds the old file or the whole new one, never a part.

    Args:
        checkpoint: Anything that `torch.save` takes.
        path: A path or fsspec URL; missing folders are made.

    Raises:
        OSError: If the file cannot be written. What was there before is untouched.
    """
    from fabric_lite.plugins.io.checksum import seal
    from fabric_lite.utilities.cloud_io import _atomic_open

    with _atomic_open(path) as file, _flushed_meanwhile(file):
        try:
            torch.save(checkpoint, file)
        except Exception as error:
            # torch's zip writer covers up why a write failed: "unexpected pos 704 vs 598"
            if isinstance(cause := error.__context__, OSError) and isinstance(error, RuntimeError):
                raise OSError(cause.errno, cause.strerror, str(path)) from cause
            _name_culprit(checkpoint, error)
            raise
        seal(file)


@contextmanager
def _flushed_meanwhile(file: IO[bytes]) -> Iterator[None]:
    """Under it, what is written goes to the disk at once, so that there is little left to wait for in the end."""
    if isinstance(file, io.BytesIO) or not hasattr(os, "fdatasync"):
        yield
        return
    done = threading.Event()
    errors: list[OSError] = []

    def flush() -> None:
        flushed = 0
        try:
            while not done.wait(_FLUSH_SECONDS):
                size = os.fstat(file.fileno()).st_size
                if size - flushed >= _FLUSH_BYTES:  # each time costs something, too
                    os.fdatasync(file.fileno())
                    flushed = size
        except OSError as error:
            errors.append(error)  # the system tells of it once only

    thread = threading.Thread(target=flush, name="fabric-lite-flush", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


class _Probe(pickle.Pickler):
    """Pickles all but the bytes of tensors."""

    def persistent_id(self, obj: Any) -> Any:
        return "tensor" if isinstance(obj, torch.Tensor) or torch.is_storage(obj) else None


def _name_culprit(checkpoint: Any, error: Exception) -> None:
    """Add to an error where in a checkpoint there is something that does not pickle."""
    add_note = getattr(error, "add_note", None)  # which errors of Python 3.10 do not have
    if add_note is None or not isinstance(checkpoint, dict):
        return
    for key, value in checkpoint.items():
        try:
            _Probe(io.BytesIO(), 2).dump(value)
        except Exception:
            add_note(
                f"It is in state[{key!r}] of the checkpoint, of the type `{type(value).__name__}`. Save a plain value"
                " or a `state_dict()` in its place."
            )
            return


def _read(path: IO[bytes] | _PATH, map_location: _MAP_LOCATION_TYPE = None, weights_only: bool | None = None) -> Any:
    """Read what `torch.save` has written, after its checksum, if it has one, was checked.

    Args:
        path: A path, a URL (``https://`` is downloaded into torch's hub cache, others go through fsspec), or an open
            file.
        map_location: Where to put the tensors, as `torch.load` takes it.
        weights_only: False also unpickles arbitrary objects, which can run any code: for files you trust. None means
            True.

    Raises:
        CheckpointError: If it is damaged, or no checkpoint.
    """
    from fabric_lite.utilities.cloud_io import _files, _local_path

    options: Any = {"map_location": map_location, "weights_only": weights_only is not False}
    if not isinstance(path, (str, os.PathLike)):
        return _read_file(path, getattr(path, "name", repr(path)), options)
    if (local := _local_path(path)) is not None:
        if os.path.isdir(local):
            raise CheckpointError(
                f"{local!r} is a folder, and no checkpoint. Name a file in it, or a folder that `FSDPStrategy` saved."
            )
        with open(local, "rb") as file:
            return _read_file(file, local, options)
    if str(path).startswith(("http://", "https://")):
        return _read(_download(str(path)), map_location, weights_only)
    fs, remote = _files(path)
    return _read_file(io.BytesIO(fs.cat_file(remote)), str(path), options)  # fetched once, read twice


def _download(url: str) -> str:
    """Bring a file into torch's hub cache, unless it is there."""
    target = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlsplit(url).path))
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        torch.hub.download_url_to_file(url, target)
    return target


def _read_file(file: IO[bytes], name: str, options: dict[str, Any]) -> Any:
    from fabric_lite.plugins.io.checksum import verify
    from fabric_lite.utilities.plain_types import plain_types_admitted

    if not file.read(1):
        raise CheckpointError(f"The checkpoint {name!r} is empty: the disk may have been full. Load an older one.")
    intact = verify(file, name)
    try:
        with plain_types_admitted():
            return torch.load(file, **options)
    except pickle.UnpicklingError as error:
        if options["weights_only"] and (found := _unsafe(file)):
            raise UnsafeCheckpointError(
                f"The checkpoint {name!r} has more in it than tensors and plain values: {found}. Such objects can run"
                " any code when they are loaded. If you trust where the file comes from, write"
                f" `fabric.load({name!r}, ..., weights_only=False)`."
            ) from error
        cause: Exception = error
    except (MemoryError, ImportError, AttributeError):
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which a place before the beginning of the file gives: its end is missing
            raise
        cause = error
    except Exception as error:
        if intact:
            raise  # the file is not to blame
        cause = error
    raise CheckpointError(f"{name!r} {_diagnosis(file, cause)}") from cause


def _unsafe(file: IO[bytes]) -> str:
    """Where in a file there are objects that torch refuses to load; empty if there are none."""
    from fabric_lite.plugins.io.outline import foreign_parts, read_outline
    from fabric_lite.utilities.plain_types import plain_types_admitted

    try:
        outline = read_outline(file)
        file.seek(0)
        with plain_types_admitted():
            names = frozenset(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (ValueError, RuntimeError):
        return ""
    found = [f"`{name}` in state{where}" for where, name in foreign_parts(outline, names)]
    return ", ".join(found[:5] + ["…"] * (len(found) > 5)) or ", ".join(sorted(names))


def _diagnosis(file: IO[bytes], error: Exception) -> str:
    """What a file is that torch cannot read."""
    file.seek(0)
    head = file.read(16)
    if head.startswith(b"PK\3\4"):
        reason = str(error).partition("\n")[0]
        if isinstance(error, OSError) or "central directory" in reason:
            return "is a truncated checkpoint, whose end is missing. Load an older one, or copy it again."
        return f"is damaged, or a zip file but no checkpoint of `torch.save`: {reason}"
    if head[8:10] == b'{"':
        return "is a file of safetensors, and no checkpoint of `torch.save`: `safetensors.torch.load_file` reads it."
    return f"is no checkpoint of `torch.save`: it begins with {head!r}."
