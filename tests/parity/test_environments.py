"""Under the same variables, the cluster environments of both say the same."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning.fabric
import lightning.fabric.plugins.environments as theirs
import lightning.fabric.plugins.environments.mpi as their_mpi
import pytest

import fabric_lite
import fabric_lite.plugins.environments as ours

QUESTIONS = ("world_size", "global_rank", "local_rank", "node_rank")
PROPERTIES = ("creates_processes_externally", "main_address", "main_port")
STARTS = ("SLURM_", "MASTER_", "LSB_", "JSM_", "OMPI_", "PMI_", "MV2_", "TORCHELASTIC_", "KUBERNETES_", "PET_")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")

HERE = socket.gethostname()
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "4321",
    "WORLD_SIZE": "6",
    "RANK": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
}
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "6",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "3",
    "SLURM_NODELIST": "n[007-009]",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}
LSF = {
    "LSB_JOBID": "98765",
    "LSB_DJOB_RANKFILE": "hosts",
    "JSM_NAMESPACE_SIZE": "3",
    "JSM_NAMESPACE_RANK": "2",
    "JSM_NAMESPACE_LOCAL_RANK": "1",
}
KUBEFLOW = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "4", "RANK": "3"}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[str, str]], None]]:
    """Sets these variables of launchers and no others. Lightning's classes write some, so all are put back by hand."""
    (tmp_path / "hosts").write_text(f"launch\nother\n{HERE}\n{HERE}\n")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    others = {name: value for name, value in before.items() if not name.startswith(STARTS) and name not in NAMES}
    others["PATH"] = str(tmp_path)  # no srun, unless a test puts it there

    def put(values: dict[str, str]) -> None:
        os.environ.clear()
        os.environ.update(others | values)

    put({})
    yield put
    os.environ.clear()
    os.environ.update(before)


def answers(environment: Any) -> dict[str, Any]:
    """What an environment says to everything that there is to ask."""

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (KeyError, ValueError):  # Lightning has one or the other, ours is both
            return "a variable is missing"

    asked = {name: ask(lambda name=name: getattr(environment, name)) for name in PROPERTIES}  # type: ignore[misc]
    environment.set_world_size(100)
    environment.set_global_rank(100)
    return asked | {name: ask(lambda name=name: getattr(environment, name)()) for name in QUESTIONS}  # type: ignore[misc]


CASES: dict[str, tuple[str, dict[str, str]]] = {
    "torchrun": ("TorchElasticEnvironment", TORCHRUN),
    "torchrun, the group not said": (
        "TorchElasticEnvironment",
        {k: v for k, v in TORCHRUN.items() if k != "GROUP_RANK"},
    ),
    "SLURM": ("SLURMEnvironment", SLURM),
    "SLURM, address and port of one's own": (
        "SLURMEnvironment",
        {**SLURM, "MASTER_ADDR": "me", "MASTER_PORT": "1234"},
    ),
    "SLURM, a job with a short number": ("SLURMEnvironment", {**SLURM, "SLURM_JOB_ID": "7"}),
    "SLURM, without variables": ("SLURMEnvironment", {}),
    "SLURM, one task": ("SLURMEnvironment", {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}),
    "LSF": ("LSFEnvironment", LSF),
    "LSF, port of one's own": ("LSFEnvironment", {**LSF, "MASTER_PORT": "1234"}),
    "LSF, without the rank": ("LSFEnvironment", {k: v for k, v in LSF.items() if k != "JSM_NAMESPACE_RANK"}),
    "Kubeflow": ("KubeflowEnvironment", KUBEFLOW),
    "Kubeflow, without variables": ("KubeflowEnvironment", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_addresses(case: str, variables: Callable[[dict[str, str]], None]) -> None:
    name, values = CASES[case]
    said = []
    for library in (theirs, ours):
        variables(values)
        said.append(answers(getattr(library, name)()))
    assert said[0] == said[1]
    assert said[1]["creates_processes_externally"]


def test_torchrun_without_variables(variables: Callable[[dict[str, str]], None]) -> None:
    for library in (theirs, ours):
        variables({})
        environment = library.TorchElasticEnvironment()
        with pytest.warns(UserWarning, match="MASTER_ADDR"):
            assert environment.main_address == "127.0.0.1"
        with pytest.warns(UserWarning, match="MASTER_PORT"):
            assert environment.main_port == 12910
        for question in ("world_size", "global_rank", "local_rank"):
            with pytest.raises(KeyError):
                getattr(environment, question)()


@pytest.mark.parametrize("missing", ["LSB_DJOB_RANKFILE", "LSB_JOBID"])
def test_lsf_without_variables(missing: str, variables: Callable[[dict[str, str]], None]) -> None:
    for library in (theirs, ours):
        variables({name: value for name, value in LSF.items() if name != missing})
        with pytest.raises(ValueError, match=missing):
            library.LSFEnvironment()


DETECTED: dict[str, dict[str, str]] = {
    "nothing": {},
    "torchrun": TORCHRUN,
    "SLURM": SLURM,
    "torchrun within SLURM": TORCHRUN | SLURM,
    "LSF": LSF,
    "half of LSF": {"LSB_JOBID": "1", "JSM_NAMESPACE_SIZE": "2"},
    "SLURM, a shell": {**SLURM, "SLURM_JOB_NAME": "bash"},
    "SLURM, interactive": {**SLURM, "SLURM_JOB_NAME": "interactive"},
    "SLURM, without a name": {name: value for name, value in SLURM.items() if name != "SLURM_JOB_NAME"},
    "variables of torchrun, set by hand": {name: value for name, value in TORCHRUN.items() if "ELASTIC" not in name},
}


@pytest.mark.parametrize("case", DETECTED)
def test_detection(case: str, variables: Callable[[dict[str, str]], None]) -> None:
    variables(DETECTED[case])
    for name in ("TorchElasticEnvironment", "SLURMEnvironment", "LSFEnvironment", "MPIEnvironment"):
        assert getattr(ours, name).detect() == getattr(theirs, name).detect(), name
    chosen = []
    for library in (lightning.fabric, fabric_lite):
        fabric = library.Fabric(accelerator="cpu", strategy=library.strategies.SingleDeviceStrategy())
        chosen.append(type(fabric._connector.cluster_environment).__name__)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    "nodes",
    ["alpha", "alpha,beta", "alpha beta", "host[5-9]", "host[5,7]", "host[007-009,12]", "host[3]", "a[1-2],b[3-4]", ""],
)
def test_the_first_node(nodes: str) -> None:
    first = [library.SLURMEnvironment.resolve_root_node_address(nodes) for library in (theirs, ours)]
    assert first[0] == first[1]


@pytest.mark.parametrize("name", ["train", "bash", "interactive", None])
@pytest.mark.parametrize("number", ["123", "garbage", None])
def test_the_job(name: str | None, number: str | None, variables: Callable[[dict[str, str]], None]) -> None:
    values = {"SLURM_JOB_NAME": name, "SLURM_JOB_ID": number}
    variables({key: value for key, value in values.items() if value is not None})
    for question in ("job_name", "job_id"):
        assert getattr(ours.SLURMEnvironment, question)() == getattr(theirs.SLURMEnvironment, question)()


def test_submitting_a_job_again() -> None:
    for arguments in ({}, {"auto_requeue": False, "requeue_signal": 12}):
        made = [library.SLURMEnvironment(**arguments) for library in (theirs, ours)]
        assert made[0].auto_requeue == made[1].auto_requeue
        assert made[0].requeue_signal == made[1].requeue_signal


def test_srun_that_is_not_used(variables: Callable[[dict[str, str]], None], tmp_path: Path) -> None:
    (tmp_path / "srun").touch(mode=0o755)
    for library in (theirs, ours):
        with pytest.warns(UserWarning, match="`srun`.* available .* not used.*srun python"):
            assert not library.SLURMEnvironment.detect()
        with pytest.warns(UserWarning, match="srun"):
            library.SLURMEnvironment()


def test_tasks_that_slurm_may_put_anywhere(variables: Callable[[dict[str, str]], None]) -> None:
    variables({"SLURM_NTASKS": "4"})
    for library in (theirs, ours):
        with pytest.raises(RuntimeError, match=r"`--ntasks=4`.*`--ntasks-per-node=4`"):
            library.SLURMEnvironment()


SETTINGS: dict[str, tuple[str, dict[str, str], int, int]] = {
    "torchrun": ("TorchElasticEnvironment", TORCHRUN, 2, 3),
    "torchrun, other devices": ("TorchElasticEnvironment", TORCHRUN, 3, 3),
    "torchrun, other nodes": ("TorchElasticEnvironment", TORCHRUN, 2, 1),
    "SLURM": ("SLURMEnvironment", SLURM, 2, 3),
    "SLURM, other devices": ("SLURMEnvironment", SLURM, 1, 3),
    "SLURM, other nodes": ("SLURMEnvironment", SLURM, 2, 2),
    "SLURM, interactive": ("SLURMEnvironment", {**SLURM, "SLURM_JOB_NAME": "bash"}, 8, 8),
    "SLURM, nothing said": ("SLURMEnvironment", {}, 8, 8),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_the_script_asks_for(case: str, variables: Callable[[dict[str, str]], None]) -> None:
    name, values, devices, nodes = SETTINGS[case]
    variables(values)
    raised = []
    for library in (theirs, ours):
        try:
            raised.append(getattr(library, name)().validate_settings(num_devices=devices, num_nodes=nodes))
        except ValueError as error:
            assert str(devices) in str(error)  # noqa: PT017 - both libraries are asked, and compared below
            raised.append(ValueError)
    assert raised[0] == raised[1]


class Comm:
    """What mpi4py has as COMM_WORLD, in the third of four processes on two machines."""

    def Get_size(self) -> int:
        return 4

    def Get_rank(self) -> int:
        return 2

    def bcast(self, value: Any, root: int) -> Any:
        return {str: "first", int: 4711}.get(type(value), ["first", HERE])

    def gather(self, value: Any, root: int) -> None:
        return None

    def Split(self, color: int) -> Any:
        assert color == 1
        return SimpleNamespace(Get_rank=lambda: 0)


def test_mpi(variables: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")
    package.__spec__ = ModuleSpec("mpi4py", None)
    package.MPI, module.COMM_WORLD = module, Comm()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    monkeypatch.setattr(their_mpi, "_MPI4PY_AVAILABLE", True)
    variables({"OMPI_COMM_WORLD_SIZE": "4"})
    assert theirs.MPIEnvironment.detect()
    assert ours.MPIEnvironment.detect()
    said = [answers(library.MPIEnvironment()) for library in (theirs, ours)]
    assert said[0] == said[1]
    assert said[1]["main_address"] == "first"
    assert (said[1]["world_size"], said[1]["global_rank"], said[1]["node_rank"]) == (4, 2, 1)
