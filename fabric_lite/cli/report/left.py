"""What a run left in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric_lite.cli._errors import CommandError
from fabric_lite.cli.plot import read

Lines = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Left:
    """What there is of a run.

    Attributes:
        folder: The folder.
        metrics: The newest ``metrics.csv``.
        others: The older ones.
        charts: For each metric, the points of each phase.
        params: What the logger of these metrics knows of hyperparameters.
        record: The file that `LogRun` wrote.
        run: What is in it.
    """

    folder: Path
    metrics: Path | None
    others: list[Path]
    charts: dict[str, Lines]
    params: dict[str, Any]
    record: Path | None
    run: dict[str, Any]


def find(folder: Path) -> Left:
    """Look through a folder, and those in it.

    Args:
        folder: The folder.

    Raises:
        CommandError: If there is nothing to report, or it cannot be read.
    """
    if not folder.is_dir():
        raise CommandError(f"there is no folder {str(folder)!r}; name the one that the run wrote to.")
    tables = _newest_first(folder, "metrics.csv")
    metrics = tables[0] if tables else None
    records = _newest_first(folder, "log_run.json")
    if metrics is not None:  # below the folder of several runs, the record is the one that is nearest
        records.sort(key=lambda record: -len(os.path.commonpath((record, metrics))))
    if not tables and not records:
        name = str(folder)
        raise CommandError(
            f"{name!r} has no metrics.csv and no log_run.json, nor has a folder in it. Let a run write them:"
            f" `Fabric(loggers=CSVLogger({name!r}), callbacks=[LogRun({name!r}), HookProfiler()])`."
        )
    charts: dict[str, Lines] = {}
    for phase, curves in (read(metrics, finite=False) if metrics is not None else {}).items():
        for metric, points in curves.items():
            charts.setdefault(metric, {})[phase] = points
    params = metrics.with_name("hparams.json") if metrics is not None else None
    return Left(
        folder,
        metrics,
        tables[1:],
        charts,
        _json(params) if params is not None and params.is_file() else {},
        records[0] if records else None,
        _json(records[0], "started", "updated") if records else {},
    )


def _newest_first(folder: Path, name: str) -> list[Path]:
    found = [path for path in folder.rglob(name) if path.is_file()]
    return sorted(found, key=lambda path: (path.stat().st_mtime, str(path)), reverse=True)


def _json(file: Path, *needed: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
        if isinstance(found, dict) and all(name in found for name in needed):
            return found
        cause: Any = "something else wrote it"
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
    raise CommandError(f"cannot read {str(file)!r}: {cause}. Remove it to have a report without it.")
