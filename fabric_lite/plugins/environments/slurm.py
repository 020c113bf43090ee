"""Processes started by ``srun``, on a cluster that SLURM manages."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
from functools import lru_cache
from pathlib import Path

from typing_extensions import override

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.variables import read_number
from fabric_lite.utilities.imports import _IS_WINDOWS
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.warnings import PossibleUserWarning

_log = logging.getLogger(__name__)

_REMEDY = "Start the script with `srun python ...`, which sets it."
_DEFAULT_ADDRESS, _DEFAULT_PORT = "127.0.0.1", 12910
# Job names of a shell on a node, from which processes are started by hand.
_INTERACTIVE = ("bash", "interactive")


class SLURMEnvironment(ClusterEnvironment):
    """The environment of processes that ``srun`` has started, one for each task.

    The processes meet at the first node of the job, at a port that follows from the number of the job; ``MASTER_ADDR``
    and ``MASTER_PORT`` say otherwise.

    Args:
        auto_requeue: Whether the job is to be submitted again when its time is up; it is up to the script to do so.
        requeue_signal: The signal that says so; by default SIGUSR1, where there is such a signal.

    Raises:
        RuntimeError: If the job has several tasks, but nothing says how many of them on each node.
    """

    def __init__(self, auto_requeue: bool = True, requeue_signal: signal.Signals | None = None) -> None:
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal or (None if _IS_WINDOWS else signal.SIGUSR1)
        self._validate_srun_used()
        self._validate_srun_variables()

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        nodes = os.environ.get("SLURM_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or _DEFAULT_ADDRESS
        return os.environ.get("MASTER_ADDR") or self.resolve_root_node_address(nodes)

    @property
    @override
    def main_port(self) -> int:
        if "MASTER_PORT" in os.environ:
            return read_number("MASTER_PORT", "Set it to the number of a free port, or remove it.")
        if "SLURM_JOB_ID" in os.environ:
            return read_number("SLURM_JOB_ID", _REMEDY) % 10000 + 15000  # the same on all nodes
        return _DEFAULT_PORT

    @staticmethod
    @override
    def detect() -> bool:
        """Whether ``srun`` has started this process.

        In a job that is named ``bash`` or ``interactive``, this is never so: it gives the machines, and processes are
        started by hand.
        """
        SLURMEnvironment._validate_srun_used()
        return _is_srun_used()

    @staticmethod
    def job_name() -> str | None:
        """The name of the job."""
        return os.environ.get("SLURM_JOB_NAME")

    @staticmethod
    def job_id() -> int | None:
        """The number of the job; None in an interactive one, in which many runs share it."""
        number = os.environ.get("SLURM_JOB_ID", "")
        return int(number) if number.isdecimal() and not _is_slurm_interactive_mode() else None

    @override
    def world_size(self) -> int:
        return read_number("SLURM_NTASKS", _REMEDY)

    @override
    def set_world_size(self, size: int) -> None:
        _log.debug("SLURM has said how many processes there are; set_world_size(%s) changes nothing", size)

    @override
    def global_rank(self) -> int:
        return read_number("SLURM_PROCID", _REMEDY)

    @override
    def set_global_rank(self, rank: int) -> None:
        _log.debug("SLURM has said which process this is; set_global_rank(%s) changes nothing", rank)

    @override
    def local_rank(self) -> int:
        return read_number("SLURM_LOCALID", _REMEDY)

    @override
    def node_rank(self) -> int:
        return read_number("SLURM_NODEID", _REMEDY)

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise if SLURM has not started as many processes as the script asks for. An interactive job may do both.

        Args:
            num_devices: Processes on each machine that the script asks for.
            num_nodes: Machines that the script asks for.

        Raises:
            ValueError: If the numbers differ.
        """
        if _is_slurm_interactive_mode():
            return
        for argument, asked, option, variable in (
            ("devices", num_devices, "--ntasks-per-node", "SLURM_NTASKS_PER_NODE"),
            ("num_nodes", num_nodes, "--nodes", "SLURM_NNODES"),
        ):
            given = read_number(variable, _REMEDY) if variable in os.environ else asked
            if given != asked:
                raise ValueError(
                    f"`Fabric({argument}={asked})` is not what the job has: `{option}={given}` (`{variable}={given}`)."
                    f" Write `Fabric({argument}={given})`, or `#SBATCH {option}={asked}`."
                )
        tasks = read_number("SLURM_NTASKS", _REMEDY) if "SLURM_NTASKS" in os.environ else num_devices * num_nodes
        if tasks != num_devices * num_nodes:
            raise ValueError(
                f"`Fabric(devices={num_devices}, num_nodes={num_nodes})` is for {num_devices * num_nodes}, but"
                f" SLURM has started {tasks} processes (`SLURM_NTASKS={tasks}`): the others would be waited for without"
                f" end. Choose `devices` and `num_nodes` with the product {tasks}, or start the script with"
                f" `srun --nodes={num_nodes} --ntasks-per-node={num_devices}`."
            )

    @staticmethod
    def resolve_root_node_address(nodes: str) -> str:
        """The name of the first node.

        Args:
            nodes: Names with commas or spaces between them; ``host[5-9,12]`` stands for several.

        Returns:
            The first one: of ``host[5-9,12],other`` it is ``host5``.
        """
        # Within brackets, neither comma nor space ends a name.
        first = re.match(r"(?:\[[^\]]*\]|[^\s,\[])*", nodes.strip())
        return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else nodes)

    @staticmethod
    def _validate_srun_used() -> None:
        """Warn if the machine has ``srun``, but it has not started this process."""
        if _IS_WINDOWS or _is_srun_used() or _is_slurm_interactive_mode() or not _has_srun(os.environ.get("PATH")):
            return
        line = " ".join(["srun", Path(sys.executable).name, *sys.argv])
        rank_zero_warn(
            "The command `srun` is available here, but is not used. To run on the machines of the SLURM cluster, write"
            f" it in front: `{line if len(line) < 64 else line[:64] + ' ...'}`",
            category=PossibleUserWarning,
        )

    @staticmethod
    def _validate_srun_variables() -> None:
        """Raise if SLURM may put the processes on the nodes in any numbers."""
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks != "1" and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise RuntimeError(
                f"The job has `--ntasks={tasks}`, which leaves open how many of the processes run on each node. Write"
                f" `--ntasks-per-node={tasks}` instead (for one node; with `--nodes=2`, half as many)."
            )


@lru_cache(maxsize=1)  # to look into each folder takes longer than all else that making a Fabric does
def _has_srun(path: str | None) -> bool:
    """Whether the command is in one of these folders."""
    return shutil.which("srun", path=path) is not None


def _is_srun_used() -> bool:
    return "SLURM_NTASKS" in os.environ and not _is_slurm_interactive_mode()


def _is_slurm_interactive_mode() -> bool:
    return SLURMEnvironment.job_name() in _INTERACTIVE
