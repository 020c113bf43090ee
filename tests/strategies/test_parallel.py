"""What strategies of several processes share: ranks from the environment, shares of the data, votes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.plugins import ClusterEnvironment
from fabric_lite.strategies import ParallelStrategy


class Cluster(ClusterEnvironment):
    """The second of three machines with two processes each."""

    creates_processes_externally = True  # type: ignore[assignment]
    main_address = "nowhere"  # type: ignore[assignment]
    main_port = 1  # type: ignore[assignment]
    torn_down = False

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return 6

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return 3

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return 1

    def node_rank(self) -> int:
        return 1

    def teardown(self) -> None:
        self.torn_down = True


class Own(ParallelStrategy):
    """Of six processes, so many say yes."""

    yes = 0

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    def module_to_device(self, module: nn.Module) -> None:
        module.to(self.root_device)

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        return tensor + self.yes

    def barrier(self, name: str | None = None) -> None: ...

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj


def test_ranks_are_those_of_the_environment() -> None:
    environment = Cluster()
    fabric = Fabric(accelerator="cpu", devices=2, num_nodes=3, strategy=Own(), plugins=environment)
    strategy: Any = fabric.strategy
    assert strategy.cluster_environment is environment
    assert (fabric.global_rank, fabric.local_rank, fabric.node_rank, fabric.world_size) == (3, 1, 1, 6)
    assert not fabric.is_global_zero
    assert strategy.parallel_devices == [torch.device("cpu")] * 2
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 6, "rank": 3}
    strategy.teardown()
    assert environment.torn_down


def test_an_environment_and_devices_that_it_was_made_with_stay() -> None:
    environment, devices = Cluster(), [torch.device("cpu")] * 4
    strategy = Own(cluster_environment=environment, parallel_devices=devices)
    Fabric(strategy=strategy)
    assert strategy.cluster_environment is environment
    assert strategy.parallel_devices is devices
    with pytest.raises(ValueError, match=r"`Own` was made with <.*Cluster object.*Keep one of them"):
        Fabric(strategy=Own(cluster_environment=environment), plugins=Cluster())


def test_before_it_is_connected_it_is_alone() -> None:
    strategy = Own()
    assert (strategy.global_rank, strategy.local_rank, strategy.node_rank, strategy.world_size) == (0, 0, 0, 1)
    assert strategy.is_global_zero


@pytest.mark.parametrize("yes, own, all_say_so, one_says_so", [(0, False, False, False), (3, True, False, True)])
def test_votes(yes: int, own: bool, all_say_so: bool, one_says_so: bool) -> None:
    strategy = Own(cluster_environment=Cluster())
    strategy.yes = yes
    assert strategy.reduce_boolean_decision(own, all=True) is all_say_so
    assert strategy.reduce_boolean_decision(own, all=False) is one_says_so


def test_all_say_yes() -> None:
    strategy = Own(cluster_environment=Cluster())
    strategy.yes = 5
    assert strategy.reduce_boolean_decision(True) is True


def test_nothing_runs_before_the_launch() -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=Own(), plugins=Cluster())
    for call in (fabric.barrier, lambda: fabric.broadcast(1), lambda: fabric.all_reduce(1), fabric.init_module):
        with pytest.raises(RuntimeError, match=r"`Own` runs in several processes.* Call `fabric.launch\(\)`"):
            call()
    fabric.launch()
    fabric.barrier()
    assert fabric.setup(nn.Linear(1, 1))(torch.ones(1, 1)).shape == (1, 1)


def test_only_the_first_process_prints(capsys: pytest.CaptureFixture[str]) -> None:
    Fabric(accelerator="cpu", devices=2, strategy=Own(), plugins=Cluster()).print("second of its machine")
    assert capsys.readouterr().out == ""
