"""Checkpoints as files: whole or not at all, and nothing but tensors and plain values comes out unasked."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.plugins import CheckpointIO, TorchCheckpointIO

CHECKPOINT = {"model": {"weight": torch.arange(4.0)}, "step": 3, "names": ["a", "b"]}


class Forbidden:
    """Not a plain value: loading it means running code of the file."""


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's file system in memory, which all of a process shares."""
    import fsspec

    name = f"/{secrets.token_hex(4)}"
    yield f"memory:/{name}"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    return str(tmp_path) if request.param == "local" else memory


def names_in(folder: str) -> list[str]:
    from fabric_lite.utilities.cloud_io import get_filesystem

    filesystem = get_filesystem(folder)
    return sorted(Path(name).name for name in filesystem.ls(folder, detail=False))


def test_round_trip(folder: str) -> None:
    io = TorchCheckpointIO()
    io.save_checkpoint(CHECKPOINT, f"{folder}/deep/er/a.ckpt")
    loaded = io.load_checkpoint(f"{folder}/deep/er/a.ckpt")
    assert torch.equal(loaded.pop("model")["weight"], torch.arange(4.0))
    assert loaded == {"step": 3, "names": ["a", "b"]}
    assert names_in(f"{folder}/deep/er") == ["a.ckpt"]


def test_paths_may_be_path_objects_and_the_file_is_torchs(tmp_path: Path) -> None:
    TorchCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["step"] == 3
    torch.save({"step": 4}, tmp_path / "b.ckpt")
    assert TorchCheckpointIO().load_checkpoint(tmp_path / "b.ckpt") == {"step": 4}


def test_tensors_are_loaded_onto_the_cpu_unless_one_says_where(tmp_path: Path) -> None:
    io = TorchCheckpointIO()
    io.save_checkpoint(CHECKPOINT, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt")["model"]["weight"].device.type == "cpu"
    assert io.load_checkpoint(tmp_path / "a.ckpt", map_location="meta")["model"]["weight"].device.type == "meta"


def test_an_old_file_survives_a_state_that_does_not_pickle(folder: str) -> None:
    io = TorchCheckpointIO()
    io.save_checkpoint({"step": 1}, f"{folder}/a.ckpt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError), match="pickle"):
        io.save_checkpoint({"big": torch.ones(1000), "step": 2, "function": lambda: None}, f"{folder}/a.ckpt")
    assert io.load_checkpoint(f"{folder}/a.ckpt") == {"step": 1}
    assert names_in(folder) == ["a.ckpt"]


def test_a_state_that_does_not_pickle_leaves_no_file(folder: str) -> None:
    io = TorchCheckpointIO()
    io.save_checkpoint({}, f"{folder}/other.ckpt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError), match="pickle"):
        io.save_checkpoint({"function": lambda: None}, f"{folder}/a.ckpt")
    assert names_in(folder) == ["other.ckpt"]


def test_plain_values_only_unless_one_says_otherwise(tmp_path: Path) -> None:
    io = TorchCheckpointIO()
    io.save_checkpoint({"object": Forbidden()}, tmp_path / "a.ckpt")
    for weights_only in (None, True):
        with pytest.raises(pickle.UnpicklingError, match="Forbidden"):
            io.load_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    assert isinstance(io.load_checkpoint(tmp_path / "a.ckpt", weights_only=False)["object"], Forbidden)


def test_a_file_that_is_not_there(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        TorchCheckpointIO().load_checkpoint(f"{folder}/none.ckpt")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "file" / "a.ckpt")
    with pytest.raises(OSError, match="file"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "file" / "deeper" / "a.ckpt")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.ckpt"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_it_has_no_storage_options(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`TorchCheckpointIO` has no storage options, but got \{'a': 1\}"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"a": 1})
    assert not list(tmp_path.iterdir())


class TestRemoving:
    def test_a_file_and_what_is_not_there(self, folder: str) -> None:
        io = TorchCheckpointIO()
        for name in ("a.ckpt", "b.ckpt"):
            io.save_checkpoint({}, f"{folder}/{name}")
        io.remove_checkpoint(f"{folder}/a.ckpt")
        io.remove_checkpoint(f"{folder}/a.ckpt")
        assert names_in(folder) == ["b.ckpt"]

    def test_a_folder(self, folder: str) -> None:
        io = TorchCheckpointIO()
        for name in ("sharded/a.ckpt", "b.ckpt"):
            io.save_checkpoint({}, f"{folder}/{name}")
        io.remove_checkpoint(f"{folder}/sharded")
        assert names_in(folder) == ["b.ckpt"]

    def test_a_name_is_not_a_pattern(self, folder: str) -> None:
        io = TorchCheckpointIO()
        for name in ("loss[1].ckpt", "loss1.ckpt"):
            io.save_checkpoint({}, f"{folder}/{name}")
        io.remove_checkpoint(f"{folder}/loss[1].ckpt")
        assert names_in(folder) == ["loss1.ckpt"]


class InMemory(CheckpointIO):
    """Keeps checkpoints in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.torn_down = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.kept[str(path)] = checkpoint

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return dict(self.kept[str(path)])

    def remove_checkpoint(self, path: Any) -> None:
        self.kept.pop(str(path), None)

    def teardown(self) -> None:
        self.torn_down += 1


def test_one_of_ones_own_is_used_by_the_fabric() -> None:
    io = InMemory()
    fabric = Fabric(accelerator="cpu", plugins=io)
    state = {"step": 1, "model": torch.nn.Linear(1, 1)}
    fabric.save("anywhere", state)
    assert list(io.kept["anywhere"]["model"]) == ["weight", "bias"]
    assert fabric.load("anywhere", {"step": 0}).keys() == {"model"}
    fabric.strategy.teardown()
    assert io.torn_down == 1


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        CheckpointIO()  # type: ignore[abstract]
