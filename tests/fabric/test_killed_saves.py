"""Processes that are killed while they save leave the old checkpoint or the new one, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fabric_lite import Fabric

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = 220

# A server, which has torch imported already, forks a process for each line that it gets. That saves again and again.
SERVER = """
import os, sys
import torch
torch.set_num_threads(1)
from fabric_lite import Fabric
import fabric_lite.plugins.io.checksum

def train(path, save):
    fabric = Fabric(accelerator="cpu")
    version = 0
    while True:
        version += 1
        state = {"version": version, "w": torch.full((400_000,), float(version)), "end": [version] * 100}
        if save == "save":
            fabric.save(path, state)
        else:
            fabric.save_async(path, state)

for line in sys.stdin:
    path, save = line.split()
    pid = os.fork()
    if not pid:
        train(path, save)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_a_file(server: subprocess.Popen[str], tmp_path: Path) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    fabric = Fabric(accelerator="cpu")
    path = tmp_path / "a.ckpt"
    start = time.perf_counter()
    for version in range(3):
        fabric.save(path, {"version": version, "w": torch.zeros(400_000), "end": [version] * 100})
    one_save = (time.perf_counter() - start) / 3
    fabric.save(path, {"version": 0, "w": [0.0], "end": [0] * 100})
    draw = random.Random(0)
    in_the_middle, seen = 0, set()
    for kill in range(KILLS):
        print(path, draw.choice(["save", "save_async"]), file=server.stdin, flush=True)
        pid = int(server.stdout.readline())
        time.sleep(draw.uniform(0.0, 4 * one_save))  # the moment is what is tried out
        os.kill(pid, signal.SIGKILL)
        assert server.stdout.readline() == "ended\n"
        names = os.listdir(tmp_path)
        left = [name for name in names if name != "a.ckpt"]
        assert len(left) <= 1, "the left-over of an earlier kill was not removed"
        in_the_middle += len(left)
        loaded = fabric.load(path)
        values = {loaded["version"], *map(float, loaded["w"][:: len(loaded["w"]) // 100 + 1]), *loaded["end"]}
        assert values == {loaded["version"]}, f"kill {kill}"
        seen.add(loaded["version"])
    assert in_the_middle > KILLS // 10, "hardly a kill hit a save"
    assert len(seen) > 1, "no save came to its end"
    fabric.save(path, {"version": 0})
    assert os.listdir(tmp_path) == ["a.ckpt"]
