"""The sub-command: it finds what a run left, and writes the page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fabric_lite.cli._errors import CommandError
from fabric_lite.utilities.cloud_io import _atomic_open


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="write a page about a run",
        description="Writes one HTML file about a run: curves, callbacks with their times, configuration, versions. It"
        " reads what CSVLogger and the callback LogRun wrote into the folder or below; of several, the newest.",
    )
    parser.add_argument("folder", metavar="RUN_DIR", help="the folder of the run")
    parser.add_argument("--out", metavar="FILE", help="the page to write; by default report.html in that folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page.

    Returns:
        0.

    Raises:
        CommandError: If the run left nothing, some of it cannot be read, or the page cannot be written.
    """
    from fabric_lite.cli.report.left import find
    from fabric_lite.cli.report.page import render

    folder = Path(arguments.folder)
    out = Path(arguments.out) if arguments.out else folder / "report.html"
    page = render(find(folder))
    try:
        with _atomic_open(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise CommandError(f"cannot write {str(out)!r}: {error.strerror or error}.") from error
    print(out)
    return 0
