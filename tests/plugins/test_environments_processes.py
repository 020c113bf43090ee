"""Real processes join each other by what launchers and schedulers leave in the environment."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fabric_lite import Fabric
from fabric_lite.plugins.environments.lightning import find_free_network_port
from fabric_lite.testing import run_distributed


def variables(rank: int, port: int, hosts: str) -> dict[str, dict[str, str]]:
    """What each launcher leaves in one of two processes on this machine."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {
        "TorchElasticEnvironment": {
            **meeting,
            "TORCHELASTIC_RUN_ID": "id",
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
        },
        "SLURMEnvironment": {
            "MASTER_PORT": str(port),
            "SLURM_JOB_ID": "1",
            "SLURM_NODELIST": "localhost,other[1-9]",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": "1",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
        },
        "LSFEnvironment": {
            "MASTER_PORT": str(port),
            "LSB_JOBID": "1",
            "LSB_DJOB_RANKFILE": hosts,
            "JSM_NAMESPACE_SIZE": "2",
            "JSM_NAMESPACE_RANK": str(rank),
            "JSM_NAMESPACE_LOCAL_RANK": str(rank),
        },
        "KubeflowEnvironment": {
            **meeting,
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "WORLD_SIZE": "2",
            "RANK": str(rank),
        },
    }


def join(hosts: str) -> dict[str, list[Any]]:
    """Join the other process once by each launcher's variables."""
    rank, base, results = dist.get_rank(), dict(os.environ), {}
    for name in variables(rank, 0, hosts):
        ports = [find_free_network_port()]
        dist.broadcast_object_list(ports, src=0)
        dist.destroy_process_group()
        os.environ.clear()
        os.environ.update({key: value for key, value in base.items() if "RANK" not in key and key != "WORLD_SIZE"})
        for key in ("MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(key, None)
        os.environ.update(variables(rank, ports[0], hosts)[name])
        pods = 2 if name == "KubeflowEnvironment" else 1
        fabric = Fabric(accelerator="cpu", devices=2 // pods, num_nodes=pods)
        fabric.launch()
        fabric.launch()  # joins, as often as one likes
        total = fabric.all_reduce(torch.tensor(float(fabric.global_rank + 1)), reduce_op="sum").item()
        environment = type(fabric.strategy.cluster_environment).__name__  # type: ignore[attr-defined]
        ranks = (fabric.global_rank, fabric.local_rank, fabric.node_rank)
        results[name] = [environment, ranks, fabric.world_size, total]
    return results


def test_each_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FABRIC_LITE_ENV", raising=False)
    hosts = tmp_path / "hosts"
    hosts.write_text(f"launch\n{socket.gethostname()}\n")
    by_rank = run_distributed(join, 2, str(hosts))
    for rank, results in enumerate(by_rank):
        for name, result in results.items():
            ranks = (rank, 0, rank) if name == "KubeflowEnvironment" else (rank, rank, 0)
            assert result == [name, ranks, 2, 3.0]


def first_fails(local: bool) -> list[str]:
    """The first process fails in the block that the other waits for."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    ran = []
    try:
        with fabric.rank_zero_first(local=local):
            ran.append("block")
            if fabric.global_rank == 0:
                raise OSError("the disk is full")
    except (OSError, RuntimeError) as error:
        ran.append(str(error))
    with fabric.rank_zero_first(local=local):  # and both go on from there
        ran.append("once more")
    return ran


@pytest.mark.parametrize("local", [False, True])
def test_nobody_waits_for_a_first_process_that_failed(local: bool) -> None:
    first, second = run_distributed(first_fails, 2, local)
    assert first == ["block", "the disk is full", "once more"]
    assert "OSError: the disk is full" in second[0]
    assert "Rank 0 failed in the block of `fabric.rank_zero_first()`" in second[0]
    assert second[1:] == ["once more"]
