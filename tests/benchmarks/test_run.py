from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"
TIME = r"\S+ (s|ms|µs|ns)"
PERMISSIONS = {
    ("guarded callback: added to plain", "Lightning Fabric, call of 3", "≤ 1.5/23"),
    ("3 plain callbacks, a guarded one beside them", "a plain one beside them", "≤ 1.1"),
    ("graph, a chain of 200", "graphlib, the edges alone", "< 50 ms"),
    ("graph, all 200 overlapping", "a chain of 200", ""),
    *((f"graph, a chain of {size}: per overlap", "a chain of 100", "≤ 1.5") for size in (200, 400, 800)),
    *((f"graph, all {size} overlapping: per overlap", "all 100 overlapping", "≤ 1.5") for size in (200, 400)),
    ("4 callbacks that wait 5 ms, ThreadedExecutor", "serial", "≤ 1/2"),
    ("4 callbacks that do nothing, ThreadedExecutor", "serial", ""),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], cwd=RUN.parents[1], capture_output=True, text=True)


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_prints_a_row_for_each_figure_and_peer() -> None:
    done = run("--quick", "--only", "construction,hook_call,permissions")

    rows = rows_of(done.stdout)
    hook_calls = product(
        (3, 10), ("same", "mixed"), (("Lightning Fabric", "≤ 1/20"), ("pluggy", "< 1"), ("direct calls", "≤ 4"))
    )
    expected = {(f"hook call, {n} callbacks, {kind} signatures", *peer) for n, kind, peer in hook_calls}
    expected.add(("construction", "Lightning Fabric", "≤ 1/5"))
    expected |= PERMISSIONS
    figures = [re.sub(rf"(added to plain) {TIME} \({TIME}\)", r"\1", row[0]) for row in rows]
    assert {(figure, peer, bar) for figure, (_, _, peer, _, _, bar, _) in zip(figures, rows, strict=True)} == expected
    assert len(rows) == len(expected)
    for _, ours, _, its, ratio, _, _ in rows:
        assert re.fullmatch(rf"{TIME} \({TIME}\)", ours)
        assert re.fullmatch(rf"{TIME} \({TIME}\)", its)
        assert re.fullmatch(r"\S+ \(\S+–\S+\)", ratio)
    # How fast it was is not for a test to say; that the exit status tells it is.
    missed = [row for row in rows if row[-1] == "**no**"]
    assert {row[-1] for row in rows if row[-2]} <= {"yes", "**no**"}
    assert done.returncode == bool(missed), done.stderr
    assert done.stderr.count("missed: ") == len(missed)


@pytest.mark.slow
def test_measures_processes_and_checkpoints() -> None:
    done = run("--quick", "--only", "processes,checkpoints")

    bar = "throughput ≥ 0.97"
    expected = {
        *(("step on 2 processes, DDP", *peer) for peer in (("plain torch", bar), ("Lightning Fabric", ""))),
        *(("memory per process, DDP", peer, "") for peer in ("plain torch", "Lightning Fabric")),
        ("step on 2 processes, FSDP2", "plain torch", bar),
        ("memory per process, FSDP2", "plain torch", ""),
        ("20 MB: `save`, on the disk", "torch.save, then fsync", "≤ 1"),
        ("20 MB: `save`, on the disk", "torch.save, left in memory", ""),
        ("20 MB: `save`, on the disk", "Lightning Fabric, left in memory", ""),
        ("20 MB: loop held by `save_async`", "`save`", "≤ 1/4"),
        ("20 MB: loop held by `save_async`", "Lightning Fabric, `save`", ""),
    }
    rows = rows_of(done.stdout)
    assert {(row[0], row[2], row[5]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert done.returncode == any(row[-1] == "**no**" for row in rows), done.stderr


@pytest.mark.parametrize("arguments", [("--quick",), ("--only", "step")])
def test_keeps_only_the_table_of_a_full_run(arguments: tuple[str, ...]) -> None:
    done = run("--write", *arguments)

    assert done.returncode == 2
    assert "--write keeps the whole table of a full run: leave --quick and --only out" in done.stderr


def test_names_the_subjects_when_it_gets_another() -> None:
    done = run("--only", "construction,hook")

    assert done.returncode == 2
    assert "hook: there are hook_call, permissions, step, import_time, construction" in done.stderr
