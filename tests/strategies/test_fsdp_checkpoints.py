"""Checkpoints of sharded modules: written by some processes, read by as many, by more, by fewer, and by one."""

from __future__ import annotations

import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam

from fabric_lite import Fabric
from fabric_lite.checkpoint import CheckpointError, UnsafeCheckpointError
from fabric_lite.checkpoint.consolidate import consolidate_checkpoint
from fabric_lite.plugins import TorchCheckpointIO
from fabric_lite.strategies import FSDPStrategy
from fabric_lite.testing import run_distributed


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))


class Counter:
    """Something with a state."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def groups(module: nn.Module, reverse: bool = False) -> Adam:
    """Adam with two groups of parameters, those without and those with a decay of the weights."""
    parameters = list(module.parameters())
    small, large = [[p for p in parameters if (p.ndim > 1) is large] for large in (False, True)]
    if reverse:
        small.reverse()
    return Adam([{"params": small}, {"params": large, "weight_decay": 0.5}], lr=0.1)


def connected(strategy: Any = None, devices: int = 2, **options: Any) -> Fabric:
    strategy = strategy or FSDPStrategy(auto_wrap_policy={nn.Linear}, **options)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy=strategy)
    fabric.launch()
    return fabric


def made(fabric: Fabric, trained: int = 0, **kwargs: Any) -> dict[str, Any]:
    original = net()
    module, optimizer = fabric.setup(original, groups(original, **kwargs))
    state = {"model": module, "optimizer": optimizer, "counter": Counter(), "step": 0, "table": {"a": [torch.ones(2)]}}
    advance(fabric, state, trained)
    return state


def advance(fabric: Fabric, state: dict[str, Any], steps: int) -> None:
    """Steps that are the same on any number of processes: all of them have the same samples."""
    for _ in range(steps):
        x = torch.linspace(-1, 1, 12).view(4, 3) * (state["step"] + 1)
        fabric.backward(mse_loss(state["model"](x), x.flip(0)))
        state["optimizer"].step()
        state["optimizer"].zero_grad()
        state["step"] += 1
        state["counter"].count += 10


def whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(part) for part in value]
    return (
        (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        if isinstance(value, Tensor)
        else value
    )


def seen(state: dict[str, Any]) -> dict[str, Any]:
    return whole({name: obj.state_dict() if hasattr(obj, "state_dict") else obj for name, obj in state.items()})


def same(first: Any, second: Any, tolerance: float = 0) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=tolerance)


# -- from two processes ------------------------------------------------------------------------------------------------


def save(folder: Path) -> dict[str, Any]:
    """Saves in both ways, loads again, and goes on."""
    found: dict[str, Any] = {}
    fabric = connected()
    state = made(fabric, 2)
    found["saved"] = seen(state)
    for _ in range(2):  # the second over the first, with left-overs of one that was killed
        fabric.save(folder / "new" / "shards", state)
        if fabric.global_rank == 0:
            (folder / "new" / ".shards.tmp").mkdir()
        fabric.barrier()
    fabric.save(folder / "shards", {**state, "extra": 5})
    fabric.save(folder / "filtered", state, filter={"model": lambda name, _: name.startswith("1")})
    fabric.save(folder / "untrained", made(fabric))
    one_file = connected(state_dict_type="full")
    one_file.save(folder / "file", state)

    fresh = made(fabric, reverse=True)
    found["rest"] = fabric.load(folder / "shards", fresh)
    found["loaded"] = seen({**fresh, "optimizer": None})
    advance(fabric, fresh, 2)
    found["gone on"] = whole(fresh["model"].state_dict())
    advance(fabric, state, 2)
    found["without a stop"] = whole(state["model"].state_dict())

    fresh = made(fabric, 1)
    found["rest of the file"] = one_file.load(folder / "file", fresh)
    found["from the file"] = seen(fresh)
    fresh = made(fabric, 1)
    fabric.load(folder / "untrained", {"optimizer": fresh["optimizer"]})
    found["untrained"] = dict(fresh["optimizer"].state)
    return found


def load(folder: Path, devices: int) -> dict[str, Any]:
    """Loads what others have saved, in all ways."""
    found: dict[str, Any] = {}
    fabric = connected(devices=devices)
    for name in ("shards", "file", "one process"):
        state = made(fabric, 1)
        fabric.load(folder / name, state)
        found[name] = seen(state)
    ddp = connected("ddp", devices=devices)
    state = made(ddp, 1)
    ddp.load(folder / "shards", state)
    found["by ddp"] = seen(state)
    return found


def test_written_by_two_read_by_any(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    alone = made(fabric, 2)
    fabric.save(tmp_path / "one process", alone)
    first, second = run_distributed(save, 2, tmp_path)
    expected = seen(alone)

    # by the same two
    same(first["saved"], expected, 1e-5)
    same(first["loaded"], {**first["saved"], "optimizer": None})
    assert first["rest"] == {"extra": 5}
    assert first["rest of the file"] == {}
    same(first["gone on"], first["without a stop"])
    same(second["gone on"], first["gone on"])
    same(first["from the file"], first["saved"])
    assert first["untrained"] == {}
    # what is there
    assert sorted(file.name for file in (tmp_path / "shards").iterdir()) == [
        ".checksums",
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "meta.pt",
    ]
    assert [file.name for file in (tmp_path / "new").iterdir()] == [".shards.tmp", "shards"]
    # by one
    state = made(fabric, 1)
    assert fabric.load(tmp_path / "shards", state) == {"extra": 5}
    same(seen(state), first["saved"])
    contents = torch.load(tmp_path / "file", weights_only=True)
    same(contents, first["saved"])
    same(fabric.load(tmp_path / "shards"), {**contents, "extra": 5})
    # by as many, with another order of parameters; by more
    for devices in (1, 3):
        others = run_distributed(load, devices, tmp_path, devices)
        for other in others:
            for name in ("shards", "file", "by ddp"):
                same(other[name], first["saved"])
            same(other["one process"], expected)


# -- what does not fit -------------------------------------------------------------------------------------------------


def misfits(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fabric = connected()
    state = made(fabric, 1)
    path = folder / "shards"
    fabric.save(path, state)
    # names
    with pytest.raises(KeyError, match="The checkpoint has no 'modle'; it has"):
        fabric.load(path, {"modle": state["model"], "optimizer": state["optimizer"]})
    found["kept"] = fabric.load(path, {"modle": 3, "step": 0}, strict=False)
    # modules
    other = fabric.setup(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.Linear(5, 3)))
    before_it = whole(other.state_dict())
    with pytest.raises(RuntimeError, match=r"state\['model'\] does not fit the checkpoint, and nothing was l") as error:
        fabric.load(path, {"model": other})
    found["keys"] = str(error.value)
    same(whole(other.state_dict()), before_it)
    fabric.load(path, {"model": other}, strict=False)
    found["in part"] = whole(other.module[1].state_dict())
    found["source"] = whole(state["model"].module[1].state_dict())
    wider = fabric.setup(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)))
    with pytest.raises(RuntimeError, match=r"nothing was loaded.*\s*size mismatch for 1\.weight: .*\[5, 3\].*\[5, 4\]"):
        fabric.load(path, {"model": wider}, strict=False)
    # optimizers
    with pytest.raises(KeyError, match=r"`SGD` do not have the same parameters: '3\.weight' are in one of them only"):
        fabric.load(path, {"model": state["model"], "optimizer": SGD(list(state["model"].parameters())[:-1])})
    with pytest.raises(ValueError, match="The checkpoint has 2 groups of parameters, `SGD` has 1"):
        fabric.load(path, {"model": state["model"], "optimizer": SGD(state["model"].parameters())})
    # places
    if fabric.global_rank == 0:
        (folder / "mine").mkdir()
        (folder / "mine" / "notes").write_text("keep me")
        (folder / "a file").write_text("")
    fabric.barrier()
    for rank_zero, name in ((IsADirectoryError, "mine"), (OSError, "a file/below")):
        kind = rank_zero if fabric.global_rank == 0 else RuntimeError
        message = name.split("/")[0] if fabric.global_rank == 0 else r"was not written\. Rank 0 says: "
        with pytest.raises(kind, match=message):
            fabric.save(folder / name, state)
    with pytest.raises(ValueError, match=r"shards are written to local and shared disks.*state_dict_type='full'"):
        fabric.save("memory://shards", state)
    with pytest.raises(TypeError, match="has no use for the storage options 3"):
        fabric.strategy.save_checkpoint(path, state, storage_options=3)
    # one process whose disk is full: all of them say so, and the old one is untouched
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fabric.global_rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    with pytest.raises(
        OSError, match=r"The checkpoint '.*shards' was not written\. (Is the disk full|.*File too large)"
    ):
        fabric.save(path, {"model": fabric.setup(nn.Linear(400, 400)), "step": 99})
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found["untouched"] = fabric.load(path, {"model": state["model"]})["step"]
    shutil.rmtree(folder / ".shards.tmp", ignore_errors=True)
    # one file over a folder, a folder over one file
    one_file = connected(state_dict_type="full")
    one_file.save(path, state)
    found["is file"] = path.is_file()
    fabric.save(path, state)
    found["is folder"] = path.is_dir()
    one_file.save(folder / "raw", dict(whole(state["model"].state_dict())))
    fresh = fabric.setup(net())
    fabric.load_raw(folder / "raw", fresh)
    found["raw"] = [whole(fresh.state_dict()), whole(state["model"].state_dict())]
    found["left"] = sorted(file.name for file in folder.iterdir())
    return found


def test_what_does_not_fit(tmp_path: Path) -> None:
    first, _ = run_distributed(misfits, 2, tmp_path)
    assert first["kept"].keys() == {"counter", "table"}
    assert all(key in first["keys"] for key in ("2.bias", "3.weight"))
    same(first["in part"], first["source"])
    assert first["untouched"] == 1
    assert first["is file"]
    assert first["is folder"]
    same(*first["raw"])
    assert first["left"] == ["a file", "mine", "raw", "shards"]


def containers(folder: Path) -> dict[str, Any]:
    """Objects in lists and dictionaries, several modules, optimizers whose module is not saved."""
    fabric = connected()
    generator, critic = (made(fabric, steps) for steps in (1, 2))
    state = {
        "models": [generator["model"], critic["model"]],
        "optimizers": {"generator": generator["optimizer"], "critic": critic["optimizer"]},
        "empty": nn.Tanh(),
    }
    fabric.save(folder / "several", state)
    fabric.save(folder / "optimizer", {"optimizer": critic["optimizer"]})
    fresh = [made(fabric), made(fabric)]
    loaded = {
        "models": [each["model"] for each in fresh],
        "optimizers": {"generator": fresh[0]["optimizer"], "critic": fresh[1]["optimizer"]},
        "empty": nn.Tanh(),
    }
    rest = fabric.load(folder / "several", loaded)
    third = made(fabric)
    fabric.load(folder / "optimizer", {"optimizer": third["optimizer"]})
    return {
        "rest": rest,
        "saved": [seen({"model": each["model"], "optimizer": each["optimizer"]}) for each in (generator, critic)],
        "loaded": [seen({"model": each["model"], "optimizer": each["optimizer"]}) for each in fresh],
        "third": seen({"optimizer": third["optimizer"]}),
    }


def test_containers(tmp_path: Path) -> None:
    first, _ = run_distributed(containers, 2, tmp_path)
    assert first["rest"] == {}
    same(first["loaded"], first["saved"])
    same(first["third"]["optimizer"], first["saved"][1]["optimizer"])


# -- trust -------------------------------------------------------------------------------------------------------------


def test_damaged_and_unsafe_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_distributed(save_objects, 2, tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(UnsafeCheckpointError, match=r"(?s)'.*objects' is not loaded\..*Weights only load failed"):
        fabric.load(tmp_path / "objects")
    assert fabric.load(tmp_path / "objects", weights_only=False)["thing"] is Malicious
    (tmp_path / "good" / ".checksums").unlink()  # as if it had been written elsewhere
    index, shard = (tmp_path / "good" / name for name in (".metadata", "__1_0.distcp"))
    good, values = index.read_bytes(), shard.read_bytes()
    index.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UnsafeCheckpointError, match=r"would import `builtins\.print`.*`weights_only=False`"):
        fabric.load(tmp_path / "good")
    assert capsys.readouterr().out == ""
    for content in (good[: len(good) // 2], b"", pickle.dumps({"a": 1})):
        index.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"good' is not loaded|is not the index of a sharded checkpoint"):
            fabric.load(tmp_path / "good")
    index.write_bytes(good)
    shard.write_bytes(values[: len(values) // 2])
    with pytest.raises(CheckpointError, match="good' is not loaded"):
        consolidate_checkpoint(tmp_path / "good")
    for error in run_distributed(load_damaged, 2, tmp_path / "good"):
        assert "good' is not loaded" in error


class Malicious:
    def __reduce__(self) -> Any:
        return (print, ("it ran",))


def save_objects(folder: Path) -> None:
    fabric = connected()
    state = made(fabric)
    fabric.save(folder / "objects", {**state, "thing": Malicious})
    fabric.save(folder / "good", state)


def load_damaged(path: Path) -> str:
    """One shard is damaged: all processes say so, and none waits for another."""
    fabric = connected()
    state = made(fabric)
    before = seen(state)
    with pytest.raises(CheckpointError) as error:
        fabric.load(path, state)
    same(seen(state), before)
    return str(error.value)


def test_a_checkpoint_io() -> None:
    io = TorchCheckpointIO()
    with pytest.raises(NotImplementedError, match=r"writes a folder.*`FSDPStrategy\(state_dict_type='full'\)`"):
        Fabric(accelerator="cpu", devices=2, strategy="fsdp", plugins=io)
    strategy = FSDPStrategy(state_dict_type="full")
    Fabric(accelerator="cpu", devices=2, strategy=strategy, plugins=io)
    assert strategy.checkpoint_io is io


def save_after_a_validation(folder: Path) -> list[str]:
    fabric = connected()
    fabric.launch()
    state = made(fabric, trained=2)
    with torch.no_grad():
        state["model"](torch.ones(2, 3))
    fabric.save(folder / "validated.ckpt", state)
    fabric.load(folder / "validated.ckpt", made(fabric))
    reader = torch.distributed.checkpoint.FileSystemReader(folder / "validated.ckpt")
    return [name for name in reader.read_metadata().state_dict_metadata if ".exp_avg." in f"{name}."]


def test_a_forward_before_the_save_hides_no_shards(tmp_path: Path) -> None:
    """Without a backward after it, whole parameters are where the optimizer's shards were."""
    found = run_distributed(save_after_a_validation, 2, tmp_path)
    assert found[0] == found[1]
    assert "optimizer.state.1.weight.exp_avg" in found[0], "parameters are saved by their names"
