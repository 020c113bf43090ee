"""From ``path/to/module.py:name`` to what has that name in that file."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from fabric_lite.cli._errors import CommandError


@contextmanager
def loaded(target: str) -> Iterator[Any]:
    """Load a file, and find something in it.

    The file runs as a module, not as a script: what it has under ``if __name__ == "__main__"`` does not run. Its folder
    stands first on the path, as it does for ``python file``, until the context ends.

    Args:
        target: The file, a colon, and the name of the attribute.

    Yields:
        The attribute.

    Raises:
        CommandError: If there is no such file or attribute.
    """
    file, _, name = target.rpartition(":")
    if not file or not name:
        raise CommandError(f"{target!r} does not say what to look at; write path/to/module.py:name.")
    path = Path(file).resolve()
    if not path.is_file():
        raise CommandError(f"there is no file {file!r}{_near(path.name, _files(path.parent))}")
    with _imported(path) as module:
        if not hasattr(module, name):
            raise CommandError(f"{file} has no {name!r}{_near(name, _own_names(module))}")
        yield getattr(module, name)


@contextmanager
def _imported(path: Path) -> Iterator[ModuleType]:
    name = path.stem
    if name in sys.modules:  # a file may well be called like an installed package
        name = str(path)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path.name!r} is no Python file; write path/to/module.py:name.")
    module = module_from_spec(spec)
    folder = str(path.parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.modules.pop(name, None)
        if folder in sys.path:
            sys.path.remove(folder)


def _files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.py")]


def _own_names(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _near(name: str, there: list[str]) -> str:
    """How the sentence ends: with the nearest name, if one is near."""
    near = difflib.get_close_matches(name, there, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
