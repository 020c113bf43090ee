"""The environments of launchers and schedulers: what they make of variables, and what each mistake is told."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fabric_lite.plugins.environments as environments
from fabric_lite.plugins.environments import (
    KubeflowEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from fabric_lite.plugins.environments.detection import choose_environment

STARTS = ("SLURM_", "MASTER_", "LSB_", "JSM_", "OMPI_", "PMI_", "MV2_", "TORCHELASTIC_", "KUBERNETES_")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")

Put = Callable[..., None]


@pytest.fixture(autouse=True)
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Sets variables, where there are none of any launcher."""
    for name in os.environ:
        if name.startswith(STARTS) or name in NAMES:
            monkeypatch.delenv(name)

    def put(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


@pytest.fixture
def mpi(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An mpi4py that is in four processes."""
    package, module = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")
    package.__spec__ = type(sys.__spec__)("mpi4py", None)  # type: ignore[misc]
    module.COMM_WORLD = type("Comm", (), {"Get_size": lambda self: 4})()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    return module


class TestMissingVariables:
    @pytest.mark.parametrize(
        ("kind", "question", "variable", "remedy"),
        [
            (TorchElasticEnvironment, "world_size", "WORLD_SIZE", "Start the script with `torchrun`"),
            (TorchElasticEnvironment, "global_rank", "RANK", "Start the script with `torchrun`"),
            (TorchElasticEnvironment, "local_rank", "LOCAL_RANK", "Start the script with `torchrun`"),
            (SLURMEnvironment, "world_size", "SLURM_NTASKS", "Start the script with `srun python"),
            (SLURMEnvironment, "global_rank", "SLURM_PROCID", "Start the script with `srun python"),
            (SLURMEnvironment, "local_rank", "SLURM_LOCALID", "Start the script with `srun python"),
            (SLURMEnvironment, "node_rank", "SLURM_NODEID", "Start the script with `srun python"),
            (KubeflowEnvironment, "world_size", "WORLD_SIZE", "A `PyTorchJob` of Kubeflow sets it"),
            (KubeflowEnvironment, "node_rank", "RANK", "A `PyTorchJob` of Kubeflow sets it"),
        ],
    )
    def test_each_is_named_with_what_sets_it(self, kind: Any, question: str, variable: str, remedy: str) -> None:
        with pytest.raises(KeyError) as error:
            getattr(kind(), question)()
        assert str(error.value).startswith(f"The environment variable `{variable}` is not set. {remedy}")

    @pytest.mark.parametrize("name", ["main_address", "main_port"])
    def test_of_kubeflow(self, name: str) -> None:
        with pytest.raises(KeyError, match=r"`MASTER_(ADDR|PORT)` is not set. A `PyTorchJob`"):
            getattr(KubeflowEnvironment(), name)

    @pytest.mark.parametrize(
        ("variable", "ask"),
        [
            ("WORLD_SIZE", lambda: TorchElasticEnvironment().world_size()),
            ("GROUP_RANK", lambda: TorchElasticEnvironment().node_rank()),
            ("MASTER_PORT", lambda: TorchElasticEnvironment().main_port),
            ("MASTER_PORT", lambda: SLURMEnvironment().main_port),
            ("SLURM_PROCID", lambda: SLURMEnvironment().global_rank()),
            ("RANK", lambda: KubeflowEnvironment().global_rank()),
        ],
    )
    def test_one_that_is_no_number(self, variable: str, ask: Callable[[], Any], put: Put) -> None:
        put(**{variable: "two"})
        with pytest.raises(ValueError, match=f"The environment variable `{variable}=two` is not an integer"):
            ask()

    def test_an_empty_one_is_not_set(self, put: Put) -> None:
        put(RANK="")
        with pytest.raises(KeyError, match="`RANK` is not set"):
            TorchElasticEnvironment().global_rank()


class TestSettings:
    """Numbers that the script asks for, which are not those of the launcher."""

    def test_torchrun(self, put: Put) -> None:
        put(WORLD_SIZE=6, LOCAL_WORLD_SIZE=2)
        TorchElasticEnvironment().validate_settings(num_devices=2, num_nodes=3)
        with pytest.raises(ValueError) as error:  # noqa: PT011 - compared as a whole
            TorchElasticEnvironment().validate_settings(num_devices=4, num_nodes=1)
        assert str(error.value) == (
            "`Fabric(devices=4, num_nodes=1)` is for 4, but torchrun has started 6 processes (`WORLD_SIZE=6`)."
            " Write `Fabric(devices=2, num_nodes=3)`, or start it with `torchrun --nnodes=1 --nproc-per-node=4`."
        )

    @pytest.mark.parametrize("local", [None, "4", "0", "many"])
    def test_torchrun_where_the_layout_is_not_known(self, local: str | None, put: Put) -> None:
        put(WORLD_SIZE=6, **({} if local is None else {"LOCAL_WORLD_SIZE": local}))
        with pytest.raises(ValueError, match="Choose `devices` and `num_nodes` with the product 6, or start it"):
            TorchElasticEnvironment().validate_settings(num_devices=4, num_nodes=1)

    def test_slurm(self, put: Put) -> None:
        put(SLURM_NTASKS=6, SLURM_NTASKS_PER_NODE=2, SLURM_NNODES=3)
        environment = SLURMEnvironment()
        environment.validate_settings(num_devices=2, num_nodes=3)
        with pytest.raises(ValueError, match=r"--ntasks-per-node=2.*Write `Fabric.devices=2.`, or `#SBATCH --ntasks-p"):
            environment.validate_settings(num_devices=1, num_nodes=3)
        with pytest.raises(ValueError, match=r"`Fabric.num_nodes=2.` is not what the job has: `--nodes=3`.*`#SBATCH -"):
            environment.validate_settings(num_devices=2, num_nodes=2)
        put(SLURM_JOB_NAME="interactive")
        environment.validate_settings(num_devices=1, num_nodes=3)

    @pytest.mark.parametrize("values", [{"SLURM_NTASKS": 1}, {"SLURM_NTASKS": 1, "SLURM_NNODES": 1}])
    def test_slurm_with_fewer_tasks_than_would_be_waited_for(self, values: dict[str, int], put: Put) -> None:
        put(**values)
        with pytest.raises(ValueError, match=r"is for 2, but SLURM has started 1 .*srun --nodes=1 --ntasks-pe"):
            SLURMEnvironment().validate_settings(num_devices=2, num_nodes=1)

    def test_lsf(self, put: Put, tmp_path: Path) -> None:
        (tmp_path / "hosts").write_text(f"launch\n{socket.gethostname()}\n")
        put(LSB_DJOB_RANKFILE=tmp_path / "hosts", LSB_JOBID=1, JSM_NAMESPACE_SIZE=2)
        LSFEnvironment().validate_settings(num_devices=2, num_nodes=1)
        with pytest.raises(ValueError, match=r"is for 4, but jsrun has started 2 .*with `jsrun --np 4`"):
            LSFEnvironment().validate_settings(num_devices=4, num_nodes=1)

    def test_kubeflow(self, put: Put) -> None:
        put(WORLD_SIZE=3)
        KubeflowEnvironment().validate_settings(num_devices=1, num_nodes=3)
        with pytest.raises(ValueError, match=r"has 3 pods .*`WORLD_SIZE=3`.*Write `Fabric\(devices=1, num_nodes=3\)`"):
            KubeflowEnvironment().validate_settings(num_devices=2, num_nodes=3)

    def test_mpi(self, mpi: ModuleType) -> None:
        MPIEnvironment().validate_settings(num_devices=2, num_nodes=2)
        with pytest.raises(ValueError, match=r"is for 2, but MPI has started 4 processes.*with `mpirun -n 2`"):
            MPIEnvironment().validate_settings(num_devices=2, num_nodes=1)


class TestSLURM:
    @pytest.mark.parametrize(
        ("nodes", "first"),
        [
            ("host[5-9]", "host5"),
            ("host[005-009,12],other", "host005"),
            ("host[5]", "host5"),
            ("rack[1-2]node[3,7]-ib,other[1-2]", "rack1node3-ib"),
            ("alpha, beta", "alpha"),
            ("  alpha beta", "alpha"),
            ("10.0.0.[1-4]", "10.0.0.1"),
        ],
    )
    def test_the_first_node(self, nodes: str, first: str, put: Put) -> None:
        put(SLURM_JOB_NODELIST=nodes)
        assert SLURMEnvironment.resolve_root_node_address(nodes) == first
        assert SLURMEnvironment().main_address == first

    def test_nothing_is_left_in_the_environment(self, put: Put) -> None:
        put(SLURM_NODELIST="a", SLURM_JOB_ID="20001")
        environment = SLURMEnvironment()
        assert (environment.main_address, environment.main_port) == ("a", 15001)
        assert not {"MASTER_ADDR", "MASTER_PORT"} & os.environ.keys()

    def test_in_a_shell_nobody_is_told_to_use_srun(self, put: Put, tmp_path: Path) -> None:
        (tmp_path / "srun").touch(mode=0o755)
        put(PATH=tmp_path, SLURM_JOB_NAME="bash", SLURM_NTASKS=2)
        assert not SLURMEnvironment.detect()


class TestLSF:
    def test_the_rank_file_does_not_have_this_machine(self, put: Put, tmp_path: Path) -> None:
        (tmp_path / "hosts").write_text("launch\none\ntwo\n")
        put(LSB_DJOB_RANKFILE=tmp_path / "hosts", LSB_JOBID=1)
        with pytest.raises(ValueError, match=rf"{socket.gethostname()}.* is not in the rank file .*hosts`: one, two"):
            LSFEnvironment()

    def test_a_rank_file_without_machines(self, put: Put, tmp_path: Path) -> None:
        (tmp_path / "hosts").write_text("launch\n\n")
        put(LSB_DJOB_RANKFILE=tmp_path / "hosts", LSB_JOBID=1)
        with pytest.raises(ValueError, match=r"`LSB_DJOB_RANKFILE=.*hosts` names no machine .*jsrun"):
            LSFEnvironment()


class TestMPI:
    def test_without_mpi4py(self, monkeypatch: pytest.MonkeyPatch, put: Put) -> None:
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        with pytest.raises(ModuleNotFoundError, match=r"`MPIEnvironment` .* needs the package mpi4py.*pip install"):
            MPIEnvironment()
        put(OMPI_COMM_WORLD_SIZE=2)
        assert not MPIEnvironment.detect()

    def test_mpi4py_without_mpi(self, monkeypatch: pytest.MonkeyPatch, put: Put, tmp_path: Path) -> None:
        (tmp_path / "mpi4py").mkdir()
        (tmp_path / "mpi4py" / "__init__.py").touch()
        (tmp_path / "mpi4py" / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mpi4py", raising=False)
        put(PMI_SIZE=2)
        with pytest.raises(
            RuntimeError, match=r"mpi4py is there, but finds no MPI: cannot load MPI library. Install one"
        ):
            MPIEnvironment()
        assert not MPIEnvironment.detect()
        del sys.modules["mpi4py"]  # what was imported from the folder of this test

    def test_without_a_launcher_it_is_not_asked(self, mpi: ModuleType, put: Put) -> None:
        del mpi.COMM_WORLD
        assert not MPIEnvironment.detect()
        put(OMPI_COMM_WORLD_SIZE=4)
        with pytest.raises(AttributeError, match="COMM_WORLD"):
            MPIEnvironment.detect()

    def test_one_process_is_none(self, mpi: ModuleType, put: Put) -> None:
        put(OMPI_COMM_WORLD_SIZE=1)
        assert MPIEnvironment.detect()
        mpi.COMM_WORLD = type("Comm", (), {"Get_size": lambda self: 1})()  # type: ignore[attr-defined]
        assert not MPIEnvironment.detect()


def test_without_a_launcher_mpi4py_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(choose_environment()) is LightningEnvironment
    assert "mpi4py" not in sys.modules


def test_exported_names() -> None:
    assert environments.__all__ == sorted(environments.__all__)
    assert all(hasattr(environments, name) for name in environments.__all__)
