"""The classes of collectives, without other processes, do the same in both."""

from __future__ import annotations

import inspect
import re
from typing import Any

import lightning.fabric.plugins.collectives as theirs
import lightning.fabric.plugins.collectives.torch_collective
import pytest
import torch
import torch.distributed as dist

import fabric_lite.plugins.collectives as ours
from fabric_lite.plugins.collectives.torch_collective import default_pg_timeout


@pytest.mark.parametrize("name", ["sum", "SUM", "Max", "avg", "product", "band", dist.ReduceOp.MIN])
def test_operations_by_name(name: Any) -> None:
    operations = [library.TorchCollective._convert_to_native_op(name) for library in (theirs, ours)]
    assert operations[0] == operations[1]


@pytest.mark.parametrize("name", ["mean", "", 3, None])
def test_operations_that_there_are_not(name: Any) -> None:
    for library in (theirs, ours):
        with pytest.raises(ValueError, match=re.compile(repr(name), re.IGNORECASE)):
            library.TorchCollective._convert_to_native_op(name)


def alone(collective: Any) -> list[Any]:
    a, b = torch.ones(1), torch.zeros(1)
    results = [
        collective.broadcast(a, src=0),
        collective.all_reduce(a, op="sum"),
        collective.reduce(a, dst=0, op="sum"),
        *collective.all_gather([b], a),
        *collective.gather(a, [b], dst=0),
        collective.scatter(b, [a], src=0),
        collective.reduce_scatter(b, [a], op="sum"),
        *collective.all_to_all([b], [a]),
        collective.send(a, dst=0),
        collective.recv(a, src=0),
        collective.barrier(),
        collective._convert_to_native_op("sum"),
        collective.is_available(),
        collective.is_initialized(),
        collective.rank,
        collective.world_size,
    ]
    return [result.tolist() if isinstance(result, torch.Tensor) else result for result in results]


def test_one_device() -> None:
    assert alone(ours.SingleDeviceCollective()) == alone(theirs.SingleDeviceCollective())


@pytest.mark.parametrize("name", theirs.__all__)
def test_names_and_arguments(name: str) -> None:
    theirs_, ours_ = getattr(theirs, name), getattr(ours, name)
    for member in vars(theirs_):
        if not member.startswith("__"):
            assert hasattr(ours_, member), member
        if callable(getattr(theirs_, member)) and not member.startswith("_"):
            mine = inspect.signature(getattr(ours_, member)).parameters.values()
            other = inspect.signature(getattr(theirs_, member)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in other], member


def test_the_timeout_is_that_of_torch() -> None:
    assert default_pg_timeout == lightning.fabric.plugins.collectives.torch_collective.default_pg_timeout
