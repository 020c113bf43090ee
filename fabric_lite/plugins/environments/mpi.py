"""Processes started by ``mpirun`` or ``mpiexec``."""

from __future__ import annotations

import logging
import os
import socket
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from typing_extensions import override

from fabric_lite.plugins.environments.lightning import find_free_network_port
from fabric_lite.plugins.environments.started import StartedEnvironment

_log = logging.getLogger(__name__)

# Of Open MPI, of MPICH and what comes from it (Intel's, Cray's), of MVAPICH2.
_LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class MPIEnvironment(StartedEnvironment):
    """The environment of processes that MPI has started. It asks MPI itself, through the package ``mpi4py``.

    Raises:
        ModuleNotFoundError: If there is no ``mpi4py``.
        RuntimeError: If ``mpi4py`` finds no MPI.
    """

    _started_by = "MPI"

    def __init__(self) -> None:
        self._comm_world = _import_mpi().COMM_WORLD
        self._comm_local: Any = None
        self._node_rank = 0
        self._main_address: str | None = None
        self._main_port: int | None = None

    @property
    @override
    def main_address(self) -> str:
        if self._main_address is None:
            self._main_address = str(self._comm_world.bcast(socket.gethostname(), root=0))
        return self._main_address

    @property
    @override
    def main_port(self) -> int:
        if self._main_port is None:
            self._main_port = int(self._comm_world.bcast(find_free_network_port(), root=0))
        return self._main_port

    @staticmethod
    @override
    def detect() -> bool:
        """Whether MPI has started this process and others. Without a launcher's variables, MPI is not asked."""
        if not any(name in os.environ for name in _LAUNCHER_VARIABLES) or not _is_mpi4py_installed():
            return False
        try:
            return int(_import_mpi().COMM_WORLD.Get_size()) > 1
        except RuntimeError as error:  # the package is there, MPI is not
            _log.info("%s", error)
            return False

    @override
    def world_size(self) -> int:
        return int(self._comm_world.Get_size())

    @override
    def global_rank(self) -> int:
        return int(self._comm_world.Get_rank())

    @override
    def local_rank(self) -> int:
        self._init_comm_local()
        return int(self._comm_local.Get_rank())

    @override
    def node_rank(self) -> int:
        self._init_comm_local()
        return self._node_rank

    @override
    def _describe_mismatch(self, world_size: int, num_devices: int, num_nodes: int) -> str:
        return (
            f"MPI has started {world_size} processes. Choose `devices` and `num_nodes` with the product {world_size},"
            f" or start it with `mpirun -n {num_devices * num_nodes}`."
        )

    def _init_comm_local(self) -> None:
        """Find out, together with all others, which processes share this machine."""
        if self._comm_local is not None:
            return
        host = socket.gethostname()
        hosts = self._comm_world.gather(host, root=0)  # None but in the first process
        hosts = self._comm_world.bcast(sorted(set(hosts or ())), root=0)
        self._node_rank = hosts.index(host)
        self._comm_local = self._comm_world.Split(color=self._node_rank)


def _is_mpi4py_installed() -> bool:
    return find_spec("mpi4py") is not None


def _import_mpi() -> Any:
    if not _is_mpi4py_installed():
        raise ModuleNotFoundError(
            "`MPIEnvironment` asks MPI for the ranks, which needs the package mpi4py. Install it on the machines:"
            " `pip install mpi4py`."
        )
    try:
        return import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"The package mpi4py is there, but finds no MPI: {error}. Install one (Open MPI, MPICH, ...), or load its"
            " module on the cluster."
        ) from error
