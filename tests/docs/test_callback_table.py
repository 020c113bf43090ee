"""The table of built-in callbacks in docs/learner.md has those that exist, and marks those of a `Learner`."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

import fabric_lite.callbacks
from fabric_lite import Callback, Fabric, Learner

PAGE = Path(__file__).resolve().parents[2] / "docs" / "learner.md"


def test_the_table_is_complete_and_marks_the_default_ones() -> None:
    section = PAGE.read_text("utf-8").partition("## The built-in callbacks")[2]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    public = {name: getattr(fabric_lite.callbacks, name) for name in fabric_lite.callbacks.__all__}
    built_in = {
        name
        for name, kind in public.items()
        if isinstance(kind, type) and (issubclass(kind, Callback) or hasattr(kind, "traces_hooks"))
    }
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == built_in

    learner = Learner(nn.Linear(1, 1), nn.MSELoss(), fabric=Fabric(accelerator="cpu", devices=1))
    marked = {name for cell in cells for name in re.findall(r"`(\w+)`\*", cell)}
    assert {type(callback).__name__ for callback in learner.callbacks} == marked
