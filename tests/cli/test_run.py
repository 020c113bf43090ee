"""``fabric-lite run``: what it refuses, what it hands on to torchrun, and real runs of two processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed.run

from fabric_lite.accelerators import ACCELERATOR_REGISTRY
from fabric_lite.accelerators.device import DeviceAccelerator
from fabric_lite.cli import main


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script in the current folder; the variables that a run leaves go with the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("FABRIC_LITE_STARTED_BY", "OMP_NUM_THREADS", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    Path("train.py").write_text("")
    return "train.py"


@pytest.fixture
def torchrun(monkeypatch):
    """Stands in for torchrun, which is asked for runs on machines that are not there: what it was called with."""
    calls: list[argparse.Namespace] = []
    monkeypatch.setattr(torch.distributed.run, "run", calls.append)
    return calls


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("trian.py", "there is no file 'trian.py'; did you mean 'train.py'?"),
        ("zzz", "there is no file 'zzz'."),
        ("no/folder/train.py", "there is no file 'no/folder/train.py'."),
        ("-m no_such_module.x", "there is no module 'no_such_module.x'; without -m it would be a file."),
        (
            "--accelerator cpu --devices two train.py",
            "--accelerator cpu --devices two: `Fabric(accelerator='cpu', devices='two')`: on the CPU, `devices` is the"
            " number of processes, an integer above 0.",
        ),
        ("--accelerator cpu --devices -1 train.py", "--accelerator cpu --devices -1: `Fabric(accelerator='cpu', dev"),
        ("--devices 0 train.py", "--devices 0: `Fabric(devices='0')` leaves nothing to run on."),
        ("train.py --accelerator cuda", "--accelerator cuda --devices 1: `CUDAAccelerator`: this machine has no such"),
        ("--accelerator hat train.py", "--accelerator hat --devices 1: `Fabric(accelerator='hat')`: choose one of"),
        ("--node-rank 2 --num-nodes 2 train.py", "--node-rank 2: with --num-nodes 2 it is a number from 0 to 1."),
        ("--node_rank=-1 train.py", "--node-rank -1: with --num-nodes 1 it is a number from 0 to 0."),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_starts(script, torchrun, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    environment = dict(os.environ)
    assert main(["run", *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(f"fabric-lite run: {message}")
    assert not torchrun
    assert os.environ == environment


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--devices 2", "name a script: fabric-lite run [options] script.py"),
        ("--num-nodes 0 train.py", "'0' is no number of machines; write 2, or 1:4 if they may come and go."),
        ("--num-nodes 4:1 train.py", "'4:1' is no number of machines"),
        ("--strategy dpp train.py", "`Fabric(strategy='dpp')`: choose one of"),
        ("train.py --strategy ddp_spawn", "'ddp_spawn' starts processes itself, and `fabric-lite run` has started"),
        ("--precision 12 train.py", "invalid choice: '12'"),
        ("--main-port x train.py", "argument --main-port/--main_port: invalid int value: 'x'"),
        ("--dev 2 train.py", "unrecognized arguments: --dev"),
    ],
)
def test_malformed_arguments(script, torchrun, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["run", *arguments.split()])
    assert message in capsys.readouterr().err
    assert not torchrun


# -- what torchrun is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, own",
    [
        ("train.py", []),
        ("train.py --lr 0.1 -v data.csv", ["--lr", "0.1", "-v", "data.csv"]),
        ("train.py --devices 3 --lr=0.1", ["--lr=0.1"]),
        ("--devices 3 train.py -- --devices 4", ["--devices", "4"]),
        ("--devices 3 train.py a -- -- --max-restarts", ["a", "--", "--max-restarts"]),
        ("train.py --max-restarts 1 --log-dir logs -m x -t 3", ["--log-dir", "logs", "-m", "x", "-t", "3"]),
        ("train.py --dev 2 -1", ["--dev", "2", "-1"]),
    ],
)
def test_the_scripts_arguments(script, torchrun, arguments, own):
    assert main(["run", "--accelerator", "cpu", *arguments.split()]) == 0
    (call,) = torchrun
    assert (call.training_script, call.training_script_args) == ("train.py", own)
    assert call.nproc_per_node == ("3" if "--devices 3" in arguments else "1")
    assert call.max_restarts == int("--max-restarts 1" in arguments)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--max-restarts 1", {"standalone": True, "max_restarts": 1}),
        ("", {"nnodes": "1:1", "standalone": True, "local_addr": "127.0.0.1", "max_restarts": 0, "module": False}),
        (
            "--main-port 1234",
            {"standalone": False, "rdzv_backend": "static", "master_addr": "127.0.0.1", "master_port": 1234},
        ),
        (
            "--num-nodes 2 --node-rank 1 --main-address host",
            {"nnodes": "2:2", "node_rank": 1, "master_addr": "host", "master_port": 29400, "rdzv_backend": "static"},
        ),
        (
            "--num_nodes=2 --node_rank=1 --main_address=host --main_port=1 --max_restarts=3",
            {"nnodes": "2:2", "rdzv_backend": "c10d", "rdzv_endpoint": "host:1", "rdzv_conf": "is_host=0"}
            | {"max_restarts": 3},
        ),
        (
            "--num-nodes 1:4 --main-address host --rdzv-id job",
            {"nnodes": "1:4", "rdzv_backend": "c10d", "rdzv_endpoint": "host:29400", "rdzv_id": "job", "rdzv_conf": ""},
        ),
        (
            "--num-nodes 2 --node-rank 0 --rdzv-endpoint host:1 --rdzv-conf timeout=9 --local-addr 10.0.0.1",
            {"rdzv_backend": "c10d", "rdzv_endpoint": "host:1", "rdzv_conf": "timeout=9,is_host=1"}
            | {"local_addr": "10.0.0.1"},
        ),
        (
            "--num-nodes 2 --node-rank 1 --rdzv-backend c10d --main-address host",
            {"rdzv_endpoint": "host:29400", "rdzv_conf": "is_host=0"},
        ),
        (
            "--num-nodes 2 --node-rank 1 --rdzv-backend etcd-v2 --rdzv-endpoint host:2379",
            {"rdzv_backend": "etcd-v2", "rdzv_endpoint": "host:2379", "rdzv_conf": ""},
        ),
        (
            "--monitor-interval 0.5 --log-dir logs --redirects 3 --tee 1:1 --local-ranks-filter 0",
            {"monitor_interval": 0.5, "log_dir": "logs", "redirects": "3", "tee": "1:1", "local_ranks_filter": "0"},
        ),
    ],
)
def test_torchruns_options(script, torchrun, arguments, expected):
    assert main(["run", "--accelerator", "cpu", *arguments.split(), script]) == 0
    assert {name: getattr(torchrun[0], name) for name in expected} == expected
    starts_over = any(text in arguments for text in ("1:4", "restarts"))
    assert os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == ("1" if starts_over else None)


@pytest.mark.parametrize("devices, processes", [("-1", 4), ("auto", 4), ("0,2,3", 3), ("3,", 1), ("2", 2)])
def test_as_many_processes_as_devices(script, torchrun, monkeypatch, devices, processes):
    class Hats(DeviceAccelerator):
        """A machine with four devices of a kind that torch does not have."""

        device_type = "hat"
        auto_device_count = staticmethod(lambda: 4)
        is_available = staticmethod(lambda: True)
        get_parallel_devices = staticmethod(lambda devices: [torch.device("meta", index) for index in devices])

    Hats.register_accelerators(ACCELERATOR_REGISTRY)
    try:
        assert main(["run", "--accelerator", "hat", "--devices", devices, script]) == 0
    finally:
        del ACCELERATOR_REGISTRY["hat"]
    assert torchrun[0].nproc_per_node == str(processes)
    assert os.environ["LT_DEVICES"] == devices


def test_the_cores_are_shared(script, torchrun, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert main(["run", "--accelerator", "cpu", "--devices", "4", script]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "4"
    assert main(["run", "--accelerator", "cpu", "--devices", "2", script]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "4"  # the user's choice, once it is there


@pytest.mark.parametrize(
    "arguments",
    ["", "--accelerator cpu --strategy ddp --devices 2 --num-nodes 3 --node-rank 2 --main-address h --precision 64"],
)
def test_the_variables_are_those_of_lightning(script, torchrun, arguments):
    from lightning.fabric.cli import _run

    def left() -> dict[str, str]:
        return {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("LT_")}

    assert main(["run", *arguments.split(), script]) == 0
    ours = left()
    with pytest.raises(SystemExit, match="0"):
        _run([*arguments.split(), script])
    assert ours == left()


def test_what_torchrun_refuses(script, capsys):
    assert main(["run", "--accelerator=cpu", "--rdzv-endpoint=localhost:0", "--rdzv-backend=hat", script]) == 2
    assert capsys.readouterr().err.startswith(
        "fabric-lite run: torchrun: The rendezvous backend 'hat' is not registered"
    )


def test_a_range_of_machines(script, torchrun):
    assert main(["run", "--num-nodes", "1:4", script]) == 0
    assert os.environ["LT_NUM_NODES"] == "1:4"


# -- real runs ---------------------------------------------------------------------------------------------------------

JOINS = """
import json, os, sys, tempfile
from pathlib import Path

import torch
from fabric_lite import Fabric

fabric = Fabric()  # joins at once, also without `launch`
total = fabric.all_reduce(torch.tensor(fabric.global_rank + 1.0), reduce_op="sum")
found = {
    "arguments": sys.argv[1:],
    "main": __name__,
    "ranks": [fabric.global_rank, fabric.local_rank, fabric.node_rank, fabric.world_size],
    "strategy": type(fabric.strategy).__name__,
    "precision": fabric._precision.precision,
    "environment": type(fabric.strategy.cluster_environment).__name__,
    "total": total.item(),
    "threads": torch.get_num_threads(),
}
fabric.launch()
Path(f"rank-{fabric.global_rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_a_script_joins(start, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "joins.py").write_text(JOINS)
    (tmp_path / "temporary").mkdir()
    options = "--accelerator cpu --devices 2 --precision bf16-true -m package.joins"
    run = start("run", *options.split(), "--lr", "0.1", "--", "--devices", env={"TMPDIR": str(tmp_path / "temporary")})
    assert run.wait() == 0, run.err
    assert run.err == ""
    assert not run.alive()
    assert not [*(tmp_path / "temporary").iterdir()]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == {
            "arguments": ["--lr", "0.1", "--devices"],
            "main": "__main__",
            "ranks": [rank, rank, 0, 2],
            "strategy": "DDPStrategy",
            "precision": "bf16-true",
            "environment": "TorchElasticEnvironment",
            "total": 3.0,
            "threads": threads,
        }


FAILS = """
import os
from fabric_lite import Fabric

fabric = Fabric()
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
fabric.barrier()
if fabric.global_rank == 1:
    raise ValueError(f"nan in attempt {attempt}")
fabric.barrier()
"""


@pytest.mark.slow
def test_a_failure_comes_first_and_is_tried_again(start, tmp_path):
    (tmp_path / "train.py").write_text(FAILS)
    run = start("run", "train.py", "--accelerator=cpu", "--devices=2", "--max-restarts=1")
    assert run.wait() == 1
    assert not run.alive()
    first, *_ = (line for line in run.err.splitlines() if "ValueError: " in line or "RuntimeError: " in line)
    assert first.endswith("ValueError: nan in attempt 0")  # torch puts the rank before
    assert "ValueError: nan in attempt 1" in run.err
    *_, summary = run.err.splitlines()
    assert summary.startswith("fabric-lite run: failed: rank ")
    assert " with exit code 1" in summary
    assert summary.endswith(". The first traceback above is that of the first failure.")


WAITS = """
import os
from pathlib import Path

from fabric_lite import Fabric

fabric = Fabric()
fabric.barrier()
written = Path(f"writing-{fabric.global_rank}")
written.write_text(str(fabric._connector.num_nodes))
written.rename(f"rank-{fabric.global_rank}")  # whole, as soon as it is there
while True:  # one computes, the other waits for it
    if fabric.global_rank == 1:
        fabric.barrier()
"""
ELASTIC = "--num-nodes=1:2 --rdzv-endpoint=localhost:0 --rdzv-conf=last_call_timeout=1 --rdzv-id=signals"


@pytest.mark.slow
@pytest.mark.parametrize("sent, options", [(signal.SIGINT, ""), (signal.SIGKILL, ELASTIC)])
def test_no_process_is_left(start, tmp_path, sent, options):
    (tmp_path / "train.py").write_text(WAITS)
    run = start("run", "--accelerator=cpu", "--devices=2", *options.split(), "train.py")
    run.until(lambda: all((tmp_path / f"rank-{rank}").exists() for rank in range(2)))
    run.process.send_signal(sent)
    assert run.wait(10) == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert run.gone()
    assert {(tmp_path / f"rank-{rank}").read_text() for rank in range(2)} == {"1"}
    if sent == signal.SIGINT:
        assert run.err.splitlines()[-1] == "fabric-lite run: ended by SIGINT"


@pytest.mark.parametrize("sent", [signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)])
def test_what_a_scheduler_sends_reaches_the_script(start, tmp_path, sent):
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys\n"
        "signal.signal(int(sys.argv[1]), lambda *_: sys.exit(pathlib.Path('saved').write_text('')))\n"
        "pathlib.Path('ready').write_text('')\n"
        "while True: signal.pause()\n"
    )
    run = start("run", "train.py", int(sent))
    run.until((tmp_path / "ready").exists)
    run.process.send_signal(sent)
    assert run.wait(10) == 128 + sent
    assert (tmp_path / "saved").exists()
    assert not run.alive()
