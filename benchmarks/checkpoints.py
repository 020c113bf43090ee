"""What saving 500 MB costs: against `torch.save`, and how long the loop stands still meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from lightning.fabric import Fabric as LightningFabric
from timing import Bar, Row, Times, compare

from fabric_lite import Fabric

MEGABYTES = 500
TENSORS = 100


def measure(quick: bool) -> list[Row]:
    """Compare ``save`` with `torch.save`, and ``save_async`` with ``save`` and with Lightning's."""
    megabytes = 20 if quick else MEGABYTES
    folder = Path(mkdtemp(prefix="fabric-lite-bench-", dir=os.environ.get("FABRIC_LITE_BENCH_DIR")))
    try:
        times = in_turns(sides(make_state(megabytes), folder), folder, rounds=3 if quick else 11)
    finally:
        shutil.rmtree(folder)
    save, plain, background = (Times.of(times[name]) for name in ("save", "torch.save", "save_async"))
    flushed, lightning = Times.of(times["torch.save, fsync"]), Times.of(times["Lightning Fabric"])
    return [
        compare(f"{megabytes} MB: `save`, on the disk", save, "torch.save, then fsync", flushed, Bar("≤ 1", 1)),
        compare(f"{megabytes} MB: `save`, on the disk", save, "torch.save, left in memory", plain),
        compare(f"{megabytes} MB: `save`, on the disk", save, "Lightning Fabric, left in memory", lightning),
        compare(f"{megabytes} MB: loop held by `save_async`", background, "`save`", save, Bar("≤ 1/4", 1 / 4)),
        compare(f"{megabytes} MB: loop held by `save_async`", background, "Lightning Fabric, `save`", lightning),
    ]


def make_state(megabytes: int) -> dict[str, Any]:
    """As many parameters as fill so much memory."""
    size = megabytes * 1_000_000 // 4 // TENSORS
    return {"model": {f"layer{i}.weight": torch.randn(size) for i in range(TENSORS)}, "step": 1}


def sides(state: dict[str, Any], folder: Path) -> dict[str, Callable[[], float]]:
    """What is timed: each returns the seconds that a loop stands still."""
    ours = Fabric(accelerator="cpu", devices=1)
    theirs = LightningFabric(accelerator="cpu", devices=1)
    path = folder / "checkpoint"

    def plain() -> None:
        torch.save(state, path)

    def flushed() -> None:
        torch.save(state, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def background() -> float:
        start = time.perf_counter()
        future = ours.save_async(path, state)
        held = time.perf_counter() - start
        future.result()
        return held

    return {
        "save": lambda: timed(lambda: ours.save(path, state)),
        "torch.save": lambda: timed(plain),
        "torch.save, fsync": lambda: timed(flushed),
        "save_async": background,
        "Lightning Fabric": lambda: timed(lambda: theirs.save(path, state)),
    }


def timed(function: Callable[[], None]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(sides: dict[str, Callable[[], float]], folder: Path, rounds: int) -> dict[str, list[float]]:
    """One after the other, each on a disk that has nothing left to do. The first round is thrown away.

    Not `timing.in_turns`, as what is timed leaves something behind that the next one would pay for.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        order = list(sides)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            for file in folder.iterdir():
                file.unlink()
            os.sync()
            seconds = sides[name]()
            if turn:
                times[name].append(seconds)
    return times
