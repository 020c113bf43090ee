"""``fabric-lite new``: a template, copied into a folder of one's own."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from fabric_lite.cli._errors import CommandError

_HERE = Path(__file__).parent
# The templates are examples. A wheel has those that are needed beside this file; a source checkout has them all.
_EXAMPLES = _HERE / "templates" if (_HERE / "templates").is_dir() else _HERE.parents[1] / "examples"
# The files of each, and the example that each is a copy of. The first one is what to run.
_TEMPLATES = {
    "trainer": {name: f"build_your_own_trainer/{name}" for name in ("run.py", "trainer.py", "README.md")},
    "loop": {"train.py": "digits.py"},
    "learner": {"train.py": "digits_learner.py"},
}


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "new",
        help="write a template into a folder: a trainer, a loop, or a learner",
        description="Writes a script that trains a classifier of digits, to be changed into your own.",
        epilog="trainer: a Trainer class of your own, and a script that uses it. loop: a loop in one file, with"
        " callbacks, a logger and a checkpoint. learner: the same task with a Learner.",
    )
    parser.add_argument("template", choices=_TEMPLATES, help="what to write")
    parser.add_argument("folder", metavar="DIR", help="where to; made if it is not there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the files.

    Returns:
        0.

    Raises:
        CommandError: If one of them is there already, or cannot be written.
    """
    folder = Path(arguments.folder)
    texts = {folder / name: (_EXAMPLES / file).read_bytes() for name, file in _TEMPLATES[arguments.template].items()}
    there = [f"'{file}'" for file in texts if os.path.lexists(file)]  # a link to nowhere counts, too
    if there:
        raise CommandError(
            f"{' and '.join(there)} {'is' if len(there) == 1 else 'are'} there already, and nothing was written."
            " Choose another folder, or remove what is there."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with file.open("xb") as new:
                new.write(text)
    except OSError as error:
        raise CommandError(
            f"cannot write into '{folder}': {error.strerror or error}. Choose another folder."
        ) from error
    print(*texts, f"Next: python {shlex.quote(str(next(iter(texts))))}", sep="\n")
    return 0
