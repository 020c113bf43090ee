"""``fabric-lite consolidate``: turn a sharded checkpoint into one file."""

from __future__ import annotations

import argparse
import pickle
import re
from typing import Any

from fabric_lite.cli._errors import CommandError


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "consolidate",
        help="turn a sharded checkpoint into one file",
        description="Turns the folder that several processes saved together into one file that `torch.load` reads. All"
        " of it has to fit into the memory of this machine.",
    )
    parser.add_argument("checkpoint_folder", metavar="folder", help="the checkpoint; it stays as it is")
    parser.add_argument(
        "--output-file",
        "--output_file",
        metavar="FILE",
        help="the file to write, not there yet; default: beside the folder, with the ending .consolidated",
    )
    parser.add_argument(
        "--no-weights-only",
        dest="weights_only",
        action="store_false",
        help="load objects of any class, too: only for a checkpoint that you trust, because they can run code",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Turn it.

    Returns:
        0.

    Raises:
        CommandError: If it is no such checkpoint, or the file cannot be written.
    """
    from fabric_lite.checkpoint.consolidate import consolidate_checkpoint

    try:
        file = consolidate_checkpoint(arguments.checkpoint_folder, arguments.output_file, arguments.weights_only)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise CommandError(
            f"{arguments.checkpoint_folder!r} holds {found[1] if found else 'objects'}, and not only tensors and plain"
            " values. If you trust the checkpoint, add --no-weights-only."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(file)
    return 0
