"""How the processes of a run start, what they know, and what comes back from them."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from fabric_lite import Fabric, seed_everything
from fabric_lite.plugins.environments import LightningEnvironment
from fabric_lite.plugins.environments.lightning import find_free_network_port
from fabric_lite.strategies import DDPStrategy
from fabric_lite.strategies.launchers import _MultiProcessingLauncher
from fabric_lite.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

SCRIPT = Path(__file__).with_name("launched.py")
ROOT = SCRIPT.parents[2]
# The server of the latter has started, and its processes share what it has imported.
QUICK_METHODS = ("fork", "forkserver")
METHODS = ("popen", "spawn", *QUICK_METHODS)


def fabric_with(start_method: str, devices: int = 2) -> Fabric:
    return Fabric(accelerator="cpu", devices=devices, strategy=DDPStrategy(start_method=start_method))


# -- the script runs again --------------------------------------------------------------------------------------------


def run_script(*command: object, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*runs: subprocess.Popen[str]) -> list[str]:
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), outputs
    return outputs


def known(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank {rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("script", [("-O", SCRIPT), ("-m", "tests.strategies.launched")], ids=["file", "module"])
def test_script_runs_again(tmp_path, script):
    (output,) = finish(run_script(*script, tmp_path, "--name", "with a space"))
    assert sorted(output.splitlines()) == ["returned 10", "returned 11"]
    first, second = known(tmp_path)
    assert first["ranks"] == [0, 0, 0, 2]
    assert second["ranks"] == [1, 1, 0, 2]
    assert first["variables"].pop("LOCAL_RANK") == "0"
    assert second["variables"].pop("LOCAL_RANK") == "1"
    assert first["variables"] == second["variables"]
    assert first["variables"]["WORLD_SIZE"] == "2"
    assert (first["started"], second["started"]) == (1, 0)
    for rank in (first, second):
        assert rank["arguments"] == ["--name", "with a space"]
        assert rank["optimize"] == int("-O" in script)
        assert rank["total"] == 1
        assert rank["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
        assert rank["launched by somebody"] is True


@pytest.mark.slow
def test_nodes_started_by_hand(tmp_path):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "TEST_NODES": "2"}
    outputs = finish(*(run_script(SCRIPT, tmp_path, NODE_RANK=str(rank), **place) for rank in range(2)))
    assert outputs == ["returned 10\n", "returned 11\n"]
    assert [rank["ranks"] for rank in known(tmp_path)] == [[0, 0, 0, 2], [1, 0, 1, 2]]
    assert [rank["variables"]["NODE_RANK"] for rank in known(tmp_path)] == ["0", "1"]


@pytest.mark.slow
def test_there_must_be_a_script():
    code = "from fabric_lite import Fabric; Fabric(accelerator='cpu', devices=2, strategy='ddp').launch()"
    run = run_script("-c", code)
    assert (
        'There is no script that could be run again for the other processes. Write it to a file, or `strategy="ddp_'
        in (run.communicate(timeout=60)[0])
    )
    assert run.returncode == 1


def test_children_are_started_once_and_by_the_first():
    class Environment(LightningEnvironment):
        creates_processes_externally = False

    launcher = _SubprocessScriptLauncher(Environment(), num_processes=2, num_nodes=1)
    launcher.procs = [object()]
    with pytest.raises(RuntimeError, match=r"have been started already. Call `fabric.launch\(\)` once"):
        launcher.launch(print)
    launcher.procs = []
    os.environ["LOCAL_RANK"] = "1"
    with pytest.raises(
        RuntimeError, match=r"`Environment` says that nobody has started .* this one has the local rank 1"
    ):
        launcher.launch(print)


@pytest.mark.parametrize("launcher", METHODS)
def test_processes_that_others_have_started_join(monkeypatch, launcher):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    launcher = fabric_with(launcher).strategy.launcher
    assert launcher.launch(lambda value, *, more: (value, more, os.getpid()), 1, more=2) == (1, 2, os.getpid())
    assert not getattr(launcher, "procs", [])


# -- a function runs in processes -------------------------------------------------------------------------------------


def share(fabric: Fabric, model: nn.Module, scale: float, *, offset: float = 0) -> dict[str, Any]:
    before = next(model.parameters()).sum().item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fabric.global_rank)
    fabric.barrier()
    shared = next(model.parameters()).mean().item() != fabric.global_rank
    total = fabric.all_reduce(torch.tensor(scale), reduce_op="sum") + offset
    local = [fabric.global_rank, fabric.local_rank, fabric.world_size, torch.get_num_threads()]
    variables = [os.environ[name] for name in ("LOCAL_RANK", "MASTER_PORT", "SOME_VARIABLE")]
    everybody: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everybody, [local, variables, shared, before, random.random()])
    return {"total": total, "everybody": everybody, "random": [torch.rand(1).item(), random.random()]}


@pytest.mark.parametrize("start_method", [pytest.param("spawn", marks=pytest.mark.slow), "fork", "forkserver"])
def test_function_runs_in_processes(monkeypatch, start_method):
    monkeypatch.setenv("SOME_VARIABLE", f"for {start_method}")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seed_everything(7, verbose=False)
    environment = dict(os.environ)
    model = nn.Linear(2, 2, bias=False)
    before = next(model.parameters()).clone()
    result = fabric_with(start_method).launch(share, model, 3.0, offset=1.0)
    seen = [random.random(), torch.rand(1).item(), random.random()]

    assert result["total"] == 7
    assert result["total"].device.type == "cpu"
    (first, port), (second, other_port) = [(rank[0], rank[1].pop(1)) for rank in result["everybody"]]
    threads = 1 if start_method == "fork" else max(1, len(os.sched_getaffinity(0)) // 2)
    assert [first, second] == [[0, 0, 2, threads], [1, 1, 2, threads]]
    assert port == other_port
    assert [rank[1] for rank in result["everybody"]] == [[str(rank), f"for {start_method}"] for rank in range(2)]
    assert not any(rank[2] for rank in result["everybody"])  # each has the model for itself
    assert [rank[3] for rank in result["everybody"]] == [before.sum().item()] * 2
    # Each begins with the random numbers of this process, whose own have not moved.
    assert [rank[4] for rank in result["everybody"]] == [seen[0]] * 2
    assert result["random"] == seen[1:]
    assert dict(os.environ) == environment
    if start_method == "forkserver":
        assert torch.equal(next(model.parameters()), before)


def switches(fabric: Fabric) -> list[object]:
    return [torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark]


@pytest.mark.parametrize("start_method", QUICK_METHODS)
def test_switches_are_handed_over(monkeypatch, start_method):
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert fabric_with(start_method).launch(switches) == [torch.float64, "high", True]


def ranks(fabric: Fabric) -> int:
    return fabric.world_size


def test_launching_again():
    fabric = fabric_with("fork")
    assert [fabric.launch(ranks), fabric.launch(ranks)] == [2, 2]


def test_a_closure_can_be_forked():
    value = 5
    assert fabric_with("fork").launch(lambda fabric: value + fabric.world_size) == 7


def compute(fabric: Fabric) -> float:
    return torch.ones(1000, 1000).matmul(torch.ones(1000, 1000)).exp().mean().item()


def test_forked_processes_compute_after_threads_were_used(monkeypatch):
    """Those of OpenMP are not there in a forked process, which would wait for them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fabric, threads = fabric_with("fork"), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert compute(fabric) == fabric.launch(compute)
    finally:
        torch.set_num_threads(threads)


def test_what_does_not_pickle():
    with pytest.raises(
        TypeError, match=r"cannot be sent to another process: .*lambda.* Pass a function that is defined at"
    ):
        fabric_with("forkserver").launch(lambda fabric: 1)
    with pytest.raises(TypeError, match=r"cannot be sent to another process: .*generator.*"):
        fabric_with("forkserver").launch(share, (value for value in ()))
    with pytest.raises(ProcessRaisedException, match="What rank 0 returns cannot be sent back, a `func"):
        fabric_with("fork").launch(lambda fabric: lambda: 1)


def test_function_is_needed():
    with pytest.raises(TypeError, match=r"`fabric.launch\(train\)`, with `train\(fabric\)` a function"):
        fabric_with("spawn").launch()


def test_no_fork_after_a_device_was_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be forked after the device 'cuda' was used, and something before"):
        fabric_with("fork").launch(ranks)
    assert fabric_with("forkserver").launch(ranks) == 2  # whose processes come from another one


def test_no_fork_after_another_accelerator_was_used(monkeypatch):
    class Module:
        is_initialized = staticmethod(lambda: True)

    fabric = fabric_with("fork")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: Module if device == "xpu" else torch.cuda)
    with pytest.raises(RuntimeError, match="cannot be forked after the device 'xpu' was used"):
        fabric.launch(ranks)


@pytest.mark.slow
def test_script_without_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from fabric_lite import Fabric\n"
        "def train(fabric): pass\n"
        "Fabric(accelerator='cpu', devices=2, strategy='ddp_spawn').launch(train)\n"
    )
    run = run_script(script)
    output = run.communicate(timeout=60)[0]
    assert 'Put what it does under `if __name__ == "__main__":`, or write `strategy="ddp"`.' in output
    assert "ended with exit code 1. It had not run anything yet: what it printed says why." in output
    assert run.returncode == 1


def test_unknown_start_method():
    with pytest.raises(ValueError, match=r"cannot start processes by 'thread'. Write `start_method=` one of '.*spawn'"):
        _MultiProcessingLauncher(fabric_with("fork").strategy, start_method="thread")


def test_only_forking_works_in_notebooks():
    found = {method: fabric_with(method).strategy.launcher.is_interactive_compatible for method in METHODS}
    assert found == {"popen": False, "spawn": False, "fork": True, "forkserver": False}


@pytest.mark.parametrize("start_method", METHODS)
def test_launcher_keeps_nothing_alive(start_method):
    gc.collect()
    gc.disable()  # it must go without
    try:
        fabric = fabric_with(start_method)
        if start_method == "fork":
            fabric.launch(ranks)
        gone = [weakref.ref(fabric), weakref.ref(fabric.strategy)]
        del fabric
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
