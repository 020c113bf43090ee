"""``fabric-lite plot``: draw the metrics of a CSV file."""

from __future__ import annotations

import argparse
import csv
import math
import re
from pathlib import Path
from typing import Any

from fabric_lite.callbacks.plotting import plot_metrics
from fabric_lite.cli._errors import CommandError

_PHASES = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
_PHASES |= {"validation": "validation", "test": "test"}
_COUNTERS = ("step", "epoch")
Curves = dict[str, dict[str, list[tuple[float, float]]]]


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plot",
        help="draw training and validation curves",
        description="Draws the metrics that a CSVLogger wrote: a panel for each, with a line for each phase."
        " Needs the extra `plot`.",
    )
    parser.add_argument(
        "file", metavar="metrics.csv", help="the file, with columns such as train/Loss and val_accuracy"
    )
    parser.add_argument("--out", metavar="FILE", help="the image to write; by default beside the file, as PNG")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw the file.

    Returns:
        0.

    Raises:
        CommandError: If it cannot be read, there is nothing in it to draw, or the image cannot be written.
    """
    file = Path(arguments.file)
    out = Path(arguments.out) if arguments.out else file.with_suffix(".png")
    curves = read(file)
    if not curves:
        raise CommandError(f"{str(file)!r} has no columns of numbers to draw; log some with `fabric.log_dict(...)`.")
    try:
        plot_metrics(curves, out, xlabel="step")
    except OSError as error:
        raise CommandError(f"cannot write {str(out)!r}: {error.strerror or error}.") from error
    except (ModuleNotFoundError, ValueError) as error:  # no matplotlib, or an ending that it does not know
        raise CommandError(str(error)) from error
    print(out)
    return 0


def read(file: Path, finite: bool = True) -> Curves:
    """The curves in a CSV file: for each phase the points of each metric. Empty cells are left out.

    Args:
        file: The file.
        finite: Whether to leave out NaN and infinite values, too.

    Raises:
        CommandError: If it cannot be read.
    """
    try:
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
    except OSError as error:
        raise CommandError(f"cannot read {str(file)!r}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{str(file)!r} is no CSV file: {error}.") from error
    curves: Curves = {}
    names = {column: split(column) for column in (rows[0] if rows else ()) if column not in (None, *_COUNTERS)}
    for number, row in enumerate(rows):
        step = _number(row.get("step"))
        for column, (phase, metric) in names.items():
            value = _number(row[column], finite)
            if value is None:
                continue
            points = curves.setdefault(phase, {}).setdefault(metric, [])
            points.append((float(number) if step is None else step, value))
    return curves


def split(column: str) -> tuple[str, str]:
    """The phase and the metric that a column is named after.

    Args:
        column: Its name, such as ``train/Loss``, ``validation/epoch/Loss``, ``train_loss`` or ``val_accuracy``.

    Returns:
        The phase (``"value"`` if the name has none) and the metric.
    """
    parts = column.split("/")
    for place, part in enumerate(parts):
        if len(parts) > 1 and part.lower() in _PHASES:
            return _PHASES[part.lower()], "/".join(parts[:place] + parts[place + 1 :])
    found = re.fullmatch(r"([A-Za-z]+)[_.-](.+)", column)
    if found and found[1].lower() in _PHASES:
        return _PHASES[found[1].lower()], found[2]
    return "value", column


def _number(cell: Any, finite: bool = True) -> float | None:
    """The number in a cell; None if there is none, or one that cannot be drawn while that matters."""
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) or not finite else None
