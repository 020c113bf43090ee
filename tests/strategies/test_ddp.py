"""DDP on two real processes: the numbers of one process on the whole batch, whatever is asked of it besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric
from fabric_lite.strategies import DDPStrategy
from fabric_lite.testing import run_distributed

Weights = dict[str, Tensor]


class Net(nn.Module):
    """Two ways from the input to the output; one of them is taken only if it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)
        self.spare = nn.Linear(8, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, spare: bool = True) -> Tensor:
        hidden = torch.tanh(self.body(x))
        output: Tensor = self.head(hidden)
        return output.add(self.spare(hidden)) if spare else output

    def score(self, x: Tensor) -> Tensor:
        """Another way to call it."""
        return -self(x)


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def dataset(size: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(size, 4, generator=generator), torch.randn(size, 1, generator=generator))


def connected(strategy: Any = "ddp", **kwargs: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy, **kwargs)
    fabric.launch()
    return fabric


def weights(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def train(
    fabric: Fabric,
    module: nn.Module | None = None,
    *,
    accumulate: int = 1,
    call: Callable[[Any, Tensor], Tensor] | None = None,
    before_step: Callable[[Any, Any], Any] | None = None,
) -> Weights:
    """Some steps, each on a whole batch of 8 divided among the processes."""
    module = net() if module is None else module
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    loader = fabric.setup_dataloaders(DataLoader(dataset(), batch_size=8 // fabric.world_size))
    for _ in range(2):
        for index, (x, y) in enumerate(loader, start=1):
            last = index % accumulate == 0
            with fabric.no_backward_sync(model, enabled=not last):
                output = model(x) if call is None else call(model, x)
                fabric.backward(mse_loss(output, y.to(output.dtype)) / accumulate)
            if last:
                if before_step is not None:
                    before_step(model, optimizer)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    return {**weights(model), "lr": torch.tensor(optimizer.param_groups[0]["lr"])}


# -- the numbers of one process on the whole batch -------------------------------------------------------------------


def clip_norm(fabric: Fabric) -> Callable[[Any, Any], Any]:
    return lambda model, optimizer: fabric.clip_gradients(model, optimizer, max_norm=0.1)


def clip_value(fabric: Fabric) -> Callable[[Any, Any], Any]:
    return lambda model, optimizer: fabric.clip_gradients(model, optimizer, clip_val=0.01)


def without_spare(model: Any, x: Tensor) -> Tensor:
    return model(x, spare=False)  # type: ignore[no-any-return]


def count_and_average(state: list[int], bucket: Any) -> Any:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    state.append(1)
    return allreduce_hook(torch.distributed.distributed_c10d._get_default_group(), bucket)


# What the strategy is made with, what Fabric is, and what the training.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "accumulated": ({}, {}, {"accumulate": 2}),
    "bucket views": ({"gradient_as_bucket_view": True}, {}, {"accumulate": 2}),
    "static graph": ({"static_graph": True}, {}, {}),
    "unused parameters": ({"find_unused_parameters": True}, {}, {"call": without_spare}),
    # torch refuses a hook whose annotation is a string, as all of this file are
    "hook": (
        {"ddp_comm_hook": lambda state, bucket: count_and_average(state, bucket), "ddp_comm_state": []},
        {},
        {"accumulate": 2},
    ),
    "small buckets": ({"bucket_cap_mb": 0.0001}, {}, {}),
    "clipped by norm": ({}, {}, {"before_step": clip_norm}),
    "clipped by value": ({}, {}, {"before_step": clip_value}),
    "64-true": ({}, {"precision": "64-true"}, {}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}, {}),
    "bf16-true": ({}, {"precision": "bf16-true"}, {}),
    "another method": ({}, {}, {"call": lambda model, x: model.score(x)}),
}


def train_variant(fabric: Fabric, name: str) -> Weights:
    _, _, how = VARIANTS[name]
    how = {**how, "before_step": how["before_step"](fabric)} if "before_step" in how else how
    if name != "another method":
        return train(fabric, **how)
    module = net()
    marked = False

    def call(model: Any, x: Tensor) -> Tensor:
        nonlocal marked
        if not marked:
            model.mark_forward_method("score")
            marked = True
        return model.score(x)  # type: ignore[no-any-return]

    return train(fabric, module, call=call)


def all_variants() -> dict[str, Weights]:
    results = {}
    for name, (strategy, plan, _) in VARIANTS.items():
        strategy = {key: list(value) if isinstance(value, list) else value for key, value in strategy.items()}
        results[name] = train_variant(connected(DDPStrategy(**strategy), **plan), name)
        if "ddp_comm_state" in strategy:
            results[name]["calls of the hook"] = torch.tensor(len(strategy["ddp_comm_state"]))
    return results


@pytest.fixture(scope="module")
def variants() -> list[dict[str, Weights]]:
    return run_distributed(all_variants, 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_numbers_of_one_process_on_the_whole_batch(name: str, variants: list[dict[str, Weights]]) -> None:
    _, plan, _ = VARIANTS[name]
    expected = train_variant(Fabric(accelerator="cpu", **plan), name)
    first, second = (each[name] for each in variants)
    assert all(torch.equal(first[key], second[key]) for key in first)  # bit by bit
    absolute, relative = (2e-2, 1e-1) if name.startswith("bf16") else (1e-6, 1e-5)
    assert expected.keys() <= first.keys()
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, atol=absolute, rtol=relative)
    if name == "hook":
        assert first["calls of the hook"] == 4 * len(dataset()) // 32  # one for each step of the optimizer
