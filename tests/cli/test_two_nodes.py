"""Two machines (two network namespaces): a worker of one is killed, and the run starts over and finishes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

STEPS, DEADLY_STEP = 6, 3
TRAIN = """
import os, signal, sys
from pathlib import Path

import torch
from fabric_lite import Fabric

steps, deadly_step = map(int, sys.argv[1:])
fabric = Fabric(strategy="ddp")
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
state = {"model": model, "optimizer": optimizer, "step": 0}
if Path("checkpoint").exists():
    fabric.load("checkpoint", state)
begin = state["step"]
for step in range(begin, steps):
    generator = torch.Generator().manual_seed(step * fabric.world_size + fabric.global_rank)
    x = torch.randn(8, 4, generator=generator)
    optimizer.zero_grad()
    fabric.backward(model(x).square().mean())
    optimizer.step()
    state["step"] = step + 1
    fabric.save("checkpoint", state)
    if step == deadly_step and begin == 0 and os.environ["NODE"] == "1":
        Path("announced").write_text(str(os.getpid()))
        signal.pause()  # until it is killed
hosts = fabric.all_gather(torch.tensor(int(os.environ["NODE"]))).tolist()
Path(f"node-{os.environ['NODE']}").write_text(f"{fabric.global_rank} of {fabric.world_size} {begin} {sorted(hosts)}")
"""


@dataclass(frozen=True)
class Node:
    """A machine."""

    namespace: str
    address: str
    interface: str = "cable"

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that runs there."""
        return ["ip", "netns", "exec", self.namespace]

    @property
    def env(self) -> dict[str, str]:
        return {"NODE": self.namespace[-1], "GLOO_SOCKET_IFNAME": self.interface, "TP_SOCKET_IFNAME": self.interface}


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two machines and the cable between them."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux and the command ip, of the package iproute2")
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root only")
    # Each machine has an address book of its own, so that the addresses may be any.
    pair = [Node(f"fabric-lite-{os.getpid()}-{index}", f"10.213.0.{index + 1}") for index in range(2)]
    try:
        for node in pair:
            ip("netns", "add", node.namespace)
        first, second = pair
        ends = [("netns", node.namespace) for node in pair]
        ip("link", "add", first.interface, *ends[0], "type", "veth", "peer", "name", second.interface, *ends[1])
        for node in pair:
            ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", node.interface)
            for interface in (node.interface, "lo"):
                ip("-n", node.namespace, "link", "set", interface, "up")
        yield pair
    finally:
        for node in pair:
            subprocess.run(["ip", "netns", "delete", node.namespace], capture_output=True)


def undisturbed(ranks: int) -> dict[str, torch.Tensor]:
    """The weights after the same training in plain torch."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(ranks):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step * ranks + rank))
            (model(x).square().mean() / ranks).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.slow
def test_a_run_survives_the_death_of_a_worker(nodes, start, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    main = nodes[0].address
    runs = []
    for rank, node in enumerate(nodes):
        options = f"--num-nodes=2 --node-rank={rank} --main-address={main} --local-addr={node.address}"
        arguments = [*options.split(), "--accelerator=cpu", "--max-restarts=2", "train.py", STEPS, DEADLY_STEP]
        runs.append(start("run", *arguments, prefix=node.prefix, env=node.env))
    announced = tmp_path / "announced"
    runs[0].until(lambda: announced.exists() and announced.read_text())
    os.kill(int(announced.read_text()), signal.SIGKILL)
    assert [run.wait() for run in runs] == [0, 0], "\n".join(run.err for run in runs)
    assert not any(run.alive() for run in runs)
    said = [(tmp_path / f"node-{index}").read_text() for index in range(2)]
    resumed = DEADLY_STEP + 1
    assert sorted(said) == [f"{rank} of 2 {resumed} [0, 1]" for rank in range(2)]
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    assert saved["step"] == STEPS
    for name, tensor in undisturbed(ranks=2).items():
        assert torch.equal(saved["model"][name], tensor), name
