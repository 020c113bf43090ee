"""The page about the command line has every command and option that there is, and no other."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from fabric_lite.cli._main import make_parser

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "command_line.md").read_text("utf-8")
(COMMANDS,) = (action.choices for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))


def section(command: str) -> str:
    return re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]


def test_every_command_has_a_section_and_a_row() -> None:
    assert set(re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)) == set(COMMANDS)
    assert set(re.findall(r"^\| \[`(\w+)`\]\(#\1\)", TEXT, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_section_has_the_options(command: str) -> None:
    actions = [action for action in COMMANDS[command]._actions if "--help" not in action.option_strings]
    known = {option for action in actions for option in action.option_strings}
    told = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r"^```.*?^```", "", section(command), flags=re.M | re.S)))
    assert told - {"-1"} <= known
    for action in actions:
        if long := [option for option in action.option_strings if option.startswith("--")]:
            assert told & set(long), f"{command} {long[0]} is not on the page"
