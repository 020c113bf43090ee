"""Processes started by the training operator of Kubeflow: a ``PyTorchJob``."""

from __future__ import annotations

import os

from typing_extensions import override

from fabric_lite.plugins.environments.started import StartedEnvironment
from fabric_lite.plugins.environments.variables import read, read_number

_REMEDY = "A `PyTorchJob` of Kubeflow sets it in each of its pods."


class KubeflowEnvironment(StartedEnvironment):
    """The environment of a ``PyTorchJob`` with one process in each pod.

    It reads ``MASTER_ADDR``, ``MASTER_PORT``, ``WORLD_SIZE`` and ``RANK``.
    """

    _started_by = "Kubeflow"
    _remedy = _REMEDY
    _world_size_variable, _global_rank_variable = "WORLD_SIZE", "RANK"

    @property
    @override
    def main_address(self) -> str:
        return read("MASTER_ADDR", _REMEDY)

    @property
    @override
    def main_port(self) -> int:
        return read_number("MASTER_PORT", _REMEDY)

    @staticmethod
    @override
    def detect() -> bool:
        """Whether this is a pod with the variables of a ``PyTorchJob``, in which nobody has started processes."""
        needed = {"KUBERNETES_SERVICE_HOST", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"}
        by_hand = {"LOCAL_RANK", "NODE_RANK", "GROUP_RANK"}
        return needed <= os.environ.keys() and by_hand.isdisjoint(os.environ)

    @override
    def local_rank(self) -> int:
        return 0

    @override
    def node_rank(self) -> int:
        return self.global_rank()

    @override
    def _describe_mismatch(self, world_size: int, num_devices: int, num_nodes: int) -> str:
        return (
            f"the job has {world_size} pods with one process in each (`WORLD_SIZE={world_size}`). Write"
            f" `Fabric(devices=1, num_nodes={world_size})`; for several processes in a pod, start the script with"
            " `torchrun`."
        )
