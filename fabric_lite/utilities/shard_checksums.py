"""The checksums of a folder to which several processes have written: in a file of its own.

Each line has the CRC-32, the size and the name of a file, and the last one a digest of the lines before it. Together
they cover every byte of the folder. Other readers pass over the file.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

CHECKSUMS_FILENAME = ".checksums"
_NAME = b"fabric-lite checksums "
_VERSION = b"1"
_DIGEST_BYTES = 16
_CHUNK = 1 << 20


class Checksum(NamedTuple):
    """What is known of the bytes of a file."""

    crc: int
    size: int


class SummedFile(io.FileIO):
    """A file that is written from its beginning to its end.

    Attributes:
        checksum: Of what has been written.
    """

    checksum = Checksum(0, 0)

    @override
    def write(self, data: Any) -> int:
        written = super().write(data)
        with memoryview(data) as view, view.cast("B") as parts:
            crc, size = self.checksum
            self.checksum = Checksum(zlib.crc32(parts[:written], crc), size + (written or 0))
        return written


def checksum_of(file: Path) -> Checksum:
    """Read a file.

    Args:
        file: The file.

    Returns:
        Its checksum.
    """
    crc = size = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return Checksum(crc, size)


def write_checksums(folder: Path, checksums: Mapping[str, Checksum]) -> None:
    """Add the checksums of its files to a folder, and flush them to the disk.

    Args:
        folder: The folder.
        checksums: By the names of files.
    """
    lines = [f"{each.crc:08x} {each.size} {name}\n".encode() for name, each in sorted(checksums.items())]
    content = b"".join([_NAME + _VERSION + b"\n", *lines])
    with open(folder / CHECKSUMS_FILENAME, "wb") as file:
        file.write(content + _digest(content))
        file.flush()
        os.fsync(file.fileno())


def verify_folder(folder: Path, share: int = 0, shares: int = 1) -> bool:
    """Check the files of a folder.

    Args:
        folder: The folder.
        share: Which share of the files to check, if others check the others.
        shares: How many shares there are.

    Returns:
        False if it has no checksums, as one that was written elsewhere.

    Raises:
        pickle.UnpicklingError: If a checksum does not fit.
    """
    try:
        content = (folder / CHECKSUMS_FILENAME).read_bytes()
    except FileNotFoundError:
        return False
    lines = content[: -2 * _DIGEST_BYTES]
    if _digest(lines) != content[len(lines) :] or not lines.startswith(_NAME):
        raise _damaged(folder, CHECKSUMS_FILENAME)
    head, *rest = lines.decode().splitlines()
    version = head.encode().removeprefix(_NAME)
    if version != _VERSION:
        raise pickle.UnpicklingError(
            f"The checkpoint {str(folder)!r} has checksums of version {version.decode()!r}, and this fabric_lite knows"
            f" version {_VERSION.decode()!r}. Upgrade: pip install -U torch-fabric-lite"
        )
    entries = [(int(size), name, int(crc, 16)) for crc, size, name in (line.split(" ", 2) for line in rest)]
    for size, name, crc in sorted(entries, reverse=True)[share::shares]:
        try:
            found = checksum_of(folder / name)
        except FileNotFoundError as error:
            raise _damaged(folder, name, "it is not there") from error
        if found != (crc, size):
            raise _damaged(folder, name)
    return True


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest().encode()


def _damaged(folder: Path, name: str, what: str = "its checksum does not fit") -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f"The checkpoint {str(folder)!r} is damaged in {name!r}: {what}. Load an older one, or copy it again from where"
        f" it came. If another program has written to the folder since, remove {CHECKSUMS_FILENAME!r} from it."
    )
