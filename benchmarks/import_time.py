"""What importing the package adds to ``import torch``, in fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import Bar, Row, Times, compare

ROOT = Path(__file__).parents[1]
MODULES = ("fabric_lite", "lightning.fabric")
TIMED = """
import sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
if {empty!r}:  # from here on nothing compiled is found, and nothing is left behind
    sys.pycache_prefix, sys.dont_write_bytecode = {empty!r}, True
import {module}
print(middle - start, time.perf_counter() - middle)
"""


def measure(quick: bool) -> list[Row]:
    """Compare ``import fabric_lite`` with ``import lightning.fabric``, each after ``import torch``."""
    for module in MODULES:
        time_import(module, "")  # writes the bytecode, and brings the files into memory
    rows = [in_turns("import", "", 2 if quick else 5, Bar("≤ 60 ms", 0.060, of="ours"))]
    with TemporaryDirectory() as empty:
        rows.append(in_turns("import without bytecode", empty, 2))
    return rows


def in_turns(figure: str, empty: str, rounds: int, bar: Bar | None = None) -> Row:
    """Import one after the other, in processes of their own.

    Args:
        figure: Name of the row.
        empty: An empty folder to look for bytecode in; without one, it is read from where it always is.
        rounds: How often.
        bar: What has to hold, if anything.

    Returns:
        The row.
    """
    times = [[time_import(module, empty) for module in MODULES] for _ in range(rounds)]
    torch = Times.of([torch for both in times for torch, _ in both])
    ours, theirs = (Times.of([both[i][1] for both in times]) for i in range(2))
    return compare(f"{figure}: added to torch {torch}", ours, "Lightning Fabric", theirs, bar)


def time_import(module: str, empty: str) -> tuple[float, float]:
    """The seconds that importing torch takes, and then the module."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", TIMED.format(module=module, empty=empty)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    first, second = done.stdout.split()
    return float(first), float(second)
