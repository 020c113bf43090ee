"""Processes started by ``torchrun``."""

from __future__ import annotations

import logging
import os

import torch
from typing_extensions import override

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.variables import read_number
from fabric_lite.utilities.rank_zero import rank_zero_warn

_log = logging.getLogger(__name__)

_REMEDY = "Start the script with `torchrun` or `fabric-lite run`, which set it."
_DEFAULT_ADDRESS, _DEFAULT_PORT = "127.0.0.1", 12910


class TorchElasticEnvironment(ClusterEnvironment):
    """The environment of processes that ``torchrun`` (or ``fabric-lite run``, which is built on it) has started.

    It reads ``MASTER_ADDR``, ``MASTER_PORT``, ``WORLD_SIZE``, ``RANK``, ``LOCAL_RANK`` and ``GROUP_RANK``.
    """

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        if "MASTER_ADDR" not in os.environ:
            rank_zero_warn(f"The environment variable `MASTER_ADDR` is not set: {_DEFAULT_ADDRESS} is used. {_REMEDY}")
        return os.environ.get("MASTER_ADDR", _DEFAULT_ADDRESS)

    @property
    @override
    def main_port(self) -> int:
        if "MASTER_PORT" not in os.environ:
            rank_zero_warn(f"The environment variable `MASTER_PORT` is not set: {_DEFAULT_PORT} is used. {_REMEDY}")
            return _DEFAULT_PORT
        return read_number("MASTER_PORT", _REMEDY)

    @staticmethod
    @override
    def detect() -> bool:
        return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()

    @override
    def world_size(self) -> int:
        return read_number("WORLD_SIZE", _REMEDY)

    @override
    def set_world_size(self, size: int) -> None:
        _log.debug("torchrun has said how many processes there are; set_world_size(%s) changes nothing", size)

    @override
    def global_rank(self) -> int:
        return read_number("RANK", _REMEDY)

    @override
    def set_global_rank(self, rank: int) -> None:
        _log.debug("torchrun has said which process this is; set_global_rank(%s) changes nothing", rank)

    @override
    def local_rank(self) -> int:
        return read_number("LOCAL_RANK", _REMEDY)

    @override
    def node_rank(self) -> int:
        return read_number("GROUP_RANK", _REMEDY) if "GROUP_RANK" in os.environ else 0

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise if torchrun has not started as many processes as the script asks for.

        Args:
            num_devices: Processes on each machine that the script asks for.
            num_nodes: Machines that the script asks for.

        Raises:
            ValueError: If the numbers differ.
        """
        world_size = self.world_size()
        if num_devices * num_nodes == world_size:
            return
        raise ValueError(
            f"`Fabric(devices={num_devices}, num_nodes={num_nodes})` is for {num_devices * num_nodes}, but"
            f" torchrun has started {world_size} processes (`WORLD_SIZE={world_size}`). {_matching(world_size)}, or"
            f" start it with `torchrun --nnodes={num_nodes} --nproc-per-node={num_devices}`."
        )


def _matching(world_size: int) -> str:
    """The line for the script that fits what has been started."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not local.isdecimal() or not int(local) or world_size % int(local):
        return f"Choose `devices` and `num_nodes` with the product {world_size}"
    return f"Write `Fabric(devices={local}, num_nodes={world_size // int(local)})`"
