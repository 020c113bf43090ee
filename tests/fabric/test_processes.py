"""On one process: ranks, printing, and collectives that give back what they got."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.accelerators import CPUAccelerator
from fabric_lite.strategies import SingleDeviceStrategy

Pair = namedtuple("Pair", "a b")


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


def test_properties(fabric: Fabric) -> None:
    assert (fabric.global_rank, fabric.local_rank, fabric.node_rank, fabric.world_size) == (0, 0, 0, 1)
    assert fabric.is_global_zero
    assert fabric.device == torch.device("cpu")
    assert isinstance(fabric.accelerator, CPUAccelerator)
    assert isinstance(fabric.strategy, SingleDeviceStrategy)
    assert fabric._strategy is fabric.strategy


@pytest.mark.parametrize(
    "name",
    "accelerator strategy device global_rank local_rank node_rank world_size is_global_zero logger loggers".split(),
)
def test_properties_cannot_be_assigned(fabric: Fabric, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        setattr(fabric, name, None)


class Ranked(SingleDeviceStrategy):
    """Says that it is one of several processes."""

    def __init__(self, global_rank: int, local_rank: int) -> None:
        super().__init__("cpu")
        self.global_rank, self.local_rank, self.world_size = global_rank, local_rank, 4
        self.calls: list[Any] = []

    @property
    def is_global_zero(self) -> bool:
        return self.global_rank == 0

    def all_gather(self, tensor: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        self.calls.append((group, sync_grads))
        return torch.stack([tensor] * 2)

    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return tensor * 2

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((args, kwargs))

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        self.calls.append(src)
        return obj


def test_ranks_are_those_of_the_strategy() -> None:
    fabric = Fabric(accelerator="cpu", strategy=Ranked(3, 1))
    assert (fabric.global_rank, fabric.local_rank, fabric.world_size, fabric.is_global_zero) == (3, 1, 4, False)


@pytest.mark.parametrize(("local_rank", "printed"), [(0, "a-b!"), (1, "")])
def test_print_is_for_the_first_process_of_each_machine(
    capsys: pytest.CaptureFixture[str], local_rank: int, printed: str
) -> None:
    Fabric(accelerator="cpu", strategy=Ranked(2, local_rank)).print("a", "b", sep="-", end="!")
    assert capsys.readouterr().out == printed


def data() -> dict[str, Any]:
    return OrderedDict(
        tensor=torch.arange(3.0),
        pair=Pair(torch.ones(2, 2), [1, 2.5, True]),
        array=np.arange(2, dtype=np.int64),
        text="abc",
        none=None,
    )


@pytest.mark.parametrize("name", ["all_gather", "all_reduce"])
def test_nested_data_comes_back_as_tensors(fabric: Fabric, name: str) -> None:
    result = getattr(fabric, name)(data())
    assert list(result) == list(data())
    assert torch.equal(result["tensor"], torch.arange(3.0))
    assert isinstance(result["pair"], Pair)
    numbers = result["pair"].b
    assert [x.item() for x in numbers] == [1, 2.5, 1]
    assert [x.dtype for x in numbers] == [torch.int32, torch.float32, torch.uint8]
    assert [x.shape for x in numbers] == [()] * 3
    assert (result["array"].dtype, result["array"].tolist()) == (torch.int64, [0, 1])
    assert (result["text"], result["none"]) == ("abc", None)


@pytest.mark.parametrize("name", ["all_gather", "all_reduce"])
@pytest.mark.parametrize("value", [1, 2.5, torch.tensor(3.0)])
def test_single_values(fabric: Fabric, name: str, value: Any) -> None:
    result = getattr(fabric, name)(value)
    assert isinstance(result, torch.Tensor)
    assert result.item() == value


@pytest.mark.parametrize("operation", ["mean", "sum", "avg", None, torch.distributed.ReduceOp.MAX])
def test_any_operation_of_one_process(fabric: Fabric, operation: Any) -> None:
    assert fabric.all_reduce(torch.ones(2), reduce_op=operation).tolist() == [1.0, 1.0]


def test_gradients_flow_through_all_gather(fabric: Fabric) -> None:
    x = torch.ones(2, requires_grad=True)
    fabric.all_gather(x, sync_grads=True).sum().backward()
    assert x.grad is not None


def test_the_strategy_is_asked_for_each_tensor() -> None:
    strategy = Ranked(0, 0)
    fabric = Fabric(accelerator="cpu", strategy=strategy)
    fabric.launch()
    gathered = fabric.all_gather({"a": [torch.ones(2), 1]}, group="g", sync_grads=True)
    assert [x.shape for x in gathered["a"]] == [(2, 2), (2,)]
    assert strategy.calls == [("g", True)] * 2
    strategy.calls.clear()
    assert fabric.all_reduce((torch.ones(1), 2), group="g", reduce_op="sum")[1].item() == 4
    assert strategy.calls == [((), {"group": "g", "reduce_op": "sum"})] * 2


def test_the_strategy_is_asked_for_the_rest() -> None:
    strategy = Ranked(0, 0)
    fabric = Fabric(accelerator="cpu", strategy=strategy)
    fabric.launch()
    fabric.broadcast("x", src=2)
    fabric.barrier("here")
    fabric.barrier()
    assert strategy.calls == [2, ((), {"name": "here"}), ((), {"name": None})]


def test_broadcast_gives_back_the_very_object(fabric: Fabric) -> None:
    given = data()
    assert fabric.broadcast(given) is given
    assert fabric.broadcast(given, src=0) is given


def test_barrier_of_one_process(fabric: Fabric) -> None:
    assert fabric.barrier() is None
    assert fabric.barrier("somewhere") is None


@pytest.mark.parametrize("local", [True, False])
def test_rank_zero_first(fabric: Fabric, local: bool) -> None:
    ran = []
    with fabric.rank_zero_first(local=local):
        ran.append(1)
    assert ran == [1]
    with pytest.raises(KeyError), fabric.rank_zero_first(local=local):
        raise KeyError


def test_data_that_does_not_move_is_not_changed(fabric: Fabric) -> None:
    given = {"numbers": [1, 2], "array": np.zeros(2)}
    fabric.all_reduce(given)["array"].add_(1)
    assert given["numbers"] == [1, 2]
    assert given["array"].tolist() == [0, 0]
