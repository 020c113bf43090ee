"""What becomes of the folder of a sharded checkpoint: when bytes change, when writing fails, and in the background."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from fabric_lite import Fabric
from fabric_lite.checkpoint import CheckpointError, folder
from fabric_lite.checkpoint.consolidate import consolidate_checkpoint
from fabric_lite.strategies import FSDPStrategy
from fabric_lite.testing import run_distributed
from fabric_lite.utilities.shard_checksums import verify_folder


def connected(**options: Any) -> Fabric:
    strategy = FSDPStrategy(auto_wrap_policy={nn.Linear}, **options)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    return fabric


def made(fabric: Fabric, value: float = 1.0, width: int = 5) -> dict[str, Any]:
    original = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    module, optimizer = fabric.setup(original, Adam(original.parameters(), lr=0.1))
    state = {"model": module, "optimizer": optimizer, "table": torch.empty(3), "step": 0}
    fill(state, value)
    return state


def fill(state: dict[str, Any], value: float) -> None:
    with torch.no_grad():
        for parameter in state["model"].parameters():
            parameter.fill_(value)
        state["table"].fill_(value)
    state["step"] = value


def values(checkpoint: dict[str, Any]) -> set[float]:
    """All that is in a checkpoint; one value, if it is whole."""
    found = {float(checkpoint["step"])}
    for tensor in [checkpoint["table"], *checkpoint["model"].values()]:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        found.update(whole.flatten().tolist() if isinstance(whole, Tensor) else [])
    return found


def seen(state: dict[str, Any]) -> set[float]:
    return values({**state, "model": state["model"].state_dict()})


def save(path: Path) -> None:
    fabric = connected()
    fabric.save(path, made(fabric))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "shards"
    run_distributed(save, 2, path)
    return path


# -- bytes that change -------------------------------------------------------------------------------------------------


def positions(path: Path) -> list[tuple[str, int]]:
    draw = random.Random(0)
    files = sorted(path.iterdir())
    drawn = [(file.name, draw.randrange(file.stat().st_size)) for _ in range(4) for file in files]
    assert len(drawn) == 20
    return drawn


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << position % 8
    file.write_bytes(content)


def load_flipped(path: Path) -> list[str]:
    fabric = connected()
    state = made(fabric, 7.0)
    messages = []
    for name, position in positions(path):
        if fabric.global_rank == 0:
            flip(path / name, position)
        fabric.barrier()
        with pytest.raises(CheckpointError) as error:
            fabric.load(path, state)
        messages.append(f"{name} {error.value}")
        fabric.barrier()
        if fabric.global_rank == 0:
            flip(path / name, position)
    assert seen(state) == {7.0}
    fabric.barrier()
    fabric.load(path, state)
    assert seen(state) == {1.0}
    return messages


def test_a_flipped_bit_is_noticed(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards"
    shutil.copytree(shards, path)
    for messages in run_distributed(load_flipped, 2, path):
        for message in messages:
            name, _, text = message.partition(" ")
            assert text.startswith(f"The checkpoint {str(path)!r} is damaged in {name!r}: its checksum does not fit")
    fabric = Fabric(accelerator="cpu", devices=1)
    for name, position in positions(path):
        flip(path / name, position)
        with pytest.raises(CheckpointError, match=rf"is damaged in '{name}': its checksum does not fit"):
            fabric.load(path)
        with pytest.raises(CheckpointError, match=rf"is damaged in '{name}': its checksum does not fit"):
            consolidate_checkpoint(path, tmp_path / "file")
        flip(path / name, position)
    assert values(fabric.load(path)) == {1.0}


def test_a_missing_file_a_newer_version_and_a_folder_without_checksums(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "shards"
    shutil.copytree(shards, path)
    fabric = Fabric(accelerator="cpu", devices=1)
    (path / "__1_0.distcp").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is damaged in '__1_0\.distcp': it is not there\. Load an older one"):
        fabric.load(path)
    (tmp_path / "elsewhere").rename(path / "__1_0.distcp")
    content = b"fabric-lite checksums 2\n"
    digest = hashlib.blake2b(content, digest_size=16).hexdigest().encode()
    (path / ".checksums").write_bytes(content + digest)
    with pytest.raises(CheckpointError, match=r"has checksums of version '2'.*knows version '1'\. Upgrade"):
        fabric.load(path)
    (path / ".checksums").unlink()
    assert values(fabric.load(path)) == {1.0}


# -- one in the place of another ---------------------------------------------------------------------------------------


def replaced(path: Path, can_exchange: bool) -> list[list[str]]:
    if not can_exchange:
        folder._exchange = lambda *_: False  # as on other systems than Linux
    fabric = connected()
    fabric.save(path, made(fabric, 1.0))
    state = made(fabric, 2.0)
    if fabric.global_rank == 0:  # of killed saves
        (path.parent / ".shards.tmp").write_text("")
        (path.parent / ".shards.old").mkdir()
    fabric.barrier()
    fabric.save(path, state)
    names = [sorted(file.name for file in path.parent.iterdir())]
    fabric.load(path, state)
    assert seen(state) == {2.0}
    fabric.barrier()
    if fabric.global_rank == 0:  # killed between the two renames
        path.rename(path.parent / ".shards.old")
    fabric.barrier()
    fill(state, 3.0)
    fabric.load(path, state)
    assert seen(state) == {2.0}
    with pytest.raises((OSError, RuntimeError), match="not written"):  # and the next save fails
        with_full_disk(fabric, path, state)
    fabric.load(path, state)
    assert seen(state) == {2.0}
    fabric.save(path, state)
    names.append(sorted(file.name for file in path.parent.iterdir()))
    return names


def with_full_disk(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fabric.global_rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        fabric.save(path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_one_in_the_place_of_another(tmp_path: Path, can_exchange: bool) -> None:
    first, _ = run_distributed(replaced, 2, tmp_path / "shards", can_exchange)
    assert first == [["shards"], ["shards"]]


# -- in the background -------------------------------------------------------------------------------------------------


def in_the_background(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fabric = connected()
    state = made(fabric, 1.0)
    for value in (1.0, 2.0, 3.0):  # each waits for the one before
        fill(state, value)
        future = fabric.save_async(path, state)
        fill(state, 99.0)
    fabric.load(path, state)  # and so does this
    assert future.done()
    assert seen(state) == {3.0}
    fabric.save_async(path, made(fabric, 4.0), filter={"model": lambda name, _: name.startswith("0")})
    fabric.save(path, made(fabric, 5.0))
    # the same bytes as without
    future = fabric.save_async(path.with_name("again"), made(fabric, 5.0))
    future.result()
    fabric.barrier()
    for name in ("__0_0.distcp", "__1_0.distcp"):
        assert (path / name).read_bytes() == (path.with_name("again") / name).read_bytes()
    # one process fails: so does the first, and the old one is untouched
    large = made(fabric, 6.0, width=4000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fabric.global_rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    future = fabric.save_async(path, large)
    with pytest.raises(OSError, match=r"shards' was not written\.") as error:
        future.result()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found["error"] = str(error.value)
    fabric.load(path, state)
    found["untouched"] = seen(state)
    one_file = connected(state_dict_type="full")
    fill(state, 8.0)
    one_file.save_async(path, state)
    fill(state, 9.0)
    one_file.load(path, state)
    found["one file"] = path.is_file(), seen(state)
    fabric.save_async(path, state)  # and it ends at once
    return found


def test_in_the_background(tmp_path: Path) -> None:
    first, second = run_distributed(in_the_background, 2, tmp_path / "shards")
    assert "Rank 1 says: [Errno 27]" in first["error"]
    assert "[Errno 27]" in second["error"]
    assert first["untouched"] == {5.0}
    assert first["one file"] == (True, {8.0})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "shards"]
    assert values(Fabric(accelerator="cpu", devices=1).load(tmp_path / "shards")) == {8.0}


def test_a_part_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_PATIENCE_SECONDS", 0.0)
    path = tmp_path / "shards"
    folder.prepare(path)
    with pytest.raises(OSError, match=r"not written: for 0 seconds, nothing came from ranks \[1\]\. All processes"):
        folder.write_parts(path, 0, 2, {"__0_0.distcp": memoryview(b"part")}, {})
    assert not path.exists()
    folder.prepare(path)
    folder.write_parts(path, 1, 2, {"__1_0.distcp": memoryview(b"the other")}, None)
    folder.write_parts(path, 0, 2, {"__0_0.distcp": memoryview(b"part"), ".metadata": memoryview(b"")}, {})
    names = [".checksums", ".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
    assert sorted(file.name for file in path.iterdir()) == names
    verify_folder(path)


# -- killed ------------------------------------------------------------------------------------------------------------

KILLS = 52

# A server, which has torch imported already, forks two processes for each line that it gets. They save again and again.
SERVER = """
import os, sys
import torch
import torch.distributed.checkpoint
torch.set_num_threads(1)
from torch import nn
from fabric_lite import Fabric
from fabric_lite.strategies import FSDPStrategy
import fabric_lite.utilities.cloud_io
import fabric_lite.utilities.shards
import torch._dynamo
import torch.distributed.fsdp
import fabric_lite.strategies.launchers.subprocess_script

def train(rank, store, path, strategy, save):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    store = torch.distributed.FileStore(store, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=FSDPStrategy() if strategy == "fsdp" else strategy)
    fabric.launch()
    model = fabric.setup_module(nn.Linear(400, 400))
    version = 0
    while True:
        version += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(version)
        state = {"model": model, "table": torch.full((3,), float(version)), "step": version}
        getattr(fabric, save)(path, state)
        if version == 2 and rank == 0:  # the first is there, also one that was saved in the background
            os.write(1, b"saves\\n")

for line in sys.stdin:
    pids = []
    for rank in range(2):
        pids.append(os.fork())
        if not pids[-1]:
            sys.stderr = open(os.devnull, "w")
            train(rank, *line.split())
    print(*pids, flush=True)
    for pid in pids:
        os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_killed(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    draw = random.Random(0)
    in_the_middle, versions = 0, set()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for kill in range(KILLS):
            strategy = ["fsdp", "ddp"][kill % 2]
            path = tmp_path / strategy / "a.ckpt"
            save = draw.choice(["save", "save_async"])
            print(tmp_path / f"store{kill}", path, strategy, save, file=server.stdin, flush=True)
            pids = [int(pid) for pid in server.stdout.readline().split()]
            assert server.stdout.readline() == "saves\n"
            time.sleep(draw.uniform(0.0, 0.08))  # the moment is what is tried out
            for pid in draw.sample(pids, 2):
                os.kill(pid, signal.SIGKILL)
                time.sleep(draw.choice([0.0, 0.0, 0.01]))
            assert server.stdout.readline() == "ended\n"
            left = [name for name in os.listdir(path.parent) if name != "a.ckpt"]
            assert len(left) <= 1, "the left-over of an earlier kill was not removed"
            in_the_middle += len(left)
            loaded = fabric.load(path)
            assert len(values(loaded)) == 1, f"kill {kill}"
            versions.add(loaded["step"])
        server.stdin.close()
    assert in_the_middle > KILLS // 5, "hardly a kill hit a save"
    assert len(versions) > 2
