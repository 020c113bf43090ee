from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam

from fabric_lite import Fabric
from fabric_lite.checkpoint.consolidate import consolidate_checkpoint
from fabric_lite.strategies import FSDPStrategy
from fabric_lite.testing import run_distributed


def made(fabric: Fabric) -> dict[str, Any]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model, optimizer = fabric.setup(module, Adam(module.parameters(), lr=0.1))
    fabric.backward(model(torch.linspace(0, 1, 12).view(4, 3)).square().sum())
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "step": 1, "numbers": [1, 2]}


def save(path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=FSDPStrategy(auto_wrap_policy={nn.Linear}))
    fabric.launch()
    fabric.save(path, made(fabric))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "shards"
    run_distributed(save, 2, path)
    return path


def test_one_file_as_if_nothing_had_been_sharded(folder: Path, tmp_path: Path) -> None:
    file = consolidate_checkpoint(folder)
    assert file == folder.with_name("shards.consolidated")
    fabric = Fabric(accelerator="cpu", devices=1)
    state = made(fabric)
    fabric.save(tmp_path / "alone", state)
    contents, expected = (torch.load(path, weights_only=True) for path in (file, tmp_path / "alone"))
    assert list(contents["model"]) == list(expected["model"])
    torch.testing.assert_close(contents, expected, rtol=0, atol=1e-6)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    module.load_state_dict(contents["model"])  # torch itself takes it
    Adam(module.parameters()).load_state_dict(contents["optimizer"])
    fresh = made(fabric)
    assert fabric.load(file, fresh) == {}
    torch.testing.assert_close(fresh["model"].state_dict(), contents["model"], rtol=0, atol=0)
    with pytest.raises(FileExistsError, match=r"shards\.consolidated' is there already\. Remove it, or choose another"):
        consolidate_checkpoint(folder)
    assert consolidate_checkpoint(str(folder), tmp_path / "new" / "file").read_bytes()[:2] == b"PK"


def test_what_is_no_sharded_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint '.*nowhere'"):
        consolidate_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is a folder without the files of a checkpoint\. Pass the folder that"):
        consolidate_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is one file already"):
        consolidate_checkpoint(tmp_path / "file")
