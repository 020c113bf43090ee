from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.strategies.mesh import Topology, model_parallel_topology, sharding_topology

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
NAMES = ("replicate", "shard", "tensor_parallel")


@given(sizes)
def test_each_process_has_a_place_of_its_own(shape: list[int]) -> None:
    topology = Topology(NAMES[-len(shape) :], tuple(shape), prod(shape))
    places = [tuple(topology.coordinates(rank).values()) for rank in range(topology.world_size)]
    assert places == sorted(set(places))  # neighbours along the last axis have consecutive ranks
    assert all(0 <= index < size for place in places for index, size in zip(place, shape, strict=True))


@given(sizes)
def test_processes_that_compute_together_have_the_same_samples(shape: list[int]) -> None:
    topology = Topology(NAMES[-len(shape) :], tuple(shape), prod(shape))
    shares = [topology.sampler_kwargs(rank) for rank in range(topology.world_size)]
    replicas = topology.world_size // shape[-1]  # the last axis is the tensor-parallel one
    assert {share["num_replicas"] for share in shares} == {replicas}
    assert [share["rank"] for share in shares] == [rank // shape[-1] for rank in range(topology.world_size)]


@pytest.mark.parametrize(
    ("arguments", "names", "expected"),
    [
        ({"world_size": 6}, ("data_parallel",), (6,)),
        ({"world_size": 6, "num_nodes": 2}, ("data_parallel",), (6,)),
        ({"world_size": 6, "num_nodes": 2, "hybrid": True}, ("replicate", "shard"), (2, 3)),
        ({"world_size": 6, "hybrid": True, "shape": (3, 2)}, ("replicate", "shard"), (3, 2)),
        ({"world_size": 6, "shape": (6,)}, ("data_parallel",), (6,)),
    ],
)
def test_sharding(arguments: dict[str, Any], names: tuple[str, ...], expected: tuple[int, ...]) -> None:
    topology = sharding_topology(**arguments)
    assert (topology.names, topology.sizes) == (names, expected)


@pytest.mark.parametrize(
    ("data", "tensor", "expected"),
    [("auto", "auto", (2, 4)), (4, "auto", (4, 2)), ("auto", 8, (1, 8)), (8, 1, (8, 1)), ("auto", 1, (8, 1))],
)
def test_model_parallel(data: Any, tensor: Any, expected: tuple[int, int]) -> None:
    topology = model_parallel_topology(8, 2, data, tensor)
    assert topology.names == ("data_parallel", "tensor_parallel")
    assert topology.sizes == expected


@pytest.mark.parametrize("sizes", [(3, 2), (3, "auto"), ("auto", 3), (16, "auto")])
def test_sizes_that_do_not_multiply_to_the_number_of_processes(sizes: tuple[Any, Any]) -> None:
    message = r"A mesh of \(data_parallel=\d+, tensor_parallel=\d\) takes .* = \d+ processes, but this run has 8\."
    with pytest.raises(ValueError, match=message + r" Change the sizes, or `Fabric\(devices=\.\.\., num_nodes"):
        model_parallel_topology(8, 1, *sizes)


def test_sizes_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"`ModelParallelStrategy\(tensor_parallel_size=0\)`: pass an integer above 0"):
        model_parallel_topology(8, 1, "auto", 0)
    with pytest.raises(ValueError, match=r"`ModelParallelStrategy\(data_parallel_size='all'\)`: .*, or 'auto'\."):
        model_parallel_topology(8, 1, "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"A mesh of \(replicate=2, shard='2'\): each size is an integer above 0\."):
        sharding_topology(4, shape=(2, "2"))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"`device_mesh=\(2, 2, 2\)`: pass two numbers, \(copies, processes that share"
    ):
        sharding_topology(8, shape=(2, 2, 2))
