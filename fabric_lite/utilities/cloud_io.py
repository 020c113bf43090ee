"""Files on local disks and, through fsspec, elsewhere; fsspec is imported only when a path asks for it."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from fabric_lite.utilities.types import _MAP_LOCATION_TYPE, _PATH

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def get_filesystem(path: _PATH, **kwargs: Any) -> AbstractFileSystem:
    """Get the fsspec filesystem of a path or URL.

    Args:
        path: A local path, or a URL such as ``s3://bucket/folder``.
        kwargs: Options for the filesystem, for example credentials.

    Returns:
        The filesystem; it takes the path with or without its protocol.
    """
    from fsspec.core import url_to_fs

    return url_to_fs(str(path), **kwargs)[0]


def _is_object_storage(fs: AbstractFileSystem) -> bool:
    """Whether this is S3, Google Cloud Storage or Azure: stores that have keys, and no real folders."""
    return any(cls.__module__.partition(".")[0] in ("s3fs", "gcsfs", "adlfs") for cls in type(fs).__mro__)


def _is_dir(fs: AbstractFileSystem, path: _PATH, strict: bool = False) -> bool:
    """Whether the path is a folder, or could be one.

    Args:
        fs: The filesystem that the path belongs to.
        path: The path or URL.
        strict: On an object storage, a folder exists as soon as something is written to it, so that any path which is
            not a file passes; with ``strict=True`` something must be there already.
    """
    if _is_object_storage(fs) and not strict:
        return not fs.isfile(str(path))
    return bool(fs.isdir(str(path)))


def _is_local_file_protocol(path: _PATH) -> bool:
    """Whether the path has no protocol, or the protocol ``file``."""
    parts = re.split(r"::|://", str(path), maxsplit=1)
    return len(parts) == 1 or parts[0] == "file"


def _local_path(path: _PATH) -> str | None:
    """The path as `open` takes it, the home folder spelled out as fsspec does; None if it is not a local one."""
    if not _is_local_file_protocol(path):
        return None
    if str(path).startswith("file:"):
        from fsspec.implementations.local import LocalFileSystem

        return str(LocalFileSystem._strip_protocol(str(path)))
    return os.path.expanduser(str(path))


class _LocalFiles:
    """The few methods of an fsspec filesystem that log folders need, for local paths."""

    isdir = staticmethod(os.path.isdir)
    isfile = staticmethod(os.path.isfile)
    makedirs = staticmethod(os.makedirs)
    open = staticmethod(open)
    rm_file = staticmethod(os.unlink)

    @staticmethod
    def ls(path: str, detail: bool = False) -> list[str]:
        return [os.path.join(path, name) for name in os.listdir(path)]


def _files(path: _PATH) -> tuple[Any, str]:
    """The filesystem of a path, and the path as that filesystem takes it: fsspec's, unless the path is a local one."""
    if (local := _local_path(path)) is not None:
        return _LocalFiles(), local
    from fsspec.core import url_to_fs

    fs, stripped = url_to_fs(str(path))
    return fs, stripped


def _load(
    path_or_url: IO[bytes] | _PATH,
    map_location: _MAP_LOCATION_TYPE = None,
    weights_only: bool | None = None,
) -> Any:
    """Load what `torch.save` has written.

    Args:
        path_or_url: A path, a URL (``https://`` is downloaded into torch's hub cache, others go through fsspec), or an
            open file.
        map_location: Where to put the tensors, as `torch.load` takes it.
        weights_only: False also unpickles arbitrary objects, which can run any code: for files you trust. None means
            True.
    """
    options: Any = {"map_location": map_location, "weights_only": weights_only is not False}
    if not isinstance(path_or_url, (str, Path)):
        return torch.load(path_or_url, **options)
    if (local := _local_path(path_or_url)) is not None:
        return torch.load(local, **options)
    if str(path_or_url).startswith(("http://", "https://")):
        return torch.hub.load_state_dict_from_url(str(path_or_url), **options)
    fs, path = _files(path_or_url)
    with fs.open(path, "rb") as file:
        return torch.load(file, **options)


def _atomic_save(checkpoint: Any, filepath: _PATH) -> None:
    """Write a checkpoint with `torch.save` so that the path holds the old file or the whole new one, never a part.

    Args:
        checkpoint: Anything that `torch.save` takes.
        filepath: A path or fsspec URL; missing folders are made.

    Raises:
        OSError: If the file cannot be written. What was there before is untouched.
    """
    with _atomic_open(filepath) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's zip writer covers up why a write failed: "unexpected pos 704 vs 598"
            if isinstance(cause := error.__context__, OSError):
                raise OSError(cause.errno, cause.strerror, str(filepath)) from cause
            raise


@contextmanager
def _atomic_open(path: _PATH) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place under the path when the block ends, and vanishes if it raises."""
    local = _local_path(path)
    with _replace_remote(path) if local is None else _replace_local(local) as file:
        yield file


@contextmanager
def _replace_local(path: str) -> Iterator[IO[bytes]]:
    folder, name = os.path.split(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder or os.curdir)


def _sync_folder(folder: str) -> None:
    """Make a rename in the folder last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network filesystems flush files but not folders; the new file is in place either way
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _replace_remote(path: _PATH) -> Iterator[IO[bytes]]:
    fs, target = _files(path)
    if _is_object_storage(fs):
        # an object shows up when its upload ends, but fsspec also ends the upload of a file whose writer has raised
        buffer = io.BytesIO()
        yield buffer
        fs.pipe_file(target, buffer.getvalue())
        return
    fs.makedirs(fs._parent(target), exist_ok=True)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with fs.open(temporary, "wb") as file:
            yield file
        _move(fs, temporary, target)
    except BaseException:
        if fs.exists(temporary):
            fs.rm_file(temporary)
        raise


def _move(fs: AbstractFileSystem, source: str, target: str) -> None:
    from fsspec import AbstractFileSystem

    if type(fs).mv is not AbstractFileSystem.mv:
        fs.mv(source, target)
        return
    # not the inherited mv, which takes a "[" or "*" in a name for a pattern
    try:
        fs.cp_file(source, target)
    except NotImplementedError:
        fs.pipe_file(target, fs.cat_file(source))
    fs.rm_file(source)


def _append(path: _PATH, data: bytes) -> None:
    """Add bytes to the end of a file; if that fails, a local file is as long as it was before."""
    local = _local_path(path)
    if local is None:
        fs, target = _files(path)
        with _atomic_open(path) as file:
            file.write(fs.cat_file(target) + data)
        return
    size = os.path.getsize(local)
    try:
        with open(local, "ab") as file:
            file.write(data)
    except BaseException:
        os.truncate(local, size)
        raise
