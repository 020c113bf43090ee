from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fabric_lite.utilities.seed import (
    _collect_rng_states,
    _set_rng_states,
    pl_worker_init_function,
    reset_seed,
    seed_everything,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.fixture(autouse=True)
def no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_seeds_all_generators() -> None:
    assert seed_everything(42) == 42
    first = draw()
    seed_everything(42)
    assert draw() == first
    seed_everything(43)
    assert not set(draw()) & set(first)


@pytest.mark.parametrize("workers", [True, False])
def test_tells_other_processes_by_the_environment(workers: bool) -> None:
    seed_everything(7, workers=workers)
    assert os.environ["PL_GLOBAL_SEED"] == "7"
    assert os.environ["PL_SEED_WORKERS"] == str(int(workers))


def test_takes_the_seed_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert seed_everything() == 17
    assert seed_everything(3) == 3


def test_warns_when_there_is_no_seed() -> None:
    with pytest.warns(
        UserWarning, match=r"There is no seed, neither as an argument nor in PL_GLOBAL_SEED: it is set to 0"
    ):
        assert seed_everything() == 0
    del os.environ["PL_GLOBAL_SEED"]
    assert seed_everything(verbose=False) == 0


def test_logs_the_seed_with_the_rank(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    seed_everything(5)
    monkeypatch.setenv("RANK", "3")
    seed_everything(6)
    seed_everything(7, verbose=False)
    assert caplog.messages == ["Seed set to 5", "[rank: 3] Seed set to 6"]


@pytest.mark.parametrize("seed", [np.int64(3), "3", 3.0])
def test_accepts_what_is_an_integer(seed: Any) -> None:
    assert seed_everything(seed) == 3
    assert os.environ["PL_GLOBAL_SEED"] == "3"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_refuses_a_seed_out_of_bounds(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"The seed {seed} is out of bounds: it must be from 0 to 4294967295"):
        seed_everything(seed)
    assert "PL_GLOBAL_SEED" not in os.environ


@pytest.mark.parametrize("seed", ["abc", 3.5, float("nan"), float("inf"), [1]])
def test_refuses_what_is_no_integer(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"The seed must be an integer, got .*Write `seed_everything\(42\)`"):
        seed_everything(seed)


@pytest.mark.parametrize("value", ["garbage", "", "1.5"])
def test_refuses_garbage_in_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", value)
    with pytest.raises(ValueError, match=rf"environment variable PL_GLOBAL_SEED must be an integer, got '{value}'"):
        seed_everything()


@pytest.mark.parametrize("workers", [True, False])
def test_resets_to_the_last_seed(workers: bool) -> None:
    seed_everything(11, workers=workers)
    first = draw()
    reset_seed()
    assert draw() == first
    assert os.environ["PL_SEED_WORKERS"] == str(int(workers))


def test_reset_without_a_seed_changes_nothing() -> None:
    state = torch.get_rng_state()
    reset_seed()
    assert torch.equal(state, torch.get_rng_state())
    assert "PL_GLOBAL_SEED" not in os.environ


def test_workers_and_ranks_get_streams_of_their_own() -> None:
    seen: set[float] = set()
    for rank in range(3):
        for worker in range(3):
            torch.manual_seed(100 + worker)  # as a DataLoader does
            pl_worker_init_function(worker, rank)
            seen.update(draw())
    assert len(seen) == 27


def test_the_rank_of_a_worker_defaults_to_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from fabric_lite.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 5)
    torch.manual_seed(1)
    pl_worker_init_function(0)
    default = draw()
    torch.manual_seed(1)
    pl_worker_init_function(0, rank=5)
    assert draw() == default


@pytest.mark.parametrize("include_cuda", [True, False])
def test_states_survive_a_safe_checkpoint(include_cuda: bool, tmp_path: Path) -> None:
    seed_everything(1)
    np.random.randn()  # half of a pair of normals is in the state now
    states = _collect_rng_states(include_cuda)
    assert ("torch.cuda" in states) is include_cuda
    expected = (*draw(), np.random.randn())
    torch.save(states, tmp_path / "rng.pt")
    _set_rng_states(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (*draw(), np.random.randn()) == expected


def test_rng_state_goes_on_with_all_generators(tmp_path):
    from fabric_lite.utilities.seed import RNGState

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item(), random.gauss(0, 1), np.random.randn()

    seed_everything(4, verbose=False)
    draw()
    torch.save(RNGState().state_dict(), tmp_path / "rng")
    expected = draw()
    seed_everything(5, verbose=False)
    RNGState().load_state_dict(torch.load(tmp_path / "rng", weights_only=True))
    assert draw() == expected


def test_rng_state_refuses_what_is_none():
    from fabric_lite.utilities.seed import RNGState

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="The state with 'lr' is none of random number generators: it has no 'python'"):
        RNGState().load_state_dict({"lr": 1})
    assert torch.equal(torch.get_rng_state(), before)


def test_rng_state_of_another_device():
    from fabric_lite.utilities.seed import RNGState

    state = {**RNGState().state_dict(), "device": ("cuda", torch.get_rng_state())}
    if torch.accelerator.is_available():
        state["device"] = ("none", torch.get_rng_state())
    with pytest.warns(
        UserWarning, match="The state of the random number generator of a '.*' device cannot be restored"
    ):
        RNGState().load_state_dict(state)
