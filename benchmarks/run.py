"""Measures fabric_lite against its peers, prints the table, and says whether the bars hold."""

from __future__ import annotations

import argparse
import datetime
import importlib
import logging
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from timing import Row

SUBJECTS = ("hook_call", "permissions", "step", "import_time", "construction", "processes", "checkpoints", "comparison")
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"
HEADER = ("figure", "ours", "peer", "its", "ours ÷ its", "bar", "holds")


def main(arguments: list[str] | None = None) -> int:
    """Run the subjects.

    Args:
        arguments: Those of the command line.

    Returns:
        The exit status: 1 if a bar does not hold.
    """
    options = parse(arguments)
    logging.disable(logging.WARNING)  # the peers report how they were configured
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for subject in options.only:
        start = time.perf_counter()
        rows += importlib.import_module(subject).measure(quick=options.quick)
        print(f"{subject}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    results = f"{circumstances()}\n\n{table(rows)}\n"
    print(results)
    if options.write:
        write(results)
        importlib.import_module("comparison").write_plot()
    missed = [row for row in rows if row.holds is False]
    for row in missed:
        print(f"missed: {row.figure}: {row.ours} against {row.theirs} of {row.peer}, {row.bar}", file=sys.stderr)
    return 1 if missed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs, not how fast")
    parser.add_argument("--only", type=subjects, default=SUBJECTS, metavar=",".join(SUBJECTS), help="some of them")
    parser.add_argument("--write", action="store_true", help="put the table, and the plot, into README.md")
    options = parser.parse_args(arguments)
    if options.write and (options.quick or options.only != SUBJECTS):
        parser.error("--write keeps the whole table of a full run: leave --quick and --only out")
    return options


def subjects(text: str) -> tuple[str, ...]:
    """Read ``hook_call,step``."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(SUBJECTS)}")
    return names


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER)]
    lines += [(*row[:-1], {True: "yes", False: "**no**", None: ""}[row.holds]) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def circumstances() -> str:
    """When, with what, and where."""
    packages = ("torch", "lightning", "pluggy", "accelerate")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{datetime.date.today()}, Python {platform.python_version()}, {versions}, {cpu()}"


def cpu() -> str:
    """The processor's name and how many of its cores there are."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor() or platform.machine())} ({os.cpu_count()} cores)"


def write(results: str) -> None:
    """Put the results between the two marks in the README."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{README} has no place for the results: put the lines {BEGIN} and {END} into it")
    README.write_text(f"{before}{BEGIN}\n{results}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
