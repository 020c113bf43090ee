"""Processes started by ``jsrun``, on a cluster that LSF manages."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from typing_extensions import override

from fabric_lite.plugins.environments.started import StartedEnvironment
from fabric_lite.plugins.environments.variables import read, read_number

_REMEDY = "Start the script with `jsrun`, in a job of LSF."


class LSFEnvironment(StartedEnvironment):
    """The environment of processes that ``jsrun`` has started.

    It reads ``LSB_JOBID``, ``LSB_DJOB_RANKFILE``, ``JSM_NAMESPACE_SIZE``, ``JSM_NAMESPACE_RANK`` and
    ``JSM_NAMESPACE_LOCAL_RANK``. The processes meet at the first machine of the rank file, at a port that follows from
    the number of the job; ``MASTER_PORT`` says otherwise.

    Raises:
        ValueError: If a variable is not set, or the rank file does not have this machine.
    """

    _started_by = "LSF"
    _remedy = _REMEDY
    _world_size_variable, _global_rank_variable = "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"
    _local_rank_variable = "JSM_NAMESPACE_LOCAL_RANK"

    def __init__(self) -> None:
        hosts = self._read_hosts()
        self._main_address = hosts[0]
        self._main_port = self._get_main_port()
        self._node_rank = _index_of_this_machine(hosts)

    @property
    @override
    def main_address(self) -> str:
        return self._main_address

    @property
    @override
    def main_port(self) -> int:
        return self._main_port

    @staticmethod
    @override
    def detect() -> bool:
        needed = {"LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"}
        return needed <= os.environ.keys()

    @override
    def node_rank(self) -> int:
        return self._node_rank

    @override
    def _describe_mismatch(self, world_size: int, num_devices: int, num_nodes: int) -> str:
        return (
            f"jsrun has started {world_size} processes (`JSM_NAMESPACE_SIZE={world_size}`). Choose `devices` and"
            f" `num_nodes` with the product {world_size}, or start it with `jsrun --np {num_devices * num_nodes}`."
        )

    @staticmethod
    def _read_hosts() -> list[str]:
        """The machines of the processes. The first line of the rank file is the machine that launches."""
        file = read("LSB_DJOB_RANKFILE", _REMEDY)
        hosts = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()][1:]
        if not hosts:
            raise ValueError(
                f"The rank file `LSB_DJOB_RANKFILE={file}` names no machine after the one that launches. {_REMEDY}"
            )
        return hosts

    @staticmethod
    def _get_main_port() -> int:
        """The same on all machines."""
        if "MASTER_PORT" in os.environ:
            return read_number("MASTER_PORT", "Set it to the number of a free port, or remove it.")
        return read_number("LSB_JOBID", _REMEDY) % 1000 + 10000


def _index_of_this_machine(hosts: list[str]) -> int:
    different = list(dict.fromkeys(hosts))
    this = socket.gethostname()
    if this not in different:
        raise ValueError(
            f"This machine, {this!r}, is not in the rank file `LSB_DJOB_RANKFILE={os.environ['LSB_DJOB_RANKFILE']}`:"
            f" {', '.join(different)}. {_REMEDY}"
        )
    return different.index(this)
