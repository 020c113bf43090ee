"""What the command line leaves in the environment, and seeds there, are read and checked alike."""

from __future__ import annotations

import re
from typing import Any

import lightning.fabric as theirs
import pytest

import fabric_lite as ours

LIBRARIES = (theirs, ours)

ENVIRONMENTS: dict[str, tuple[dict[str, str], dict[str, Any], str, str]] = {
    "another precision": (
        {"LT_PRECISION": "64-true"},
        {"precision": "bf16-mixed"},
        "ValueError",
        "--precision=64-true",
    ),
    "another accelerator": ({"LT_ACCELERATOR": "cpu"}, {"accelerator": "cuda"}, "ValueError", "--accelerator=cpu"),
    "another strategy": ({"LT_STRATEGY": "ddp"}, {"strategy": "fsdp"}, "ValueError", "--strategy=ddp"),
    "other devices": ({"LT_DEVICES": "1"}, {"devices": 3}, "ValueError", "--devices=1"),
    "other machines": ({"LT_NUM_NODES": "1"}, {"num_nodes": 3}, "ValueError", "--num-nodes=1"),
    "devices foo": ({"LT_DEVICES": "foo", "LT_ACCELERATOR": "cpu"}, {}, "TypeError", "foo"),
    "no devices": ({"LT_DEVICES": "0", "LT_ACCELERATOR": "cpu"}, {}, "ValueError", "'0'"),
    "machines foo": ({"LT_NUM_NODES": "foo"}, {}, "ValueError", "foo"),
    "precision foo": ({"LT_PRECISION": "foo"}, {}, "ValueError", "foo"),
    "accelerator foo": ({"LT_ACCELERATOR": "foo"}, {}, "ValueError", "foo"),
    "strategy foo": ({"LT_STRATEGY": "foo"}, {}, "ValueError", "foo"),
    "no truth value": ({"LT_CLI_USED": "foo", "LT_ACCELERATOR": "cpu"}, {"accelerator": "cuda"}, "ValueError", "foo"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_the_command_line_left_is_checked_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, arguments, error, says = ENVIRONMENTS[name]
    for variable, content in {"LT_CLI_USED": "1", **variables}.items():
        monkeypatch.setenv(variable, content)
    raised = []
    for library in LIBRARIES:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its type and message are looked at below
            library.Fabric(**arguments)
        raised.append(caught.value)
    assert [type(each).__name__ for each in raised] == [error, error]
    assert re.search(says, str(raised[1]))


@pytest.mark.parametrize(
    "variables, arguments",
    [
        ({"LT_ACCELERATOR": "cpu", "LT_DEVICES": "1", "LT_NUM_NODES": "1"}, {}),
        ({"LT_PRECISION": "bf16-mixed", "LT_STRATEGY": "auto"}, {"precision": "bf16-mixed"}),
        ({"LT_PRECISION": "64-true"}, {"accelerator": "cpu"}),
    ],
)
@pytest.mark.parametrize("used", ["0", "1"])
def test_what_the_command_line_left_is_used_alike(
    used: str, variables: dict[str, str], arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"LT_CLI_USED": used, **variables}.items():
        monkeypatch.setenv(variable, value)
    results = []
    for library in LIBRARIES:
        fabric = library.Fabric(**arguments)
        results.append([fabric._launched, fabric._connector._precision_input, type(fabric.strategy).__name__])
    assert results[0] == results[1]


def test_the_environment_wins_where_there_is_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_PRECISION", "64-true")
    for library in LIBRARIES:
        assert type(library.Fabric(precision="bf16-true")._precision).__name__ == "DoublePrecision"


def test_a_run_of_ones_own_under_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_CLI_USED", "1")
    for library in LIBRARIES:
        mine = type("Mine", (library.Fabric,), {"run": lambda self: None})
        with pytest.raises(TypeError, match=r"command line|CLI"):
            mine()


@pytest.mark.parametrize("value", ["garbage", "-1", str(2**32)])
def test_a_seed_in_the_environment_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", value)
    for library in LIBRARIES:
        with pytest.raises(ValueError, match=value):
            library.Fabric.seed_everything()
