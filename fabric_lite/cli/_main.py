"""The command ``fabric-lite``: it finds its sub-commands, and runs one."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from fabric_lite.__about__ import __version__
from fabric_lite.cli._errors import CommandError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit status: 0, 1 if the answer is no, 2 if the sub-command could not do what it was asked for.

    Raises:
        SystemExit: If the arguments are malformed, or ask for help.
    """
    arguments = make_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except CommandError as error:
        print(f"fabric-lite {arguments.command}: {error}", file=sys.stderr)
        return 2
    return status


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line, with all sub-commands."""
    parser = argparse.ArgumentParser(prog="fabric-lite", description="Tools for training loops with fabric_lite.")
    parser.add_argument("--version", action="version", version=f"fabric-lite {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", dest="command", required=True)
    for module in _modules():
        module.add_to(commands)
    return parser


def _modules() -> Iterator[Any]:
    """The sub-commands: every module in this folder whose name does not begin with an underscore.

    ``add_to(commands)`` of each adds a parser, with a function ``run(arguments) -> exit status`` among its defaults.
    """
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        if not module.name.startswith("_"):
            yield import_module(f"{package}.{module.name}")
