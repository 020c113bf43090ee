"""No cluster: one machine, or machines whose processes somebody starts by hand."""

from __future__ import annotations

import os
import socket

from typing_extensions import override

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.utilities.rank_zero import rank_zero_only


class LightningEnvironment(ClusterEnvironment):
    """The environment where none is detected.

    It reads ``MASTER_ADDR``, ``MASTER_PORT``, ``NODE_RANK`` (or ``GROUP_RANK``) and ``LOCAL_RANK``; if the last one is
    set, the processes are taken to be started by somebody else.
    """

    def __init__(self) -> None:
        self._main_port = -1
        self._global_rank = 0
        self._world_size = 1

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return "LOCAL_RANK" in os.environ

    @property
    @override
    def main_address(self) -> str:
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    @override
    def main_port(self) -> int:
        if self._main_port == -1:
            self._main_port = int(os.environ.get("MASTER_PORT") or find_free_network_port())
        return self._main_port

    @staticmethod
    @override
    def detect() -> bool:
        return True

    @override
    def world_size(self) -> int:
        return self._world_size

    @override
    def set_world_size(self, size: int) -> None:
        self._world_size = size

    @override
    def global_rank(self) -> int:
        return self._global_rank

    @override
    def set_global_rank(self, rank: int) -> None:
        self._global_rank = rank
        rank_zero_only.rank = rank

    @override
    def local_rank(self) -> int:
        return int(os.environ.get("LOCAL_RANK", 0))

    @override
    def node_rank(self) -> int:
        return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if not {"NODE_RANK", "GROUP_RANK"} & set(os.environ):
            missing.append("NODE_RANK")
        if num_nodes > 1 and missing:
            raise ValueError(
                f"`Fabric(num_nodes={num_nodes})`: {', '.join(missing)} must say where the machines meet and which"
                " one this is, and nothing has set them. Start the script on each machine with `fabric-lite run`,"
                " torchrun or your scheduler, or set them by hand."
            )


def find_free_network_port() -> int:
    """Find a free port on this machine, or take that of the environment variable ``STANDALONE_PORT``."""
    if "STANDALONE_PORT" in os.environ:
        return int(os.environ["STANDALONE_PORT"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
