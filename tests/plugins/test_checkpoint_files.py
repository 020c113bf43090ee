"""Files in the way, full disks, left-overs of killed saves, and files that are no checkpoints."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.checkpoint import CheckpointError, UnsafeCheckpointError

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk takes root: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(fabric: Fabric, small_disk: Path) -> None:
    path = small_disk / "a.ckpt"
    fabric.save(path, {"step": 1})
    before = path.read_bytes()
    for save in (fabric.save, lambda *args: fabric.save_async(*args).result()):
        with pytest.raises(OSError, match=r"No space left on device: free some .*untouched: '.*a\.ckpt'") as info:
            save(path, {"model": nn.Linear(1000, 1000)})
        assert info.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert os.listdir(small_disk) == ["a.ckpt"]
    assert fabric.load(path) == {"step": 1}
    fabric.save(path, {"step": 2})
    assert fabric.load(path) == {"step": 2}


def test_a_disk_that_is_full_when_the_last_bytes_are_written(fabric: Fabric, small_disk: Path) -> None:
    """At each place where the room may end, that is what is said, and the old file stays."""
    path = small_disk / "a.ckpt"
    fabric.save(path, {"step": 1})
    outcomes: set[int | None] = set()
    for pages in range(1, 9):
        fill = small_disk / "fill"
        free = os.statvfs(small_disk).f_bavail * 4096
        fill.write_bytes(bytes(free - pages * 4096))
        try:
            fabric.save(path, {"step": 1, "w": torch.ones(4000)})
            outcomes.add(0)
        except OSError as error:
            outcomes.add(error.errno)
        fill.unlink()
        assert fabric.load(path)["step"] == 1
        assert os.listdir(small_disk) == ["a.ckpt"]
    assert outcomes == {0, errno.ENOSPC}


def test_a_read_only_disk(fabric: Fabric, small_disk: Path) -> None:
    fabric.save(small_disk / "a.ckpt", {"step": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk / "a.ckpt", small_disk / "new" / "a.ckpt"):
        with pytest.raises(OSError, match=r"Read-only file system.*write to a disk that is not mounted read-only"):
            fabric.save(path, {"step": 2})
    assert fabric.load(small_disk / "a.ckpt") == {"step": 1}


def test_what_is_in_the_way(fabric: Fabric, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError, match="a folder has the name of the file; remove it, or choose another name"):
        fabric.save(tmp_path / "folder", {})
    with pytest.raises(NotADirectoryError, match="a file is in the place of a folder of the path"):
        fabric.save(tmp_path / "file" / "deeper" / "a.ckpt", {})
    with pytest.raises(FileExistsError, match=r"File exists \('.*file'\): what is there is in the way"):
        fabric.save(tmp_path / "file" / "a.ckpt", {})
    with pytest.raises(FileExistsError, match="no regular file is in the way"):
        fabric.save(tmp_path / "fifo", {})
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file", "folder"]


def test_a_long_name(fabric: Fabric, tmp_path: Path) -> None:
    name = "n" * 255
    fabric.save(tmp_path / name, {"step": 1})
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OSError, match="choose a shorter name"):
        fabric.save(tmp_path / (name + "n"), {})


class TestLeftOvers:
    def test_they_go_with_the_next_save_of_that_name(self, fabric: Fabric, tmp_path: Path) -> None:
        for name in (".a.ckpt.0123abcd.tmp", ".b.ckpt.0123abcd.tmp", ".a.ckpt.mine.tmp", "a.ckpt.tmp"):
            (tmp_path / name).write_text("half")
        fabric.save(tmp_path / "a.ckpt", {})
        assert sorted(os.listdir(tmp_path)) == [".a.ckpt.mine.tmp", ".b.ckpt.0123abcd.tmp", "a.ckpt", "a.ckpt.tmp"]

    def test_not_while_it_is_being_written(self, fabric: Fabric, tmp_path: Path) -> None:
        others = tmp_path / ".a.ckpt.0123abcd.tmp"
        with others.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fabric.save(tmp_path / "a.ckpt", {})
            assert others.exists()
        fabric.save(tmp_path / "a.ckpt", {})
        assert not others.exists()

    def test_two_that_save_the_same_file_at_once(self, fabric: Fabric, tmp_path: Path) -> None:
        class Saves:
            """When it is pickled, somebody else saves to the same place."""

            def __reduce__(self) -> Any:
                (found,) = tmp_path.glob(".a.ckpt.*.tmp")
                Fabric(accelerator="cpu").save(tmp_path / "a.ckpt", {"step": 1})
                assert found.exists()
                assert torch.load(tmp_path / "a.ckpt") == {"step": 1}
                return int, (2,)

        fabric.save(tmp_path / "a.ckpt", {"step": Saves()})
        assert fabric.load(tmp_path / "a.ckpt", weights_only=False) == {"step": 2}
        assert os.listdir(tmp_path) == ["a.ckpt"]

    def test_elsewhere(self, fabric: Fabric) -> None:
        import fsspec

        from fabric_lite.utilities.cloud_io import _host

        memory = fsspec.filesystem("memory")
        child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        ended = int(child.stdout)
        stays = [f"a.ckpt.{_host()}-{os.getpid()}-0123abcd.tmp", f"a.ckpt.0123abcd-{ended}-0123abcd.tmp"]
        try:
            for name in (*stays, f"a.ckpt.{_host()}-{ended}-0123abcd.tmp"):
                memory.pipe_file(f"/left/{name}", b"half")
            fabric.save("memory://left/a.ckpt", {"step": 1})
            assert {Path(name).name for name in memory.ls("/left", detail=False)} == {"a.ckpt", *stays}
        finally:
            memory.rm("/left", recursive=True)


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("weights_only", [None, True])
def test_a_malicious_pickle_is_refused(
    weights_only: bool | None, fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(1), "x": Evil(tmp_path / "evil")}, tmp_path / "a")
    model = nn.Linear(1, 1)
    for load in (
        lambda: fabric.load(tmp_path / "a", weights_only=weights_only),
        lambda: fabric.load(tmp_path / "a", {"weight": 0}, strict=False, weights_only=weights_only),
        lambda: fabric.load_raw(tmp_path / "a", model, weights_only=weights_only),
    ):
        with pytest.raises(UnsafeCheckpointError, match=r"mkdir` in state\['x'\]. .*can run any code"):
            load()
    assert not (tmp_path / "evil").exists()
    assert not torch.equal(model.weight, torch.ones(1, 1))
    fabric.load(tmp_path / "a", weights_only=False)
    assert (tmp_path / "evil").exists()


def foreign(name: str, folder: Path) -> Path:
    path = folder / name
    if name == "whole":
        torch.save({"w": torch.ones(1000)}, path)
        return path
    if name == "half":
        path.write_bytes(foreign("whole", folder).read_bytes()[:2000])
    elif name == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/text", "text")
    elif name == "folder":
        path.mkdir()
    else:
        header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        contents = {
            "empty": b"",
            "text": b"step,loss\n1,0.5\n",
            "safetensors": len(header).to_bytes(8, "little") + header + bytes(4),
            "noise": bytes(range(7, 250)),
            "a pickle": b"\x80\x02]q\x00.",
        }
        path.write_bytes(contents[name])
    return path


@pytest.mark.parametrize(
    "name, message",
    [
        ("half", r"half' is a truncated checkpoint, whose end is missing\. Load an older one"),
        ("archive", r"archive' is damaged, or a zip file but no checkpoint of `torch\.save`"),
        ("folder", r"folder' is a folder, and no checkpoint"),
        ("empty", r"empty' is empty: the disk may have been full"),
        ("text", r"text' is no checkpoint of `torch\.save`: it begins with b'step,loss"),
        ("safetensors", r"safetensors' is a file of safetensors.*`safetensors\.torch\.load_file`"),
        ("noise", r"noise' is no checkpoint of `torch\.save`: it begins with b'\\x07"),
        ("a pickle", r"a pickle' is no checkpoint"),
    ],
)
@pytest.mark.parametrize("weights_only", [None, False])
def test_what_is_no_checkpoint(
    name: str, message: str, weights_only: bool | None, fabric: Fabric, tmp_path: Path
) -> None:
    path = foreign(name, tmp_path)
    state = {"model": nn.Linear(1, 1), "step": 1}
    for load in (
        lambda: fabric.load(path, weights_only=weights_only),
        lambda: fabric.load(path, state, strict=False, weights_only=weights_only),
        lambda: fabric.load_raw(path, state["model"], weights_only=weights_only),
    ):
        with pytest.raises(CheckpointError, match=message):
            load()


def test_what_others_have_saved_still_loads(fabric: Fabric, tmp_path: Path) -> None:
    torch.save({"step": 1}, tmp_path / "new")
    torch.save({"step": 1, "w": torch.ones(2)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert fabric.load(tmp_path / "new") == {"step": 1}
    assert fabric.load(tmp_path / "old")["step"] == 1


def test_an_error_that_is_not_the_files(fabric: Fabric, tmp_path: Path) -> None:
    fabric.save(tmp_path / "a", {"w": torch.ones(1)})
    with pytest.raises(RuntimeError, match="don't know how to restore data location") as info:
        fabric.strategy.checkpoint_io.load_checkpoint(tmp_path / "a", map_location="nowhere")
    assert not isinstance(info.value, CheckpointError)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take no notes")
def test_what_does_not_pickle_is_named(fabric: Fabric, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle") as info:
        fabric.save(tmp_path / "a", {"model": nn.Linear(1, 1), "hooks": {"a": lambda: None}})
    assert info.value.__notes__ == [
        "It is in state['hooks'] of the checkpoint, of the type `dict`. Save a plain value or a `state_dict()` in its"
        " place."
    ]
