"""The page of messages has every warning that the package can give, every variable that it reads, and every extra."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "fabric_lite").rglob("*.py"))
WARNS = {"rank_zero_warn", "rank_zero_deprecation", "warnings.warn"}
# Fabric's own: they say what the launcher or the command line has done, and nobody sets them by hand.
OURS = re.compile(r"[\"'](FABRIC_LITE_\w+|(?:LT|PL)_[A-Z_]+)[\"']")


def page() -> str:
    return (ROOT / "docs" / "messages.md").read_text("utf-8")


def words(text: str) -> str:
    """Without what Markdown and line breaks change."""
    return " ".join(text.replace("`", "").replace("\\", "").split())


def pattern(message: ast.expr) -> str:
    """A message, with … in the place of what differs from time to time."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(map(pattern, message.values))
    if isinstance(message, ast.BinOp):
        return pattern(message.left) + pattern(message.right)
    return "…"


def warnings_of(source: str) -> Iterator[tuple[int, str]]:
    """For each warning in a module its line, and the longest part of its first sentence that is the same each time."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in WARNS and node.args:
            sentence, _, rest = words(pattern(node.args[0])).partition(". ")
            if longest := max((sentence if sentence.strip("…") else rest).split("…"), key=len):
                yield node.lineno, longest.strip(" :")


def test_every_warning_is_there() -> None:
    told = words(page())
    found = [
        (file.relative_to(ROOT).as_posix(), line, text)
        for file in PACKAGE
        for line, text in warnings_of(file.read_text("utf-8"))
    ]
    assert len(found) > 25
    assert [entry for entry in found if entry[2] not in told] == []


def test_every_variable_is_there() -> None:
    read = {name for file in PACKAGE for name in OURS.findall(file.read_text("utf-8"))}
    told = set(re.findall(r"`(FABRIC_LITE_\w+|(?:LT|PL)_[A-Z_]+)`", page()))
    assert "FABRIC_LITE_ENV" in read
    assert read - told == set()


def test_every_extra_is_there() -> None:
    table = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", table.partition("\n[tool")[0], re.MULTILINE)) - {"dev"}
    assert extras == set(re.findall(r"^\| `\[(\w+)\]`", page(), re.MULTILINE))


def test_a_message_is_found_however_it_is_written() -> None:
    source = "rank_zero_warn(f'The file {name} is old. Remove it.')\nwarnings.warn('a ' 'b `c`', UserWarning)"
    assert list(warnings_of(source)) == [(1, "The file"), (2, "a b c")]
