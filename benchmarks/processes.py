"""What a training step on two processes takes, against the same loop in plain PyTorch."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from timing import Bar, Row, Times, compare
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from fabric_lite import Fabric
from fabric_lite.strategies import FSDPStrategy
from fabric_lite.testing import run_distributed

Step = Callable[[], Tensor]
PROCESSES = 2
STEPS = 4
BAR = Bar("throughput ≥ 0.97", 1 / 0.97)


def measure(quick: bool) -> list[Row]:
    """Compare steps under DDP with plain PyTorch and Lightning Fabric, and under FSDP2 with plain PyTorch."""
    return [row for strategy in SIDES for row in measure_under(strategy, quick)]


def measure_under(strategy: str, quick: bool) -> list[Row]:
    """The rows of one strategy: times of rank 0, and the memory of the process that has more."""
    times = run_distributed(times_of_steps, PROCESSES, strategy, 5 if quick else 60, timeout=600)[0]
    memory = {
        side: max(run_distributed(peak_memory, PROCESSES, strategy, side, timeout=600)) for side in SIDES[strategy]
    }
    ours = Times.of(times["fabric_lite"])
    rows = []
    for peer in SIDES[strategy]:
        if peer != "fabric_lite":
            bar = BAR if peer == "plain torch" else None
            rows.append(compare(f"step on 2 processes, {strategy}", ours, peer, Times.of(times[peer]), bar))
            mine, its = memory["fabric_lite"], memory[peer]
            figure = f"memory per process, {strategy}"
            rows.append(
                Row(figure, f"{mine / 2**20:.0f} MiB", peer, f"{its / 2**20:.0f} MiB", f"{mine / its:.3g}", "", None)
            )
    return rows


def times_of_steps(strategy: str, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each side, round by round; in each round the sides take their turns in another order."""
    torch.set_num_threads(1)
    steps = {name: make() for name, make in SIDES[strategy].items()}
    for _ in range(3):
        losses = {name: step() for name, step in steps.items()}
        assert len({loss.item() for loss in losses.values()}) == 1, f"the sides compute different losses: {losses}"
    order, draw = list(steps), random.Random(0)  # the same in both processes
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            torch.distributed.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                steps[name]()
            times[name].append((time.perf_counter() - start) / STEPS)
    return times


def peak_memory(strategy: str, side: str) -> int:
    """Bytes of memory that a process held at most, when it ran nothing but this side."""
    step = SIDES[strategy][side]()
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_parts() -> tuple[nn.Module, Tensor, Tensor]:
    """A model with a million parameters, and the batch of this process."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.ReLU())]
    generator = torch.Generator().manual_seed(torch.distributed.get_rank())
    x, y = (torch.randn(128, 512, generator=generator) for _ in range(2))
    return nn.Sequential(*layers), x, y


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, backward: Any = None) -> Step:
    """One step of the loop that all sides have."""

    def step() -> Tensor:
        loss = mse_loss(model(x), y)
        loss.backward() if backward is None else backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def plain_ddp() -> Step:
    """The loop that one writes without any of them."""
    model, x, y = make_parts()
    model = DistributedDataParallel(model)
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.01), x, y)


def plain_fsdp() -> Step:
    """The loop that one writes without any of them."""
    from torch.distributed.fsdp import fully_shard

    model, x, y = make_parts()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.01), x, y)


def with_fabric(strategy: Any) -> Step:
    """The loop with our Fabric."""
    model, x, y = make_parts()
    fabric = Fabric(accelerator="cpu", devices=PROCESSES, strategy=strategy)
    fabric.launch()
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.01))
    return loop(model, optimizer, x, y, fabric.backward)


def with_lightning() -> Step:
    """The loop with Lightning's Fabric, which only the processes that measure it import."""
    from lightning.fabric import Fabric as LightningFabric

    model, x, y = make_parts()
    fabric = LightningFabric(accelerator="cpu", devices=PROCESSES, strategy="ddp")
    fabric.launch()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.01))
    return loop(model, optimizer, x, y, fabric.backward)


SIDES: dict[str, dict[str, Callable[[], Step]]] = {
    "DDP": {
        "fabric_lite": lambda: with_fabric("ddp"),
        "plain torch": plain_ddp,
        "Lightning Fabric": with_lightning,
    },
    "FSDP2": {
        "fabric_lite": lambda: with_fabric(FSDPStrategy(auto_wrap_policy={nn.Linear})),
        "plain torch": plain_fsdp,
    },
}
