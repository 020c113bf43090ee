"""What a training step costs beyond that of a loop in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from timeit import Timer
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.fabric import Fabric as LightningFabric
from timing import Bar, Row, Times, compare, in_turns
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fabric_lite import Fabric

Step = Callable[[], Tensor]
MAKINGS = {"32-true": 24, "bf16-mixed": 8}
BARS = {("32-true", "Lightning Fabric"): Bar("≤ 1/5", 1 / 5)}


class Idle:
    """A callback that does not have the hook that is called."""


def measure(quick: bool) -> list[Row]:
    """Compare what Fabric, Lightning Fabric and Accelerate add to a step of a tiny model on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for precision in ("32-true", "bf16-mixed") for row in measure_in(precision, quick)]
    finally:
        torch.set_num_threads(threads)


def measure_in(precision: str, quick: bool) -> list[Row]:
    """The rows of one precision.

    A turn is a single step: of two times so close together, few have an interruption between them. The sides are made
    anew many times, in another order each time, because it matters where in memory one happens to lie.
    """
    order = list(SIDES)
    makings: list[dict[str, list[float]]] = []
    for _ in range(4 if quick else MAKINGS[precision]):
        order.append(order.pop(0))
        steps = {name: SIDES[name](precision) for name in order}
        check_alike(steps)
        sides = {name: Timer("step()", globals={"step": step}) for name, step in steps.items()}
        makings.append(in_turns(sides, rounds=30 if quick else 300, seconds=1e-6))
    alone = Times.of([seconds for times in makings for seconds in times["plain torch"]])
    figure = f"step, {precision}: added to plain {alone}"
    ours = added("fabric_lite", makings)
    return [
        compare(figure, ours, peer, added(peer, makings), BARS.get((precision, peer)))
        for peer in ("Lightning Fabric", "Accelerate")
    ]


def added(side: str, makings: list[dict[str, list[float]]]) -> Times:
    """What a side takes longer than plain PyTorch: of each making, the median of the differences.

    The ratio of two sides is taken from these. In a single turn, the time of plain PyTorch, which both differences
    share, can be off by more than either, and that would push their ratio towards 1.
    """
    plain = "plain torch"
    medians = [median(mine - its for mine, its in zip(times[side], times[plain], strict=True)) for times in makings]
    return Times(medians, min(min(times[side]) for times in makings) - min(min(times[plain]) for times in makings))


def check_alike(steps: dict[str, Step]) -> None:
    """The proof that all sides do the same work."""
    for _ in range(3):
        losses = {name: float(step()) for name, step in steps.items()}
        assert len(set(losses.values())) == 1, f"the sides compute different losses: {losses}"


def make_parts() -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """A tiny model, its optimizer, and one batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(4, 8), torch.randn(4, 1)


def plain(precision: str) -> Step:
    """The loop that one writes without any of them."""
    model, optimizer, x, y = make_parts()
    half = precision == "bf16-mixed"

    def step() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
            output = model(x)
            loss = mse_loss(output, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def with_fabric(kind: Any, precision: str) -> Step:
    """The loop with our `Fabric` or Lightning's."""
    model, optimizer, x, y = make_parts()
    fabric = kind(accelerator="cpu", devices=1, precision=precision, callbacks=[Idle()])
    model, optimizer = fabric.setup(model, optimizer)

    def step() -> Tensor:
        output = model(x)
        loss = mse_loss(output, y)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        fabric.call("on_train_batch_end", loss=loss, output=output, batch=x)
        return loss

    return step


def with_accelerate(precision: str) -> Step:
    """The loop with Accelerate, which has no hooks to call."""
    AcceleratorState._reset_state(reset_partial_state=True)  # or else it keeps the precision of the one made before
    model, optimizer, x, y = make_parts()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if precision == "bf16-mixed" else "no")
    model, optimizer = accelerator.prepare(model, optimizer)

    def step() -> Tensor:
        output = model(x)
        loss = mse_loss(output, y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


SIDES: dict[str, Callable[[str], Step]] = {
    "plain torch": plain,
    "fabric_lite": partial(with_fabric, Fabric),
    "Lightning Fabric": partial(with_fabric, LightningFabric),
    "Accelerate": with_accelerate,
}
