"""One process on one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.strategies import SingleDeviceStrategy


@pytest.fixture
def strategy() -> SingleDeviceStrategy:
    return SingleDeviceStrategy()


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda:1", torch.device("cuda", 1)])
def test_its_device(device: Any) -> None:
    assert SingleDeviceStrategy(device).root_device == torch.device(device)


def test_it_is_the_only_process(strategy: SingleDeviceStrategy) -> None:
    assert (strategy.global_rank, strategy.local_rank, strategy.node_rank, strategy.world_size) == (0, 0, 0, 1)
    assert strategy.is_global_zero
    assert not strategy.requires_launch
    assert strategy.launcher is None
    assert strategy.distributed_sampler_kwargs is None


def test_it_speaks_to_nobody(strategy: SingleDeviceStrategy) -> None:
    x = torch.ones(2)
    assert strategy.all_reduce(x, reduce_op="sum") is x
    assert strategy.all_gather(x) is x
    assert strategy.broadcast(x, src=0) is x
    strategy.barrier()
    strategy.barrier("name")
    assert [strategy.reduce_boolean_decision(vote) for vote in (True, False)] == [True, False]
    with strategy.no_backward_sync(nn.Linear(1, 1)):
        pass


def test_modules_move_in_place() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    SingleDeviceStrategy("meta").module_to_device(net)
    assert all(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])


def test_modules_without_memory_get_it(strategy: SingleDeviceStrategy) -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    strategy.module_to_device(net)
    assert not any(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])
    assert net[1].running_var == 1


@pytest.mark.parametrize("empty", [True, False, None])
def test_new_modules_with_and_without_initial_values(strategy: SingleDeviceStrategy, empty: bool | None) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with strategy.module_init_context(empty_init=empty):
        nn.Linear(3, 3)
    assert torch.equal(torch.get_rng_state(), before) is bool(empty)


def test_gradients_are_clipped(strategy: SingleDeviceStrategy) -> None:
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert strategy.clip_gradients_norm(net, optimizer, max_norm=1.0) == 5
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, 0.8]]))
    assert strategy.clip_gradients_norm(net, optimizer, max_norm=2.0, norm_type=float("inf")) == pytest.approx(0.8)
    strategy.clip_gradients_value(net, optimizer, clip_val=0.7)
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, 0.7]]))
    net.weight.grad[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        strategy.clip_gradients_norm(net, optimizer, max_norm=1.0)
    assert strategy.clip_gradients_norm(net, optimizer, max_norm=1.0, error_if_nonfinite=False).isnan()


def test_a_device_that_is_not_that_of_the_accelerator() -> None:
    fabric = Fabric(accelerator="cpu", strategy=SingleDeviceStrategy("meta"))
    with pytest.raises(ValueError, match=r"`CPUAccelerator` was given the device meta. Pass `torch.device\('cpu'\)`"):
        fabric.setup(nn.Linear(1, 1))


def test_fabric_chooses_it() -> None:
    assert type(Fabric(accelerator="cpu", devices=1).strategy) is SingleDeviceStrategy
