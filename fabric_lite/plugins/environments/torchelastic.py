"""Processes started by ``torchrun``."""

from __future__ import annotations

import os

import torch
from typing_extensions import override

from fabric_lite.plugins.environments.started import StartedEnvironment
from fabric_lite.plugins.environments.variables import read_number
from fabric_lite.utilities.rank_zero import rank_zero_warn

_REMEDY = "Start the script with `torchrun` or `fabric-lite run`, which set it."
_DEFAULT_ADDRESS, _DEFAULT_PORT = "127.0.0.1", 12910


class TorchElasticEnvironment(StartedEnvironment):
    """The environment of processes that ``torchrun`` (or ``fabric-lite run``, which is built on it) has started.

    It reads ``MASTER_ADDR``, ``MASTER_PORT``, ``WORLD_SIZE``, ``RANK``, ``LOCAL_RANK`` and ``GROUP_RANK``.
    """

    _started_by = "torchrun"
    _remedy = _REMEDY
    _world_size_variable, _global_rank_variable = "WORLD_SIZE", "RANK"
    _local_rank_variable, _node_rank_variable = "LOCAL_RANK", "GROUP_RANK"

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
    def node_rank(self) -> int:
        return super().node_rank() if self._node_rank_variable in os.environ else 0

    @override
    def _describe_mismatch(self, world_size: int, num_devices: int, num_nodes: int) -> str:
        return (
            f"torchrun has started {world_size} processes (`WORLD_SIZE={world_size}`). {_matching(world_size)}, or"
            f" start it with `torchrun --nnodes={num_nodes} --nproc-per-node={num_devices}`."
        )


def _matching(world_size: int) -> str:
    """The line for the script that fits what has been started."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not local.isdecimal() or not int(local) or world_size % int(local):
        return f"Choose `devices` and `num_nodes` with the product {world_size}"
    return f"Write `Fabric(devices={local}, num_nodes={world_size // int(local)})`"
