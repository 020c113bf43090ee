"""Finding out who has started this process: in which order, why, and how to switch it off."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fabric_lite import Fabric
from fabric_lite.plugins.environments import LightningEnvironment
from fabric_lite.plugins.environments.detection import choose_environment
from fabric_lite.plugins.environments.variables import MissingVariableError

STARTS = ("SLURM_", "MASTER_", "LSB_", "JSM_", "OMPI_", "PMI_", "MV2_", "TORCHELASTIC_", "KUBERNETES_", "FABRIC_LITE_")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")

# In the order in which they are looked for.
VARIABLES = {
    "TorchElasticEnvironment": {"TORCHELASTIC_RUN_ID": "id", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
    "SLURMEnvironment": {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"},
    "MPIEnvironment": {"OMPI_COMM_WORLD_SIZE": "4"},
    "LSFEnvironment": {
        "LSB_JOBID": "1",
        "LSB_DJOB_RANKFILE": "hosts",
        "JSM_NAMESPACE_SIZE": "2",
        "JSM_NAMESPACE_RANK": "1",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
    },
    "KubeflowEnvironment": {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "MASTER_ADDR": "job-master-0",
        "MASTER_PORT": "23456",
        "WORLD_SIZE": "2",
        "RANK": "1",
    },
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(STARTS) or name in NAMES:
            monkeypatch.delenv(name)
    (tmp_path / "hosts").write_text(f"launch\n{socket.gethostname()}\n")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chosen(caplog: pytest.LogCaptureFixture) -> Callable[[], tuple[str, str]]:
    """The name of the class that is chosen, and what the log says of it."""

    def choose() -> tuple[str, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "fabric_lite.plugins.environments.detection"):
            environment = choose_environment()
        (record,) = caplog.records
        return type(environment).__name__, record.getMessage()

    return choose


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """An mpi4py that is in four processes."""
    package, module = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")
    package.__spec__ = type(sys.__spec__)("mpi4py", None)  # type: ignore[misc]
    module.COMM_WORLD = type("Comm", (), {"Get_size": lambda self: 4})()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)


@pytest.mark.usefixtures("mpi")
def test_each_comes_before_those_after_it(
    monkeypatch: pytest.MonkeyPatch, chosen: Callable[[], tuple[str, str]]
) -> None:
    assert chosen() == (
        "LightningEnvironment",
        "cluster environment: none, because no launcher or scheduler left its variables",
    )
    for kind, variables in reversed(VARIABLES.items()):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if kind != "TorchElasticEnvironment":
            monkeypatch.delenv("LOCAL_RANK", raising=False)
        found, reason = chosen()
        assert found == kind
        assert reason.startswith(f"cluster environment: {kind}, because of ")
        assert any(f"{name}={value}" in reason for name, value in variables.items())


def test_off(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[], tuple[str, str]]) -> None:
    for variables in VARIABLES.values():
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("FABRIC_LITE_ENV", "none")
    assert chosen() == (
        "LightningEnvironment",
        "cluster environment: none, because FABRIC_LITE_ENV=none switches detection off",
    )
    monkeypatch.setenv("FABRIC_LITE_ENV", "slurm")
    with pytest.raises(ValueError, match=r"`FABRIC_LITE_ENV=slurm` says nothing: `FABRIC_LITE_ENV=none` switches"):
        choose_environment()


def test_what_the_script_asks_for_comes_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("FABRIC_LITE_ENV", "none")
    given = LightningEnvironment()
    with caplog.at_level(logging.INFO, "fabric_lite"):
        assert Fabric(accelerator="cpu", devices=1, plugins=given)._connector.cluster_environment is given
    assert "cluster environment: LightningEnvironment, because the script asks for it" in caplog.text


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_of_slurm_is_none(
    name: str, monkeypatch: pytest.MonkeyPatch, chosen: Callable[[], tuple[str, str]]
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", name)
    assert chosen()[0] == "LightningEnvironment"


@pytest.mark.parametrize("by_hand", ["LOCAL_RANK", "NODE_RANK", "GROUP_RANK"])
def test_a_pod_in_which_processes_are_started_by_hand_is_none(
    by_hand: str, monkeypatch: pytest.MonkeyPatch, chosen: Callable[[], tuple[str, str]]
) -> None:
    for name, value in VARIABLES["KubeflowEnvironment"].items():
        monkeypatch.setenv(name, value)
    assert chosen()[0] == "KubeflowEnvironment"
    monkeypatch.setenv(by_hand, "0")
    assert chosen()[0] == "LightningEnvironment"


class TestMPIWithoutItsPackage:
    @pytest.fixture(autouse=True)
    def started_by_mpi(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        monkeypatch.setenv("PMI_SIZE", "4")

    def test_each_process_is_told_that_it_runs_alone(self) -> None:
        with pytest.warns(UserWarning, match=r"started several processes \(PMI_SIZE=4\).*runs alone.*pip install mpi4"):
            assert type(choose_environment()) is LightningEnvironment

    @pytest.mark.parametrize(
        "variables", [{"PMI_SIZE": "1"}, {"LOCAL_RANK": "0"}, VARIABLES["LSFEnvironment"], {"FABRIC_LITE_ENV": "none"}]
    )
    def test_but_not_where_it_does_not_matter(self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        choose_environment()


def test_a_missing_variable_is_both_errors() -> None:
    """Lightning raises one or the other, depending on the class."""
    assert issubclass(MissingVariableError, KeyError)
    assert issubclass(MissingVariableError, ValueError)
    assert str(MissingVariableError("as it is")) == "as it is"
