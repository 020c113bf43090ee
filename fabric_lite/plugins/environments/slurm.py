"""Processes started by ``srun``, on a cluster that SLURM manages."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from functools import lru_cache
from pathlib import Path

from typing_extensions import override

from fabric_lite.plugins.environments.started import StartedEnvironment
from fabric_lite.plugins.environments.variables import read_number
from fabric_lite.utilities.imports import _IS_WINDOWS
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.warnings import PossibleUserWarning

_REMEDY = "Start the script with `srun python ...`, which sets it."
_DEFAULT_ADDRESS, _DEFAULT_PORT = "127.0.0.1", 12910
# Job names of a shell on a node, from which processes are started by hand.
_INTERACTIVE = ("bash", "interactive")


class SLURMEnvironment(StartedEnvironment):
    """The environment of processes that ``srun`` has started, one for each task.

    The processes meet at the first node of the job, at a port that follows from the number of the job; ``MASTER_ADDR``
    and ``MASTER_PORT`` say otherwise.

    Args:
        auto_requeue: Whether the job is to be submitted again when its time is up; it is up to the script to do so.
        requeue_signal: The signal that says so; by default SIGUSR1, where there is such a signal.

    Raises:
        RuntimeError: If the job has several tasks, but nothing says how many of them on each node.
    """

    _started_by = "SLURM"
    _remedy = _REMEDY
    _world_size_variable, _global_rank_variable = "SLURM_NTASKS", "SLURM_PROCID"
    _local_rank_variable, _node_rank_variable = "SLURM_LOCALID", "SLURM_NODEID"

    def __init__(self, auto_requeue: bool = True, requeue_signal: signal.Signals | None = None) -> None:
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal or (None if _IS_WINDOWS else signal.SIGUSR1)
        self._validate_srun_used()
        self._validate_srun_variables()

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
        if self._world_size_variable in os.environ:
            super().validate_settings(num_devices, num_nodes)

    @override
    def _describe_mismatch(self, world_size: int, num_devices: int, num_nodes: int) -> str:
        return (
            f"SLURM has started {world_size} processes (`SLURM_NTASKS={world_size}`): the others would be waited for"
            f" without end. Choose `devices` and `num_nodes` with the product {world_size}, or start the script with"
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
