"""Making a `Fabric`."""

from __future__ import annotations

from timeit import Timer

from lightning.fabric import Fabric as LightningFabric
from timing import Bar, Row, Times, compare, in_turns

from fabric_lite import Fabric


def measure(quick: bool) -> list[Row]:
    """Compare ``Fabric(accelerator="cpu", devices=1)`` with Lightning's."""
    statement = 'Fabric(accelerator="cpu", devices=1)'
    sides = {
        "ours": Timer(statement, globals={"Fabric": Fabric}),
        "theirs": Timer(statement, globals={"Fabric": LightningFabric}),
    }
    times = in_turns(sides, rounds=20 if quick else 300, seconds=0.005)
    ours, theirs = Times.of(times["ours"]), Times.of(times["theirs"])
    return [compare("construction", ours, "Lightning Fabric", theirs, Bar("≤ 1/5", 1 / 5))]
