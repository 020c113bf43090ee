"""The same lines on Lightning Fabric and here, on the same two processes: numbers, shapes, who sees which sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Sampler, TensorDataset

from fabric_lite.testing import run_distributed
from fabric_lite.utilities.apply_func import apply_to_tensors

pytestmark = pytest.mark.slow  # both processes import Lightning

Results = dict[str, dict[str, Any]]


def make(library: str, **kwargs: Any) -> Any:
    """A Fabric of one library or the other, which joins the processes that are there."""
    if library == "ours":
        from fabric_lite import Fabric
    else:
        from lightning.fabric import Fabric  # type: ignore[assignment]
    fabric = Fabric(accelerator="cpu", devices=2, **kwargs)
    fabric.launch()
    return fabric


# -- the lines -------------------------------------------------------------------------------------------------------


def trains(library: str, precision: Any, strategy: str) -> dict[str, Any]:
    fabric = make(library, precision=precision, strategy=strategy)
    fabric.seed_everything(4, verbose=False)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
    model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=0.05))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    data = TensorDataset(torch.randn(28, 3), torch.randn(28, 1))
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=4, shuffle=True))
    losses, rates, norms = [], [], []
    for _ in range(2):
        for index, (x, y) in enumerate(loader):
            accumulating = index % 2 == 0
            with fabric.no_backward_sync(model, enabled=accumulating):
                loss = nn.functional.mse_loss(model(x), y.to(torch.float32))
                fabric.backward(loss)
            losses.append(fabric.all_reduce(loss.detach().clone()))
            if not accumulating:
                norms.append(fabric.clip_gradients(model, optimizer, max_norm=0.5))
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                rates.append(scheduler.get_last_lr()[0])
    return {
        "losses": torch.stack(losses),
        "norms": torch.stack(norms),
        "rates": rates,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": sorted(optimizer.state_dict()),
        "wrapper": type(model._forward_module).__name__,
    }


def speaks(library: str) -> dict[str, Any]:
    fabric = make(library, strategy="ddp")
    rank = fabric.global_rank
    nested = {"a": torch.arange(3.0) + rank, "b": [rank, (0.5, True)], "c": torch.tensor(rank), "d": "text"}
    leaf = torch.ones(2, requires_grad=True)
    (fabric.all_gather(leaf, sync_grads=True) * torch.arange(1.0, 5.0).reshape(2, 2)).sum().backward()
    return {
        "ranks": (rank, fabric.local_rank, fabric.node_rank, fabric.world_size, fabric.is_global_zero),
        "gathered": fabric.all_gather(nested),
        "gradient": leaf.grad,
        "reduced": {
            operation: fabric.all_reduce({"x": torch.tensor([1.0, 5.0]) + rank, "y": [rank + 1]}, reduce_op=operation)
            for operation in ("mean", "sum", "avg", "max", "min", "product")
        },
        "broadcast": (fabric.broadcast({"rank": rank}), fabric.broadcast([rank], src=1)),
        "decision": [fabric.strategy.reduce_boolean_decision(rank == 0, all=every) for every in (True, False)],
    }


class Backwards(Sampler[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size - 1, -1, -1))

    def __len__(self) -> int:
        return self.size


class Pairs(BatchSampler):
    pass


def shares(library: str) -> dict[str, Any]:
    fabric = make(library, strategy="ddp")
    found: dict[str, Any] = {}
    for size in (7, 8):
        kinds: dict[str, dict[str, Any]] = {
            "sequential": {"batch_size": 2},
            "shuffled": {"batch_size": 2, "shuffle": True},
            "whole batches": {"batch_size": 2, "drop_last": True},
            "own sampler": {"batch_size": 3, "sampler": Backwards(size)},
            "own batch sampler": {"batch_sampler": Pairs(torch.utils.data.SequentialSampler(range(size)), 2, False)},
            "no batches": {"batch_size": None},
        }
        for seed in (0, 5):
            fabric.seed_everything(seed, verbose=False)
            for name, kwargs in kinds.items():
                loader = fabric.setup_dataloaders(DataLoader(list(range(size)), **kwargs))  # type: ignore[arg-type]
                epochs = [[torch.as_tensor(batch).tolist() for batch in loader] for _ in range(2)]
                found[f"{name} of {size} by {seed}"] = (len(loader), epochs)
    return found


PRECISIONS = ("32-true", "bf16-mixed")


def everything() -> dict[str, Results]:
    results: dict[str, Results] = {}
    for library in ("ours", "theirs"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Lightning about workers and the like
            results[library] = {
                **{precision: trains(library, precision, "ddp") for precision in PRECISIONS},
                "unused": trains(library, "32-true", "ddp_find_unused_parameters_true"),
                "speaks": speaks(library),
                "shares": shares(library),
            }
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Results]]:
    return run_distributed(everything, 2)


# -- the comparison --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [*PRECISIONS, "unused"])
def test_training(how: str, ranks: list[dict[str, Results]]) -> None:
    for each in ranks:
        our, their = each["ours"][how], each["theirs"][how]
        assert our.keys() == their.keys()
        assert torch.equal(our["losses"], their["losses"])
        assert torch.equal(our["norms"], their["norms"])
        assert our["weights"].keys() == their["weights"].keys()
        assert all(torch.equal(value, their["weights"][name]) for name, value in our["weights"].items())
        assert our["rates"] == their["rates"]
        assert our["optimizer"] == their["optimizer"]
        assert our["wrapper"] == their["wrapper"]


def test_the_rate_takes_the_same_course_on_one_process(ranks: list[dict[str, Results]]) -> None:
    from torch.optim.lr_scheduler import OneCycleLR

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.05)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    for each in ranks:
        rates = each["ours"]["32-true"]["rates"]
        for rate in rates:
            optimizer.step()
            scheduler.step()
            assert rate == scheduler.get_last_lr()[0]
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.05)
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=20)


def plain(found: Any) -> Any:
    """Tensors as their type and values, so that all can be compared at once."""
    return apply_to_tensors(found, lambda tensor: (tensor.dtype, tensor.tolist()))


def test_collectives(ranks: list[dict[str, Results]]) -> None:
    for each in ranks:
        assert plain(each["ours"]["speaks"]) == plain(each["theirs"]["speaks"])


def test_who_sees_which_sample(ranks: list[dict[str, Results]]) -> None:
    for each in ranks:
        assert each["ours"]["shares"] == each["theirs"]["shares"]
