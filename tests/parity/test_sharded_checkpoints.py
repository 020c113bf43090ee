"""Sharded checkpoints of Lightning Fabric and ours, each read by both."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

import fabric_lite
from fabric_lite.checkpoint.consolidate import consolidate_checkpoint
from fabric_lite.testing import run_distributed


def shard(model: nn.Module, device_mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=device_mesh["data_parallel"])
    return model


def whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    return (
        value.full_tensor() if hasattr(value, "full_tensor") else value.clone() if isinstance(value, Tensor) else value
    )


def fabric_of(package: str, **options: Any) -> Any:
    if package == "lightning":
        warnings.simplefilter("ignore")
        import lightning.fabric as module
    else:
        module = fabric_lite
    strategies: ModuleType = __import__(f"{module.__name__}.strategies", fromlist=["ModelParallelStrategy"])
    strategy = strategies.ModelParallelStrategy(shard, data_parallel_size=2, tensor_parallel_size=1, **options)
    fabric = module.Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    return fabric


def made(fabric: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    model = fabric.setup_module(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)))
    optimizer = fabric.setup_optimizers(Adam(model.parameters(), lr=0.1))
    return {"model": model, "optimizer": optimizer, "step": 0}


def seen(state: dict[str, Any]) -> dict[str, Any]:
    return {"model": whole(state["model"].state_dict()), "optimizer": whole(state["optimizer"].state_dict())}


def save(folder: Path) -> dict[str, Any]:
    """What each package has, and writes in both ways."""
    found = {}
    for package in ("lightning", "fabric_lite"):
        fabric = fabric_of(package)
        state = made(fabric)
        fabric.backward(state["model"](torch.ones(2, 3)).sum())
        state["optimizer"].step()
        state["step"] = 7 if package == "lightning" else 8
        fabric.save(folder / package / "shards", state)
        fabric_of(package, save_distributed_checkpoint=False).save(folder / package / "file", state)
        found[package] = {**seen(state), "step": state["step"]}
    return found


def load(folder: Path) -> dict[str, Any]:
    """What each package reads. Lightning's optimizers are not loaded from one file with numbers of parameters."""
    found = {}
    for reader, writer, name in READ:
        state = made(fabric_of(reader))
        fabric_of(reader).load(folder / writer / name, state)
        found[reader, writer, name] = {**seen(state), "step": state["step"]}
    return found


READ = [
    ("lightning", "lightning", "shards"),
    ("lightning", "fabric_lite", "shards"),
    ("fabric_lite", "lightning", "shards"),
    ("fabric_lite", "lightning", "file"),
    ("fabric_lite", "fabric_lite", "file"),
]


@pytest.mark.slow
def test_each_reads_what_either_has_written(tmp_path: Path) -> None:
    for package in ("lightning", "fabric_lite"):
        (tmp_path / package).mkdir()
    saved = run_distributed(save, 2, tmp_path)[0]
    for (_, writer, _), found in run_distributed(load, 2, tmp_path)[1].items():
        torch.testing.assert_close(found, saved[writer], rtol=0, atol=0)
    fabric = fabric_lite.Fabric(accelerator="cpu", devices=1)
    for package, expected in saved.items():
        consolidated = consolidate_checkpoint(tmp_path / package / "shards")
        for path in (tmp_path / package / "shards", tmp_path / package / "file", consolidated):
            state = made(fabric)
            fabric.load(path, state)
            torch.testing.assert_close({**seen(state), "step": state["step"]}, expected, rtol=0, atol=0)
