from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fabric_lite
from fabric_lite.utilities.rank_zero import (
    WarningCache,
    _get_rank,
    rank_prefixed_message,
    rank_zero_debug,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)

VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[0, 1])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(rank_zero_only, "rank", request.param)
    return int(request.param)


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"RANK": "0"}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "7"}, 1),
        ({"SLURM_PROCID": "7", "JSM_NAMESPACE_RANK": "8"}, 7),
        ({"JSM_NAMESPACE_RANK": "8"}, 8),
    ],
)
def test_rank_from_the_environment(
    environment: dict[str, str], rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _get_rank() == rank


@pytest.mark.parametrize(("environment", "expected"), [({}, "0"), ({"RANK": "3"}, "3")])
def test_the_rank_is_known_from_the_import_on(environment: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env = {**inherited, "PYTHONPATH": str(Path(fabric_lite.__file__).parents[1]), **environment}
    code = "from fabric_lite.utilities.rank_zero import rank_zero_only; print(rank_zero_only.rank)"
    result = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == expected


def test_functions_run_on_rank_zero_only(rank: int) -> None:
    @rank_zero_only
    def function(x: int, *, y: int = 0) -> int:
        return x + y

    assert function(1, y=2) == (3 if rank == 0 else None)
    assert function.__name__ == "function"
    with_default = rank_zero_only(lambda: "computed", default="default")
    assert with_default() == ("computed" if rank == 0 else "default")


def test_logs_on_rank_zero_only(rank: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cache = WarningCache()
    rank_zero_info("information %d", 1)
    rank_zero_debug("details")
    cache.info("once")
    cache.info("once")
    assert caplog.messages == (["information 1", "details", "once"] if rank == 0 else [])


def test_warns_on_rank_zero_only(rank: int, recwarn: pytest.WarningsRecorder) -> None:
    cache = WarningCache()
    rank_zero_warn("careful")
    rank_zero_warn("soon", category=FutureWarning)
    rank_zero_deprecation("old")
    for _ in range(2):
        cache.warn("once")
        cache.deprecation("old, once")
    expected = [
        (UserWarning, "careful"),
        (FutureWarning, "soon"),
        (DeprecationWarning, "old"),
        (UserWarning, "once"),
        (DeprecationWarning, "old, once"),
    ]
    assert [(w.category, str(w.message)) for w in recwarn] == (expected if rank == 0 else [])


def test_messages_are_prefixed() -> None:
    assert rank_prefixed_message("hello", 2) == "[rank: 2] hello"
    assert rank_prefixed_message("hello", None) == "hello"
