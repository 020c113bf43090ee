from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.cli import main
from fabric_lite.testing import run_distributed


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.ckpt"
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    state = {"model": net, "optimizer": optimizer, "step": 12, "progress": {"epoch": 2}, "log": [1.0, 2.0], "x\n": 1}
    Fabric(accelerator="cpu").save(
        path, {**state, "args": Namespace(lr=1), "half": torch.ones(4, dtype=torch.bfloat16)}
    )
    return path


def test_what_is_in_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first, *rows, last = lines
    assert first[0] == f"{path}:"
    assert first[-2:] == ["checksum:", "fits"]
    assert ["model.weight", "float32", "2×3", "24", "B"] in rows
    assert ["model.bias", "float32", "2", "8", "B"] in rows
    assert ["half", "bfloat16", "4", "8", "B"] in rows
    assert ["optimizer.param_groups.0.lr", "float", "0.5"] in rows
    assert ["log", "list", "[1.0,", "2.0]"] in rows
    assert ["args", "object", "<argparse.Namespace>"] in rows
    assert ["'x\\n'", "int", "1"] in rows
    assert " ".join(last).startswith("3 tensors of 40 B, ")
    assert " ".join(last).endswith("values, step 12, progress.epoch 2")


def test_no_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Evil(tmp_path / "evil"), "w": torch.ones(2)}, tmp_path / "a")
    assert main(["inspect", str(tmp_path / "a")]) == 0
    output = capsys.readouterr().out
    assert "checksum: none" in output
    assert f"<{os.name}.mkdir>" in output
    assert not (tmp_path / "evil").exists()


def test_a_damaged_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"ZZZ")] ^= 1
    path.write_bytes(data)
    assert main(["inspect", str(path)]) == 1
    assert "checksum: DAMAGED. The checkpoint" in capsys.readouterr().out
    assert main(["inspect", str(path), "--no-checksum"]) == 0
    assert "model.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    "contents, message",
    [(None, "cannot read '.*': No such file or directory"), (b"text", "it has no structure that can be read")],
)
def test_what_cannot_be_read(
    contents: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if contents is not None:
        (tmp_path / "a").write_bytes(contents)
    assert main(["inspect", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fabric-lite inspect: cannot read")
    assert message.rpartition(": ")[2] in error


def test_a_sharded_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch.distributed.checkpoint import FileSystemWriter, save

    folder = tmp_path / "sharded"
    with pytest.warns(UserWarning, match="single process"):
        save({"model": {"weight": torch.ones(2, 3)}}, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"step": 7}, folder / "meta.pt")
    assert main(["inspect", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model.weight", "float32", "2×3", "24", "B"] in lines
    assert ["step", "int", "7"] in lines
    assert lines[-1] == "1 tensors of 24 B, 1 values, step 7".split()
    assert "checksum: none" in " ".join(lines[0])


def save_shards(folder: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, strategy="fsdp")
    fabric.launch()
    fabric.save(folder, {"model": fabric.setup(nn.Linear(3, 2)), "step": 7})


def test_a_damaged_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sharded"
    run_distributed(save_shards, 1, folder)
    assert main(["inspect", str(folder)]) == 0
    assert "checksum: fits" in capsys.readouterr().out
    shard = next(folder.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["inspect", str(folder)]) == 1
    assert f"checksum: DAMAGED. The checkpoint {str(folder)!r} is damaged in {shard.name!r}" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--no-checksum"]) == 0
    assert "model.weight" in capsys.readouterr().out
