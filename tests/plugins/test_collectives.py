"""What the processes of a group do together."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fabric_lite.plugins.collectives import Collective, SingleDeviceCollective, TorchCollective
from fabric_lite.plugins.collectives.collective import CollectibleGroup
from fabric_lite.plugins.environments.lightning import find_free_network_port
from fabric_lite.testing import run_distributed


def operations(collective: Any) -> dict[str, Any]:
    """What each operation returns in this of two processes, tensors as lists."""
    rank = collective.rank
    mine, other = torch.tensor([rank + 1.0, 10.0 * rank]), 1 - rank
    results: dict[str, Any] = {"size": collective.world_size, "rank": rank}
    results["broadcast"] = collective.broadcast(mine.clone(), src=1)
    for name in ("sum", "MIN", "product", dist.ReduceOp.MAX):
        results[f"all_reduce {name}"] = collective.all_reduce(mine.clone(), op=name)
    results["reduce"] = collective.reduce(mine.clone(), dst=0, op="max") if rank == 0 else None
    if rank == 1:
        collective.reduce(mine.clone(), dst=0, op="max")
    results["all_gather"] = collective.all_gather([torch.zeros(2) for _ in range(2)], mine)
    results["gather"] = collective.gather(mine, [torch.zeros(2) for _ in range(2)] if rank == 1 else None, dst=1)
    results["scatter"] = collective.scatter(torch.zeros(2), [mine, mine + 1] if rank == 0 else None, src=0)
    results["reduce_scatter"] = collective.reduce_scatter(torch.zeros(2), [mine, mine + 1], op="sum")
    results["all_to_all"] = collective.all_to_all([torch.zeros(2) for _ in range(2)], [mine, mine + 1])
    if rank == 0:
        collective.send(mine, dst=other, tag=3)
        results["recv"] = None
    else:
        results["recv"] = collective.recv(torch.zeros(2), src=other, tag=3)
    results["all_gather_object"] = collective.all_gather_object([None, None], f"of {rank}")
    results["broadcast_object_list"] = collective.broadcast_object_list([f"of {rank}", {"a": rank}], src=1)
    results["gather_object"] = collective.gather_object(f"of {rank}", [None, None] if rank == 0 else None, dst=0)
    results["scatter_object_list"] = collective.scatter_object_list([None], ["a", "b"] if rank == 0 else None, src=0)
    collective.barrier()
    collective.monitored_barrier(timeout=timedelta(seconds=20))
    return {name: _plain(result) for name, result in results.items()}


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(each) for each in result]
    return result.tolist() if isinstance(result, torch.Tensor) else result


def in_two_processes() -> dict[str, Any]:
    """All that needs two processes, in one run."""
    rank, results = dist.get_rank(), {}
    collective = TorchCollective()
    assert collective.setup() is collective  # connected already
    assert not collective.manages_default_group
    results["everybody"] = operations(collective)

    # a group of its own: of both, and of one only
    both = TorchCollective().create_group(backend="gloo", timeout=timedelta(seconds=20))
    results["own group"] = operations(both)
    results["is a group"] = isinstance(both.group, CollectibleGroup)
    with pytest.raises(RuntimeError, match=r"`TorchCollective` has a group already.*`teardown\(\)` first"):
        both.create_group()
    groups = len(dist.distributed_c10d._pg_map)
    assert both.teardown() is both
    results["given back"] = groups - len(dist.distributed_c10d._pg_map)

    first = TorchCollective().create_group(ranks=[0])
    results["is in it"] = first.group != dist.GroupMember.NON_GROUP_MEMBER
    first.barrier()  # the second process does not wait, the first not for it
    if rank == 0:
        results["alone"] = first.all_reduce(torch.ones(1)).item()
    first.teardown()
    results["still connected"] = dist.is_initialized()
    return results


def connecting_by_itself() -> list[Any]:
    """Take down what is there, and connect through a collective."""
    rank = dist.get_rank()
    (port,) = TorchCollective().broadcast_object_list([find_free_network_port()], src=0)
    dist.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    collective = TorchCollective()
    assert not collective.is_initialized()
    collective.setup(main_address="127.0.0.1", main_port=str(port), backend="gloo", rank=rank, world_size=2)
    added = {"MASTER_ADDR", "MASTER_PORT"} & os.environ.keys()
    results = [collective.is_initialized(), TorchCollective.manages_default_group, sorted(added)]
    collective.create_group()
    other = TorchCollective().create_group()
    results.append(collective.all_reduce(torch.tensor(rank + 1)).item())
    other.barrier()
    collective.teardown()
    results.append(dist.is_initialized())  # there is another group yet
    other.teardown()
    results += [dist.is_initialized(), TorchCollective.manages_default_group]
    return results


EXPECTED: dict[str, list[Any]] = {  # in the first process and in the second; the first has [1, 0], the second [2, 10]
    "size": [2, 2],
    "rank": [0, 1],
    "broadcast": [[2, 10]] * 2,
    "all_reduce sum": [[3, 10]] * 2,
    "all_reduce MIN": [[1, 0]] * 2,
    "all_reduce product": [[2, 0]] * 2,
    "all_reduce RedOpType.MAX": [[2, 10]] * 2,
    "reduce": [[2, 10], None],
    "all_gather": [[[1, 0], [2, 10]]] * 2,
    "gather": [None, [[1, 0], [2, 10]]],
    "scatter": [[1, 0], [2, 1]],
    "reduce_scatter": [[3, 10], [5, 12]],
    "all_to_all": [[[1, 0], [2, 10]], [[2, 1], [3, 11]]],
    "recv": [None, [1, 0]],
    "all_gather_object": [["of 0", "of 1"]] * 2,
    "broadcast_object_list": [["of 1", {"a": 1}]] * 2,
    "gather_object": [["of 0", "of 1"], None],
    "scatter_object_list": [["a"], ["b"]],
}


def test_in_two_processes() -> None:
    by_rank = run_distributed(in_two_processes, 2)
    for rank, results in enumerate(by_rank):
        assert results["everybody"] == results["own group"] == {name: two[rank] for name, two in EXPECTED.items()}
        assert results["is a group"]
        assert results["given back"] == 1
        assert results["is in it"] is (rank == 0)
        assert results["still connected"]
    assert by_rank[0]["alone"] == 1


def test_connecting_by_itself() -> None:
    for results in run_distributed(connecting_by_itself, 2):
        assert results == [True, True, [], 3, True, False, False]


class TestWithoutProcesses:
    def test_there_is_no_group(self) -> None:
        assert TorchCollective.is_available()
        assert not TorchCollective.is_initialized()
        with pytest.raises(RuntimeError, match=r"`TorchCollective` has no group. Make one first: `collective.setup\("):
            TorchCollective().group  # noqa: B018

    def test_a_connection_that_fails_leaves_no_variables(self) -> None:
        with pytest.raises(ValueError, match="WORLD_SIZE expected"):
            TorchCollective().setup(main_address="127.0.0.1", main_port="1", backend="gloo", rank=0)
        assert not {"MASTER_ADDR", "MASTER_PORT"} & os.environ.keys()
        assert not TorchCollective.manages_default_group

    @pytest.mark.parametrize("name", ["mean", "", 3, None])
    def test_operations_that_there_are_not(self, name: Any) -> None:
        with pytest.raises(ValueError, match=f"has no operation {name!r}. Choose one of: sum, avg, product"):
            TorchCollective._convert_to_native_op(name)


def test_one_device() -> None:
    collective = SingleDeviceCollective()
    with pytest.raises(RuntimeError, match="`SingleDeviceCollective` has no group"):
        collective.group  # noqa: B018
    with pytest.raises(RuntimeError, match=r"has no group to tear down: `create_group\(\)` was not called"):
        collective.teardown()
    collective.setup(main_address="nowhere").create_group()
    assert (collective.group.size(), collective.group.rank()) == (1, 0)
    collective.teardown().create_group()


def test_the_seam_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Collective()  # type: ignore[abstract]
