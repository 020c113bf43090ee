"""The checksum of a checkpoint file: in the comment at the end of the zip file that `torch.save` writes.

torch keeps a CRC-32 of each record (the bytes of a tensor, say) in the zip file's directory, and never looks at it. The
comment has a digest of all other bytes, those of the directory with the CRCs among them. Together they cover every byte
of the file, and what `torch.save` has computed already is not computed again. Other readers pass over the comment.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

from torch.serialization import get_crc32_options

from fabric_lite.plugins.io.errors import CheckpointError

_NAME = b"fabric-lite checkpoint "
_MARK = _NAME + b"1 blake2b "
_DIGEST_BYTES = 16
_COMMENT_BYTES = len(_MARK) + 2 * _DIGEST_BYTES
_END = b"PK\5\6"  # begins the last record of a zip file, which ends with the length of the comment and the comment
_END_BYTES = 22
_CHUNK = 1 << 20


class _Record(NamedTuple):
    """The bytes of a file in the zip file."""

    name: str
    start: int
    size: int
    crc: int


def seal(file: IO[bytes]) -> None:
    """Add the checksum to what `torch.save` has written; not if torch was told to compute none.

    Args:
        file: Open for reading and writing.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _END_BYTES))
    last = file.read()
    if not get_crc32_options() or not (last.startswith(_END) and last.endswith(b"\0\0")):
        return  # torch can also be told to write a format that is no zip file
    file.seek(end - 2)
    file.write(struct.pack("<H", _COMMENT_BYTES))
    file.write(bytes(_COMMENT_BYTES))  # zipfile reads no directory whose comment is missing
    digest, _ = _digest(file, end)
    file.seek(end)
    file.write(_MARK + digest)


def verify(file: IO[bytes], name: str) -> bool:
    """Check the checksum of a file.

    Args:
        file: The file, which is left at its beginning.
        name: What it is called in an error.

    Returns:
        False if it has none, as one that was written elsewhere.

    Raises:
        CheckpointError: If it does not fit.
    """
    tail = _tail(file)
    try:
        if not tail.startswith(_END, -_END_BYTES - _COMMENT_BYTES) and not tail.startswith(_MARK, -_COMMENT_BYTES):
            return _has_foreign_end(file, tail, name)
        place: str | None = "its structure"
        cause = None
        try:
            digest, records = _digest(file, file.seek(0, os.SEEK_END) - _COMMENT_BYTES)
            if tail.endswith(_MARK + digest):
                place = _damaged(file, records)
        except (BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            cause = error
        if place:
            raise CheckpointError(
                f"The checkpoint {name!r} is damaged in {place}: its checksum does not fit. Load an older one, or copy"
                " it again from where it came."
            ) from cause
        return True
    finally:
        file.seek(0)


def _tail(file: IO[bytes]) -> bytes:
    """As much of the end of a file as a zip file's end with a comment can be long."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_BYTES - 0xFFFF))
    return file.read()


def _has_foreign_end(file: IO[bytes], tail: bytes, name: str) -> bool:
    """False, unless the end of the file is that of one with a comment, which only we write, in another form."""
    file.seek(0)
    at = tail.rfind(_END)
    if file.read(4) != b"PK\3\4" or at < 0:
        return False
    (length,) = struct.unpack_from("<H", tail.ljust(at + _END_BYTES, b"\0"), at + _END_BYTES - 2)
    comment = tail[at + _END_BYTES :]
    if not length and not comment:
        return False
    if len(comment) == length and comment.startswith(_NAME):
        version = comment[len(_NAME) :].split()[0].decode(errors="replace")
        raise CheckpointError(
            f"The checkpoint {name!r} has a checksum of version {version!r}, and this fabric_lite knows version '1'."
            " Upgrade: pip install -U torch-fabric-lite"
        )
    raise CheckpointError(
        f"The checkpoint {name!r} is truncated or damaged at its end: there is a zip file's comment of {len(comment)}"
        f" bytes, where {length} should be, without the checksum of a checkpoint. Load an older one, or copy it again."
    )


def _digest(file: IO[bytes], end: int) -> tuple[bytes, list[_Record]]:
    """The digest of all bytes before the end that belong to no record, and the records."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    records = []
    position = 0
    for entry in entries:
        file.seek(max(0, entry.header_offset) + 26)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        if not position <= start <= start + entry.compress_size <= end:
            raise ValueError(f"the place of {entry.filename!r}")
        for chunk in _chunks(file, position, start):
            digest.update(chunk)
        position = start + entry.compress_size
        records.append(_Record(entry.filename, start, entry.compress_size, entry.CRC))
    for chunk in _chunks(file, position, end):
        digest.update(chunk)
    return digest.hexdigest().encode(), records


def _damaged(file: IO[bytes], records: list[_Record]) -> str | None:
    """The first record that does not have the bytes any more with which it was written."""
    for record in records:
        crc = 0
        for chunk in _chunks(file, record.start, record.start + record.size):
            crc = zlib.crc32(chunk, crc)
        if crc != record.crc:
            return repr(record.name)
    return None


def _chunks(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end:
        chunk = file.read(min(_CHUNK, end - start))
        if not chunk:
            raise ValueError("it ends too early")
        start += len(chunk)
        yield chunk
