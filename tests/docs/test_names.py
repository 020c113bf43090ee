"""The names in the tables for migrants exist: those of this package, of Lightning Fabric and of Accelerate."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fabric_lite
from fabric_lite import Fabric, Learner
from fabric_lite.loggers import CSVLogger

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOMS = ("callbacks", "events", "hooks", "loggers", "permissions", "plugins", "strategies", "testing", "utilities")


def cells(page: str, column: str) -> Iterator[str]:
    """The code in one column of the tables of a page that have this column."""
    inside: int | None = None
    for line in (DOCS / page).read_text("utf-8").splitlines():
        row = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not row:
            inside = None
        elif inside is None and column in row and "fabric-lite" in row:
            inside = row.index(column)
        elif inside is not None:
            yield from re.findall(r"`([^`]+)`", row[inside])


def dotted(node: ast.expr) -> list[str] | None:
    """The parts of a name with dots; None for another expression."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (front := dotted(node.value)) is not None:
        return [*front, node.attr]
    return None


def resolve(parts: list[str], scope: dict[str, Any]) -> Any:
    """What a name with dots stands for."""
    found = scope[parts[0]]
    for depth, part in enumerate(parts[1:], 1):
        if inspect.ismodule(found) and not hasattr(found, part):
            importlib.import_module(".".join([found.__name__, *parts[depth : depth + 1]]))
        found = getattr(found, part)
    return found


def check(code: str, scope: dict[str, Any], optional: bool = False) -> None:
    """Look up each name in a piece of code that is in the scope, and hold its calls to the signatures.

    With ``optional``, a name that is alone may be one of the reader's (a variable).
    """
    expression = ast.parse(code, mode="eval").body
    whole = dotted(expression)
    if whole is not None and not optional:
        resolve(whole, scope)
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute) and (parts := dotted(node)) is not None and parts[0] in scope:
            resolve(parts, scope)
        if isinstance(node, ast.Call) and (parts := dotted(node.func)) is not None:
            function = resolve(parts, scope)
            inspect.signature(function).bind(*node.args, **{str(word.arg): None for word in node.keywords})


def is_command(code: str, *programs: str) -> bool:
    return code.split()[0] in programs


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    """What the names in our column mean."""
    fabric = Fabric(accelerator="cpu", devices=1)
    rooms = [importlib.import_module(f"fabric_lite.{room}") for room in ROOMS]
    names = {name: getattr(room, name) for room in (*rooms, fabric_lite) for name in room.__all__}
    variables = {
        "fabric": fabric,
        "learner": Learner(nn.Linear(1, 1), nn.MSELoss(), fabric=Fabric(accelerator="cpu", devices=1)),
        "model": fabric.setup(nn.Linear(1, 1)),
        "logger": CSVLogger("logs"),
        "fabric_lite": fabric_lite,
    }
    return {**vars(builtins), **names, **variables}


@pytest.fixture(scope="module")
def command_line() -> ArgumentParser:
    from fabric_lite.cli._main import make_parser

    return make_parser()


MIGRATING = ("migrating.md", "migrating_accelerate.md", "migrating_fluxtraining.md")


@pytest.mark.parametrize("page", MIGRATING)
def test_our_names_exist(page: str, ours: dict[str, Any], command_line: ArgumentParser) -> None:
    found = list(cells(page, "fabric-lite"))
    assert len(found) > 15
    for code in found:
        if is_command(code, "fabric-lite"):
            command_line.parse_args(shlex.split(code)[1:])
        else:
            check(code, ours)


def test_the_names_of_accelerate_exist() -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.commands.launch import launch_command_parser
    from accelerate.commands.merge import merge_command_parser

    scope = {"accelerate": accelerate, "accelerator": accelerate.Accelerator, "Accelerator": accelerate.Accelerator}
    parsers = {"launch": launch_command_parser(), "merge-weights": merge_command_parser()}
    found = list(cells("migrating_accelerate.md", "Accelerate"))
    assert len(found) > 40
    for code in found:
        if is_command(code, "accelerate"):
            _, command, *rest = shlex.split(code)
            assert command == "config" or parsers[command].parse_args(rest)
        elif code.startswith("accelerator."):  # some of them are there only once it is made
            assert hasattr(accelerate.Accelerator, code.removeprefix("accelerator.")), code
        else:
            check(code, scope)


def test_the_names_of_lightning_exist() -> None:
    lightning = importlib.import_module("lightning.fabric")
    scope = {"lightning": importlib.import_module("lightning")}
    assert lightning.__name__ == "lightning.fabric"
    for code in cells("migrating.md", "Lightning Fabric"):
        if not is_command(code, "fabric") and "/" not in code:
            check(code, scope)


@pytest.mark.parametrize(
    "code, error",
    [
        ("fabric.fit(3)", AttributeError),
        ("Fabric(device=1)", TypeError),
        ("Fabrik", KeyError),
        ("fabric.broadcast()", TypeError),
        ("fabric_lite.callbacks.Checkpoint", AttributeError),
        ("{'a': learner.fitt}", AttributeError),
    ],
)
def test_a_wrong_name_is_noticed(code: str, error: type[Exception], ours: dict[str, Any]) -> None:
    with pytest.raises((error, ModuleNotFoundError)):
        check(code, ours)
