"""Where processes find each other when there is no cluster, and the seam for one."""

from __future__ import annotations

import logging
import socket

import pytest

from fabric_lite import Fabric
from fabric_lite.plugins.environments import ClusterEnvironment, LightningEnvironment
from fabric_lite.plugins.environments.lightning import find_free_network_port
from fabric_lite.utilities.rank_zero import rank_zero_only

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "STANDALONE_PORT")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_with_nothing_set() -> None:
    environment = LightningEnvironment()
    assert LightningEnvironment.detect()
    assert not environment.creates_processes_externally
    assert environment.main_address == "127.0.0.1"
    ranks = environment.world_size(), environment.global_rank(), environment.local_rank(), environment.node_rank()
    assert ranks == (1, 0, 0, 0)


def test_with_everything_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES[:5], ("10.0.0.1", "4321", "2", "3", "1"), strict=True):
        monkeypatch.setenv(name, value)
    environment = LightningEnvironment()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("10.0.0.1", 4321)
    assert (environment.local_rank(), environment.node_rank()) == (1, 2)


def test_the_rank_of_the_node_may_be_that_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_RANK", "3")
    assert LightningEnvironment().node_rank() == 3


def test_ranks_and_size_are_told() -> None:
    environment = LightningEnvironment()
    environment.set_world_size(4)
    environment.set_global_rank(3)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert rank_zero_only.rank == 3


def test_a_free_port_is_chosen_once_and_can_be_bound() -> None:
    environment = LightningEnvironment()
    port = environment.main_port
    assert environment.main_port == port
    assert 1024 <= port < 65536
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_the_port_can_be_given_to_tests_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDALONE_PORT", "4711")
    assert find_free_network_port() == 4711
    assert LightningEnvironment().main_port == 4711


def test_settings_and_teardown_are_optional() -> None:
    environment = LightningEnvironment()
    assert environment.validate_settings(num_devices=2, num_nodes=1) is None
    assert environment.teardown() is None


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ClusterEnvironment()  # type: ignore[abstract]


def test_the_choice_and_its_reason_go_to_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fabric_lite"):
        assert isinstance(Fabric(accelerator="cpu")._connector.cluster_environment, LightningEnvironment)
        monkeypatch.setenv("FABRIC_LITE_ENV", "none")
        assert isinstance(Fabric(accelerator="cpu")._connector.cluster_environment, LightningEnvironment)
    first, second = (record.getMessage() for record in caplog.records if "environment" in record.getMessage())
    assert "no launcher or scheduler left its variables" in first
    assert "FABRIC_LITE_ENV=none switches detection off" in second


def test_one_that_is_passed_is_used_as_it_is() -> None:
    environment = LightningEnvironment()
    fabric = Fabric(accelerator="cpu", plugins=[environment])
    assert fabric._connector.cluster_environment is environment
