"""1,024 processes on 128 machines, one at a time, with the process group of torch that speaks to nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, WeightedRandomSampler

from fabric_lite import Fabric
from fabric_lite.data import prepare_dataloader
from fabric_lite.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from fabric_lite.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

NODES, LOCAL = 128, 8
WORLD = NODES * LOCAL
REPRESENTATIVE = (0, 1, LOCAL - 1, LOCAL, WORLD // 2 + 3, WORLD - 1)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Leaves the group afterwards; keeps the number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def torchrun(rank: int) -> dict[str, object]:
    """The variables of a process that torchrun has started."""
    return {
        "TORCHELASTIC_RUN_ID": "job",
        "MASTER_ADDR": "main",
        "MASTER_PORT": 29400,
        "WORLD_SIZE": WORLD,
        "LOCAL_WORLD_SIZE": LOCAL,
        "RANK": rank,
        "LOCAL_RANK": rank % LOCAL,
        "GROUP_RANK": rank // LOCAL,
    }


def slurm(rank: int) -> dict[str, object]:
    """The variables of a task of SLURM."""
    return {
        "SLURM_JOB_ID": 77,
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": WORLD,
        "SLURM_NTASKS_PER_NODE": LOCAL,
        "SLURM_NNODES": NODES,
        "SLURM_NODELIST": f"node[000-{NODES - 1:03}]",
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank % LOCAL,
        "SLURM_NODEID": rank // LOCAL,
    }


def fabric_of(monkeypatch, variables, strategy) -> Fabric:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    fabric = Fabric(accelerator="cpu", devices=LOCAL, num_nodes=NODES, strategy=strategy)
    fabric.launch()
    return fabric


@pytest.mark.parametrize("rank", REPRESENTATIVE)
@pytest.mark.parametrize("start, environment", [(torchrun, TorchElasticEnvironment), (slurm, SLURMEnvironment)])
def test_the_plan_and_the_share(monkeypatch, rank, start, environment):
    fabric = fabric_of(monkeypatch, start(rank), DDPStrategy(process_group_backend="fake"))
    plan = fabric._connector
    assert type(plan.cluster_environment) is environment
    assert (len(plan.parallel_devices), plan.num_nodes) == (LOCAL, NODES)
    assert (fabric.global_rank, fabric.world_size) == (rank, WORLD)
    assert (fabric.local_rank, fabric.node_rank) == (rank % LOCAL, rank // LOCAL)
    assert fabric.is_global_zero == (rank == 0)
    assert torch.distributed.get_world_size() == WORLD
    assert plan.cluster_environment.main_address == ("main" if start is torchrun else "node000")

    loader = fabric.setup_dataloaders(DataLoader(range(5 * WORLD), batch_size=1))
    assert [batch.item() for batch in loader] == [rank + turn * WORLD for turn in range(5)]


def shares(dataloader: DataLoader[int], epoch: int = 0, ranks: Iterable[int] = range(WORLD)) -> list[list[int]]:
    """What each process sees."""
    found = []
    for rank in ranks:
        prepared = prepare_dataloader(dataloader, {"num_replicas": WORLD, "rank": rank}, rank)
        for sampler in (prepared.sampler, getattr(prepared.batch_sampler, "sampler", None)):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        found.append([index for batch in prepared.batch_sampler for index in batch])
    return found


@pytest.mark.parametrize("size", [1, WORLD - 1, WORLD, 2 * WORLD + 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_shares_are_all_there_is(size, shuffle):
    found = shares(DataLoader(range(size), batch_size=4, shuffle=shuffle))
    each = -(-size // WORLD)
    assert {len(share) for share in found} == {each}
    seen = Counter(index for share in found for index in share)
    assert set(seen) == set(range(size))
    # All have as many, so some samples are there twice (or more often, if there are fewer than processes).
    assert sum(seen.values()) == each * WORLD
    assert max(seen.values()) - min(seen.values()) <= 1
    if shuffle and size > WORLD:
        loader, first = DataLoader(range(size), batch_size=4, shuffle=True), found[:LOCAL]
        assert shares(loader, epoch=0, ranks=range(LOCAL)) == first
        assert shares(loader, epoch=1, ranks=range(LOCAL)) != first


class EverySecond(SequentialSampler):
    """A sampler with a rule of its own."""

    def __iter__(self):
        return iter(range(0, len(self.data_source), 2))

    def __len__(self):
        return -(-len(self.data_source) // 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_shares_of_other_samplers(wrapped):
    data = range(8 * WORLD)
    sampler = EverySecond(data)
    options = {"batch_sampler": BatchSampler(sampler, 2, drop_last=True)} if wrapped else {"sampler": sampler}
    seen = Counter(index for share in shares(DataLoader(data, **options)) for index in share)
    assert seen == Counter(range(0, 8 * WORLD, 2))


def test_the_share_of_a_random_sampler_is_drawn_from_it():
    sampler = WeightedRandomSampler([0.0, 1.0, 1.0], 2 * WORLD, generator=torch.Generator().manual_seed(0))
    found = shares(DataLoader(range(3), sampler=sampler))
    assert {len(share) for share in found} == {2}
    assert {index for share in found for index in share} == {1, 2}


def layers(model, mesh):
    return model


@pytest.mark.parametrize("rank", REPRESENTATIVE)
def test_the_mesh(monkeypatch, rank):
    strategy = ModelParallelStrategy(layers, process_group_backend="fake")
    fabric = fabric_of(monkeypatch, torchrun(rank), strategy)
    mesh = fabric.strategy.device_mesh
    assert (mesh.mesh_dim_names, tuple(mesh.shape)) == (("data_parallel", "tensor_parallel"), (NODES, LOCAL))
    node, local = divmod(rank, LOCAL)
    assert tuple(mesh.get_coordinate()) == (node, local)
    assert mesh["tensor_parallel"].mesh.tolist() == [node * LOCAL + other for other in range(LOCAL)]
    assert mesh["data_parallel"].mesh.tolist() == [other * LOCAL + local for other in range(NODES)]
    # The processes of a machine compute one result together: they see the same samples.
    loader = fabric.setup_dataloaders(DataLoader(range(3 * NODES), batch_size=3))
    assert next(iter(loader)).tolist() == [node, node + NODES, node + 2 * NODES]


@pytest.mark.parametrize("rank", REPRESENTATIVE[1::3])
def test_the_mesh_of_copies_and_shards(monkeypatch, rank):
    strategy = FSDPStrategy(process_group_backend="fake", sharding_strategy="HYBRID_SHARD")
    fabric = fabric_of(monkeypatch, slurm(rank), strategy)
    mesh = fabric.strategy.device_mesh
    assert tuple(mesh.shape) == (NODES, LOCAL)
    assert tuple(mesh.get_coordinate()) == divmod(rank, LOCAL)
    loader = fabric.setup_dataloaders(DataLoader(range(2 * WORLD), batch_size=2))
    assert next(iter(loader)).tolist() == [rank, rank + WORLD]
