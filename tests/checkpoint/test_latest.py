"""Which checkpoint of a folder is gone on from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.checkpoint.latest import find_latest


def save(folder: Path, *names: str) -> list[Path]:
    """Checkpoints, each newer than the one before."""
    paths = [folder / name for name in names]
    for age, path in enumerate(paths):
        Fabric(accelerator="cpu", devices=1).save(path, {"age": age, "values": torch.arange(1000)})
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    return paths


def test_the_newest(tmp_path: Path) -> None:
    save(tmp_path, "z.ckpt", "a.ckpt", "m.txt")
    assert find_latest(tmp_path) == f"{tmp_path}/a.ckpt"
    assert find_latest(str(tmp_path) + "/", suffix=".txt") == f"{tmp_path}/m.txt"


def test_none(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", ["a byte", "the end", "everything", "the beginning"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    good, bad = save(tmp_path, "good.ckpt", "bad.ckpt")
    content = bad.read_bytes()
    middle = content.index(torch.arange(500, 600).numpy().tobytes())
    damaged = {
        "a byte": content[:middle] + b"\xff" + content[middle + 1 :],
        "the end": content[: len(content) // 2],
        "everything": b"",
        "the beginning": content[100:],
    }
    bad.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=re.escape(f"{str(bad)!r} is passed over, and an older one looked for: ")):
        assert find_latest(tmp_path) == str(good)


def test_one_that_was_written_elsewhere(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "plain.ckpt")
    assert find_latest(tmp_path) == f"{tmp_path}/plain.ckpt"


def test_a_folder(tmp_path: Path) -> None:
    for name in ("sharded.ckpt", "other.ckpt"):
        (tmp_path / name).mkdir()
    (tmp_path / "sharded.ckpt" / ".metadata").write_bytes(b"")
    os.utime(tmp_path / "sharded.ckpt", (1, 1))
    with pytest.warns(UserWarning, match="it is a folder without the metadata of a sharded one"):
        assert find_latest(tmp_path) == f"{tmp_path}/sharded.ckpt"


def test_a_damaged_folder(tmp_path: Path) -> None:
    from fabric_lite.utilities.shard_checksums import CHECKSUMS_FILENAME

    (good,) = save(tmp_path, "good.ckpt")
    folder = tmp_path / "sharded.ckpt"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"")
    (folder / CHECKSUMS_FILENAME).write_bytes(b"what is no list of checksums")
    with pytest.warns(UserWarning, match=re.escape(f"{str(folder)!r} is passed over, and an older one looked for: ")):
        assert find_latest(tmp_path) == str(good)


def test_a_remote_folder() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.save("memory://latest-of-these/one.ckpt", {"a": 1})
    assert find_latest("memory://latest-of-these") == "memory://latest-of-these/one.ckpt"
    assert fabric.load("memory://latest-of-these/one.ckpt") == {"a": 1}
    assert find_latest("memory://nothing-here") is None
