"""Who and where this process is among the others: the seam."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ClusterEnvironment(ABC):
    """Tells a process its rank, how many there are, and where they meet. Subclass it for a cluster of your own."""

    @property
    @abstractmethod
    def creates_processes_externally(self) -> bool:
        """Whether somebody else starts the processes, so that we only join."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """Address of the machine at which the processes meet."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """Port at which they meet."""

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Whether this process runs in such an environment."""

    @abstractmethod
    def world_size(self) -> int:
        """How many processes there are, on all machines together."""

    @abstractmethod
    def set_world_size(self, size: int) -> None:
        """Tell the environment how many processes there are, where it does not know.

        Args:
            size: Their number.
        """

    @abstractmethod
    def global_rank(self) -> int:
        """Index of this process among all."""

    @abstractmethod
    def set_global_rank(self, rank: int) -> None:
        """Tell the environment the index of this process, where it does not know.

        Args:
            rank: The index.
        """

    @abstractmethod
    def local_rank(self) -> int:
        """Index of this process among those on the same machine."""

    @abstractmethod
    def node_rank(self) -> int:
        """Index of this machine."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Raise if what the script asks for is not what the environment has.

        Args:
            num_devices: Processes on each machine that the script asks for.
            num_nodes: Machines that the script asks for.
        """

    def teardown(self) -> None:
        """Give back what is held beyond the run."""
