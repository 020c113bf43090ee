"""Files on local disks and, through fsspec, elsewhere; fsspec is imported only when a path asks for it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from fabric_lite.utilities.types import _PATH

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where an open file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

_REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere. What was there before is untouched",
    errno.EDQUOT: "free some of your quota, or write elsewhere. What was there before is untouched",
    errno.EFBIG: "raise the limit (`ulimit -f`), or write elsewhere. What was there before is untouched",
    errno.EACCES: "write to a folder that is yours, or have its permissions changed",
    errno.EPERM: "write to a folder that is yours, or have its permissions changed",
    errno.EROFS: "write to a disk that is not mounted read-only",
    errno.EISDIR: "a folder has the name of the file; remove it, or choose another name",
    errno.EEXIST: "what is there is in the way; remove it, or choose another name",
    errno.ENOTDIR: "a file is in the place of a folder of the path; remove it, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_REMOTE_SUFFIX = r"\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.tmp"


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


@contextmanager
def _atomic_open(path: _PATH) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place under the path when the block ends, and vanishes if it raises.

    It can be read and sought in, too. What a killed process has left of such a file is removed.

    Raises:
        OSError: If it cannot be written, with what to do about it. What was there before is untouched.
    """
    local = _local_path(path)
    try:
        with _replace_remote(path) if local is None else _replace_local(local) as file:
            yield file
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise _with_remedy(error, str(path)) from error


@contextmanager
def _replace_local(path: str) -> Iterator[IO[bytes]]:
    folder, name = os.path.split(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    _refuse_to_replace(path)
    _remove_left_overs(folder or os.curdir, name)
    temporary, file = _open_temporary(folder, name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # while the lock is held, and nobody takes it for a left-over
                os.replace(temporary, path)
        if fcntl is None:  # where an open file cannot be renamed
            os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder or os.curdir)


def _refuse_to_replace(path: str) -> None:
    """Raise if in the place of the file there is a folder, or a device, which a rename would replace for root."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "Something that is no regular file is in the way", path)


def _open_temporary(folder: str, name: str) -> tuple[str, BinaryIO]:
    """Make the file beside the target that is written first, and lock it while it is open."""
    while True:
        path = os.path.join(folder, f".{_stem(name)}.{secrets.token_hex(4)}.tmp")
        file = open(path, "x+b")  # noqa: SIM115 - the caller closes it
        if _lock(file, unknown=True) and os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # somebody who cleans up was faster than the lock


def _lock(file: IO[bytes], unknown: bool) -> bool:
    """Take the lock of a file.

    Returns:
        False if another open file has it; ``unknown`` where there are no locks, as on some network filesystems.
    """
    if fcntl is None:
        return unknown
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else unknown
    return True


def _remove_left_overs(folder: str, name: str) -> None:
    """Remove what killed processes have left of earlier attempts to write a file."""
    pattern = re.compile(re.escape(f".{_stem(name)}.") + r"[0-9a-f]{8}\.tmp")
    with os.scandir(folder) as entries:
        found = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for path in found:
        with suppress(FileNotFoundError, PermissionError):  # somebody else has removed it; it is another user's
            with open(path, "r+b") as file:
                dead = _lock(file, unknown=fcntl is None)  # Windows does not remove what is open
                if dead and fcntl is not None:
                    os.unlink(path)
            if dead and fcntl is None:
                os.unlink(path)


def _stem(name: str) -> str:
    """What the names of temporary files have of the target's: all of it, unless that leaves no room."""
    return name if len(os.fsencode(name)) <= 200 else hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


def _with_remedy(error: OSError, path: str) -> OSError:
    """The error with what to do about it, and the path that the user knows."""
    culprit = str(error.filename or path)
    named = "" if culprit == path or culprit.endswith(".tmp") else f" ({culprit!r})"
    return OSError(error.errno, f"{error.strerror}{named}: {_REMEDIES[error.errno or 0]}", path)


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
    # in memory first: some filesystems also end the upload of a file whose writer has raised
    buffer = io.BytesIO()
    yield buffer
    fs, target = _files(path)
    if _is_object_storage(fs):
        fs.pipe_file(target, buffer.getvalue())  # the object shows up when the upload ends
        return
    if fs.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    folder = fs._parent(target)
    fs.makedirs(folder, exist_ok=True)
    writer = f"{_host()}-{os.getpid()}"
    for left_over in fs.ls(folder, detail=False):
        found = re.fullmatch(re.escape(target.rsplit("/", 1)[-1]) + _REMOTE_SUFFIX, left_over.rsplit("/", 1)[-1])
        if found and found["host"] == _host() and not _is_running(int(found["pid"])):
            fs.rm_file(left_over)
    temporary = f"{target}.{writer}-{secrets.token_hex(4)}.tmp"
    try:
        fs.pipe_file(temporary, buffer.getvalue())
        _move(fs, temporary, target)
    except BaseException:
        if fs.exists(temporary):
            fs.rm_file(temporary)
        raise


def _host() -> str:
    """A short name of this machine."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _is_running(pid: int) -> bool:
    """Whether there is a process with that id on this machine; True where one cannot ask."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
