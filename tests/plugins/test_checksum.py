"""A flipped byte is noticed wherever it is, and other readers read the file as if there were no checksum."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.fabric
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite import Fabric
from fabric_lite.checkpoint import CheckpointError
from fabric_lite.plugins.io.checksum import seal, verify

STATE = {"model": {"weight": torch.arange(64.0).reshape(8, 8), "bias": torch.ones(3)}, "step": 3, "text": "abc"}
COMMENT = 2 * 16 + len(b"fabric-lite checkpoint 1 blake2b ")


def written(state: Any = STATE) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    seal(file)
    return file.getvalue()


DATA = written()
SPECIAL = {
    "the first byte": 0,
    "the last byte": len(DATA) - 1,
    "the length of the comment": len(DATA) - COMMENT - 2,
    "its second byte": len(DATA) - COMMENT - 1,
    "the end record": len(DATA) - COMMENT - 22,
    "the place of the directory": len(DATA) - COMMENT - 6,
    "the mark": len(DATA) - COMMENT,
    "the version": DATA.index(b" 1 blake2b ") + 1,
    "the digest": len(DATA) - 32,
    "a weight": DATA.index(torch.arange(64.0).numpy().tobytes()) + 17,
    "the padding of a record": DATA.index(b"ZZZ"),
    "a name": DATA.index(b"data/0"),
}


def flipped(position: int, bits: int = 0xFF) -> io.BytesIO:
    data = bytearray(DATA)
    data[position] ^= bits
    return io.BytesIO(bytes(data))


def test_what_was_written_fits() -> None:
    assert verify(io.BytesIO(DATA), "a.ckpt")
    assert verify(io.BytesIO(written({})), "a.ckpt")
    assert verify(io.BytesIO(written(torch.zeros(2_000_000))), "a.ckpt")  # several chunks


@pytest.mark.parametrize("place", SPECIAL)
def test_a_flipped_bit_at_a_special_place(place: str) -> None:
    for bit in range(8):
        with pytest.raises(CheckpointError, match=r"The checkpoint 'a\.ckpt'"):
            verify(flipped(SPECIAL[place], 1 << bit), "a.ckpt")


def test_a_flipped_byte_at_each_of_many_positions(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu")
    fabric.save(tmp_path / "a.ckpt", STATE)
    whole = (tmp_path / "a.ckpt").read_bytes()
    draw = random.Random(0)
    for position in draw.sample(range(len(whole)), 100):
        data = bytearray(whole)
        data[position] ^= draw.randrange(1, 256)
        (tmp_path / "b.ckpt").write_bytes(bytes(data))
        with pytest.raises(CheckpointError, match=r"b\.ckpt' (is|has)"):
            fabric.load(tmp_path / "b.ckpt")


def test_every_byte_counts() -> None:
    for position in range(len(DATA)):
        with pytest.raises(CheckpointError):
            verify(flipped(position), "a.ckpt")


def test_it_says_which_part_is_damaged() -> None:
    with pytest.raises(CheckpointError, match=r"'a\.ckpt' is damaged in '\w+/data/0': its checksum does not fit"):
        verify(flipped(SPECIAL["a weight"]), "a.ckpt")
    with pytest.raises(CheckpointError, match="is damaged in its structure"):
        verify(flipped(SPECIAL["the padding of a record"]), "a.ckpt")


def read(data: bytes) -> Any:
    file = io.BytesIO(data)
    verify(file, "a.ckpt")
    return torch.load(file)


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_file(length: int) -> None:
    with pytest.raises((CheckpointError, RuntimeError, EOFError, UnpicklingError)):  # what we do not notice, torch does
        read(DATA[:length])


@pytest.mark.parametrize("cut", [False, True], ids=["a byte of the directory is flipped", "its end is missing"])
def test_a_file_on_a_disk_whose_parts_seem_to_be_before_its_beginning(tmp_path: Path, cut: bool) -> None:
    """A file has other errors for such a place than what is in memory."""
    fabric = Fabric(accelerator="cpu")
    state = {"weight": torch.ones(2000)}  # torch looks for the directory in the last 4 kB
    fabric.save(tmp_path / "a.ckpt", state)
    whole = (tmp_path / "a.ckpt").read_bytes()
    directory = whole.index(b"PK\1\2")
    for position in range(4097, len(whole) - 50, 97) if cut else range(directory, len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0x80
        (tmp_path / "b.ckpt").write_bytes(whole[:position] if cut else bytes(flipped))
        with pytest.raises(CheckpointError, match=r"b\.ckpt' (is|has)"):
            fabric.load(tmp_path / "b.ckpt")


@given(st.integers(0, len(DATA) - 1), st.integers(1, 100))
def test_a_piece_that_is_missing_or_twice_there(start: int, length: int) -> None:
    for data in (DATA[:start] + DATA[start + length :], DATA[: start + length] + DATA[start:]):
        with pytest.raises((CheckpointError, RuntimeError, EOFError, UnpicklingError)):
            read(data)


def test_a_later_version() -> None:
    data = DATA.replace(b"checkpoint 1 blake2b", b"checkpoint 2 blake3b!")
    end = data.rindex(b"PK\5\6")
    data = data[: end + 20] + (COMMENT + 1).to_bytes(2, "little") + data[end + 22 :]
    with pytest.raises(
        CheckpointError, match=r"a checksum of version '2', and this fabric_lite knows version '1'.*pip"
    ):
        verify(io.BytesIO(data), "a.ckpt")


def test_what_others_wrote_has_none() -> None:
    file = io.BytesIO()
    torch.save(STATE, file)
    assert not verify(file, "a.ckpt")
    assert file.tell() == 0
    old = io.BytesIO()
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    end = old.tell()
    seal(old)
    assert len(old.getvalue()) == end
    assert not verify(old, "a.ckpt")


def test_none_without_the_crcs_of_torch(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        fabric = Fabric(accelerator="cpu")
        fabric.save(tmp_path / "a.ckpt", STATE)
        with (tmp_path / "a.ckpt").open("rb") as file:
            assert not verify(file, "a.ckpt")
        assert fabric.load(tmp_path / "a.ckpt")["step"] == 3
    finally:
        torch.serialization.set_crc32_options(True)


def test_other_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    Fabric(accelerator="cpu").save(path, STATE)
    for loaded in (
        torch.load(path),
        torch.load(path, mmap=True),
        torch.load(io.BytesIO(path.read_bytes())),
        lightning.fabric.Fabric(accelerator="cpu", devices=1).load(path),
    ):
        assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])
        assert (loaded["step"], loaded["text"]) == (3, "abc")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"fabric-lite checkpoint 1 blake2b ")
