"""What the environments have in common in which somebody else has started the processes."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import ClassVar

from typing_extensions import override

from fabric_lite.plugins.environments.cluster_environment import ClusterEnvironment
from fabric_lite.plugins.environments.variables import read_number

_log = logging.getLogger(__name__)


class StartedEnvironment(ClusterEnvironment):
    """The environment of processes that a launcher or scheduler has started, and has told who they are.

    A subclass names the variables that say so.
    """

    _started_by: ClassVar[str]
    _remedy: ClassVar[str] = ""  # what sets a variable that is missing: a sentence
    _world_size_variable: ClassVar[str]
    _global_rank_variable: ClassVar[str]
    _local_rank_variable: ClassVar[str]
    _node_rank_variable: ClassVar[str]

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @override
    def world_size(self) -> int:
        return read_number(self._world_size_variable, self._remedy)

    @override
    def set_world_size(self, size: int) -> None:
        _log.debug("%s has said how many processes there are; set_world_size(%s) is ignored", self._started_by, size)

    @override
    def global_rank(self) -> int:
        return read_number(self._global_rank_variable, self._remedy)

    @override
    def set_global_rank(self, rank: int) -> None:
        _log.debug("%s has said which process this is; set_global_rank(%s) is ignored", self._started_by, rank)

    @override
    def local_rank(self) -> int:
        return read_number(self._local_rank_variable, self._remedy)

    @override
    def node_rank(self) -> int:
        return read_number(self._node_rank_variable, self._remedy)

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise if there are not as many processes as the script asks for.

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
                f" {self._describe_mismatch(world_size, num_devices, num_nodes)}"
            )

    @abstractmethod
    def _describe_mismatch(self, world_size: int, num_devices: int, num_nodes: int) -> str:
        """How many processes there are, and what to write in the script or on the command line."""
