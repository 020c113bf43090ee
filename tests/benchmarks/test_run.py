from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"
TIME = r"\S+ (s|ms|µs|ns)"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], cwd=RUN.parents[1], capture_output=True, text=True)


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_prints_a_row_for_each_figure_and_peer() -> None:
    done = run("--quick", "--only", "construction,hook_call")

    rows = rows_of(done.stdout)
    hook_calls = product(
        (3, 10), ("same", "mixed"), (("Lightning Fabric", "≤ 1/20"), ("pluggy", "< 1"), ("direct calls", "≤ 4"))
    )
    expected = {(f"hook call, {n} callbacks, {kind} signatures", *peer) for n, kind, peer in hook_calls}
    expected.add(("construction", "Lightning Fabric", "≤ 1/5"))
    assert {(figure, peer, bar) for figure, _, peer, _, _, bar, _ in rows} == expected
    assert len(rows) == len(expected)
    for _, ours, _, its, ratio, _, _ in rows:
        assert re.fullmatch(rf"{TIME} \({TIME}\)", ours)
        assert re.fullmatch(rf"{TIME} \({TIME}\)", its)
        assert re.fullmatch(r"\S+ \(\S+–\S+\)", ratio)
    # How fast it was is not for a test to say; that the exit status tells it is.
    missed = [row for row in rows if row[-1] == "**no**"]
    assert {row[-1] for row in rows} <= {"yes", "**no**"}
    assert done.returncode == bool(missed), done.stderr
    assert done.stderr.count("missed: ") == len(missed)


@pytest.mark.parametrize("arguments", [("--quick",), ("--only", "step")])
def test_keeps_only_the_table_of_a_full_run(arguments: tuple[str, ...]) -> None:
    done = run("--write", *arguments)

    assert done.returncode == 2
    assert "--write keeps the whole table of a full run: leave --quick and --only out" in done.stderr


def test_names_the_subjects_when_it_gets_another() -> None:
    done = run("--only", "construction,hook")

    assert done.returncode == 2
    assert "hook: there are hook_call, step, import_time, construction" in done.stderr
