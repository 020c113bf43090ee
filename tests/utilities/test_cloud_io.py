from __future__ import annotations

import errno
import io
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.checkpoint import UnsafeCheckpointError
from fabric_lite.plugins.io.torch_io import _read as _load
from fabric_lite.plugins.io.torch_io import _write as _atomic_save
from fabric_lite.utilities import cloud_io
from fabric_lite.utilities.cloud_io import (
    _append,
    _is_dir,
    _is_local_file_protocol,
    _is_object_storage,
    get_filesystem,
)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs = MemoryFileSystem()
    fs.store.clear()  # of what other tests left in this process
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond the limit fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere, so that it has to be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_get_filesystem(tmp_path: Path) -> None:
    assert isinstance(get_filesystem(tmp_path), LocalFileSystem)
    assert isinstance(get_filesystem("memory://a"), MemoryFileSystem)
    assert get_filesystem(tmp_path, auto_mkdir=True).auto_mkdir


def test_is_dir(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fs = get_filesystem(tmp_path)
    assert _is_dir(fs, tmp_path)
    assert _is_dir(fs, str(tmp_path), strict=True)
    assert not _is_dir(fs, tmp_path / "file")
    assert not _is_dir(fs, tmp_path / "absent")


def object_storage(package: str) -> AbstractFileSystem:
    """Memory under the flag of a package that needs an account."""
    return type("Storage", (MemoryFileSystem,), {"__module__": f"{package}.core"})()


@pytest.mark.parametrize("package", ["s3fs", "gcsfs", "adlfs"])
def test_is_dir_on_object_storage(package: str, memory: MemoryFileSystem) -> None:
    fs = object_storage(package)
    fs.pipe_file("/folder/file", b"")
    assert _is_object_storage(fs)
    assert not _is_object_storage(memory)
    assert _is_dir(fs, "/anything")
    assert not _is_dir(fs, "/anything", strict=True)
    assert _is_dir(fs, "/folder", strict=True)
    assert not _is_dir(fs, "/folder/file")


@pytest.mark.parametrize(
    "path, local",
    [("a/b", True), (Path("a"), True), ("file:///a", True), ("memory://a", False), ("zip://a::file:///b", False)],
)
def test_is_local(path: str | Path, local: bool) -> None:
    assert _is_local_file_protocol(path) is local


@given(st.text(alphabet="abfile:/. ", max_size=12))
def test_is_local_agrees_with_fsspec(path: str) -> None:
    from fsspec.utils import get_protocol

    assert _is_local_file_protocol(path) == (get_protocol(path) == "file")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_save_and_load(tmp_path: Path, prefix: str) -> None:
    target = tmp_path / "new" / "folder" / "model.ckpt"
    _atomic_save({"w": torch.arange(3), "epoch": 1}, f"{prefix}{target}")
    loaded = _load(f"{prefix}{target}")
    assert loaded["w"].tolist() == [0, 1, 2]
    assert loaded["epoch"] == 1
    assert [p.name for p in target.parent.iterdir()] == ["model.ckpt"]


def test_save_relative_to_the_working_and_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _atomic_save(1, "here.ckpt")
    _atomic_save(2, Path("~/there.ckpt"))
    assert _load("here.ckpt") == 1
    assert _load(tmp_path / "home" / "there.ckpt") == _load("~/there.ckpt") == 2


def test_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    _atomic_save(1, tmp_path / "model.ckpt")
    assert stat.S_IMODE((tmp_path / "model.ckpt").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model.ckpt"
    _atomic_save({"old": 1}, target)
    with pytest.raises(ValueError, match="not this one"):
        _atomic_save({"w": torch.ones(1000), "bad": Unpicklable()}, target)
    assert _load(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    target = tmp_path / "model.ckpt"
    _atomic_save({"old": 1}, target)
    with pytest.raises(OSError, match="File too large") as info, file_size_limit(2000):
        _atomic_save(torch.zeros(100_000), target)
    assert info.value.errno == errno.EFBIG
    assert info.value.filename == str(target)
    assert _load(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    target = tmp_path / "model.ckpt"
    _atomic_save({"old": 1}, target)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="Permission denied"), unprivileged():
            _atomic_save({"new": 1}, target)
        with pytest.raises(PermissionError, match="Permission denied"), unprivileged():
            _atomic_save({"new": 1}, tmp_path / "folder" / "model.ckpt")
    finally:
        tmp_path.chmod(0o755)
    assert _load(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        _atomic_save(1, tmp_path / "file" / "model.ckpt")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        _atomic_save(1, tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_saving_streams(tmp_path: Path) -> None:
    """The peak of memory grows by less than the size of what is saved; `tracemalloc` sees Python's buffers."""
    import tracemalloc

    state = {"w": torch.zeros(4_000_000)}
    tracemalloc.start()
    try:
        _atomic_save(state, tmp_path / "model.ckpt")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("url", ["memory://runs/model.ckpt", "memory://model.ckpt", "memory://runs/epoch=[1]*.ckpt"])
def test_save_and_load_in_memory(url: str, memory: MemoryFileSystem) -> None:
    for epoch in range(2):
        _atomic_save({"epoch": epoch}, url)
        assert _load(url) == {"epoch": epoch}
    assert len(memory.find("/")) == 1, "no temporary file is left"


def test_a_failed_save_in_memory(memory: MemoryFileSystem) -> None:
    _atomic_save({"old": 1}, "memory://runs/model.ckpt")
    with pytest.raises(ValueError, match="not this one"):
        _atomic_save(Unpicklable(), "memory://runs/model.ckpt")
    assert _load("memory://runs/model.ckpt") == {"old": 1}
    assert memory.find("/") == ["/runs/model.ckpt"]


def use(monkeypatch: pytest.MonkeyPatch, fs: AbstractFileSystem) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (fs, MemoryFileSystem._strip_protocol(url)))


@pytest.mark.parametrize("missing", ["mv", "cp_file"])
def test_filesystems_that_move_themselves_or_cannot_copy(
    missing: str, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCopy(MemoryFileSystem):
        def cp_file(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError

    class Renames(MemoryFileSystem):
        def mv(self, source: str, target: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
            self.store[target] = self.store.pop(source)

        def cp_file(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("it can move")

    use(monkeypatch, NoCopy() if missing == "cp_file" else Renames())
    _atomic_save({"epoch": 1}, "memory://runs/model.ckpt")
    assert _load("memory://runs/model.ckpt") == {"epoch": 1}
    assert memory.find("/") == ["/runs/model.ckpt"]


def test_an_object_is_sent_whole_or_not_at_all(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, object_storage("s3fs"))
    with pytest.raises(ValueError, match="not this one"):
        _atomic_save(Unpicklable(), "memory://bucket/model.ckpt")
    assert memory.find("/") == []
    _atomic_save({"epoch": 1}, "memory://bucket/model.ckpt")
    assert len(memory.find("/")) == 1
    assert _load("memory://bucket/model.ckpt") == {"epoch": 1}


def test_only_weights_unless_told_otherwise(tmp_path: Path) -> None:
    _atomic_save({"path": io.StringIO("any object")}, tmp_path / "x.ckpt")
    for path in (tmp_path / "x.ckpt", (tmp_path / "x.ckpt").open("rb")):
        with pytest.raises(UnsafeCheckpointError, match=r"StringIO` in state\['(path|any)'\].*weights_only=False"):
            _load(path)
    assert _load(tmp_path / "x.ckpt", weights_only=False)["path"].read() == "any object"
    path.close()


def test_load_from_an_open_file_and_onto_a_device(tmp_path: Path) -> None:
    _atomic_save(torch.ones(2), tmp_path / "x.ckpt")
    with (tmp_path / "x.ckpt").open("rb") as file:
        assert _load(file, map_location="meta").is_meta


def test_load_what_is_not_there(tmp_path: Path, memory: MemoryFileSystem) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        _load(tmp_path / "absent.ckpt")
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        _load("memory://absent.ckpt")


def test_load_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.tqdm.monitor_interval", 0)  # its thread would stay
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    _atomic_save({"w": torch.ones(1)}, tmp_path / "model.ckpt")
    _atomic_save({"any": io.StringIO("x")}, tmp_path / "object.ckpt")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert _load(f"{url}/model.ckpt")["w"] == 1
            with pytest.raises(UnsafeCheckpointError, match=r"StringIO` in state\['(path|any)'\].*weights_only=False"):
                _load(f"{url}/object.ckpt")
        finally:
            server.shutdown()
            thread.join()


def test_a_local_path_may_begin_with_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _atomic_save(1, "http_runs/model.ckpt")
    assert _load("http_runs/model.ckpt") == 1


def test_append(tmp_path: Path, memory: MemoryFileSystem) -> None:
    for path in (str(tmp_path / "log"), "memory://runs/log"):
        fs = get_filesystem(path)
        fs.pipe_file(path, b"one ")
        _append(path, b"two")
        assert fs.cat_file(path) == b"one two"


def test_an_append_that_fails_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one ")
    with pytest.raises(OSError, match="File too large"), file_size_limit(100):
        _append(tmp_path / "log", b"x" * 1000)
    assert (tmp_path / "log").read_bytes() == b"one "


def test_local_paths_do_not_import_fsspec(tmp_path: Path) -> None:
    code = f"""
import sys
import torch
from fabric_lite.loggers import CSVLogger, TensorBoardLogger
from fabric_lite.plugins.io.torch_io import _read as _load, _write as _atomic_save
assert "tensorboard" not in sys.modules
sys.modules["fsspec"] = None
path = {str(tmp_path / "model.ckpt")!r}
_atomic_save(torch.ones(1), path)
_load(path)
logger = CSVLogger({str(tmp_path)!r})
logger.log_metrics({{"a": 1}})
logger.finalize("success")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").exists()


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_flushed(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a disk at hand refuses this, so that the refusal is put in here."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        fsync(descriptor)

    monkeypatch.setattr(cloud_io.os, "fsync", refuse)
    if error == errno.EINVAL:
        _atomic_save(1, tmp_path / "model.ckpt")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            _atomic_save(1, tmp_path / "model.ckpt")
    assert _load(tmp_path / "model.ckpt") == 1
