"""Processes started by the training operator of Kubeflow: a ``PyTorchJob``."""

from __future__ import annotations

import logging
import os

from typing_extensions import override

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.variables import read, read_number

_log = logging.getLogger(__name__)

_REMEDY = "A `PyTorchJob` of Kubeflow sets it in each of its pods."


class KubeflowEnvironment(ClusterEnvironment):
    """The environment of a ``PyTorchJob`` with one process in each pod.

    It reads ``MASTER_ADDR``, ``MASTER_PORT``, ``WORLD_SIZE`` and ``RANK``.
    """

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

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
    def world_size(self) -> int:
        return read_number("WORLD_SIZE", _REMEDY)

    @override
    def set_world_size(self, size: int) -> None:
        _log.debug("Kubeflow has said how many processes there are; set_world_size(%s) changes nothing", size)

    @override
    def global_rank(self) -> int:
        return read_number("RANK", _REMEDY)

    @override
    def set_global_rank(self, rank: int) -> None:
        _log.debug("Kubeflow has said which process this is; set_global_rank(%s) changes nothing", rank)

    @override
    def local_rank(self) -> int:
        return 0

    @override
    def node_rank(self) -> int:
        return self.global_rank()

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise if the job does not have as many pods as the script asks for processes.

        Args:
            num_devices: Processes on each machine that the script asks for.
            num_nodes: Machines that the script asks for.

        Raises:
            ValueError: If the numbers differ.
        """
        world_size = self.world_size()
        if num_devices * num_nodes != world_size:
            raise ValueError(
                f"`Fabric(devices={num_devices}, num_nodes={num_nodes})` is for {num_devices * num_nodes}, but"
                f" the job has {world_size} pods with one process in each (`WORLD_SIZE={world_size}`). Write"
                f" `Fabric(devices=1, num_nodes={world_size})`; for several processes in a pod, start the script with"
                " `torchrun`."
            )
