from __future__ import annotations

import os
import random
from functools import partial
from typing import Any

import lightning.fabric.utilities.seed as theirs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import fabric_lite.utilities.seed as ours

seeds = st.integers(0, 2**32 - 1)


def streams() -> tuple[list[float], list[float], list[float]]:
    return [random.random() for _ in range(3)], np.random.rand(3).tolist(), torch.rand(3).tolist()


@given(seed=seeds, workers=st.booleans())
def test_the_same_seed_gives_the_same_numbers(seed: int, workers: bool) -> None:
    results = []
    for module in (theirs, ours):
        module.seed_everything(seed, workers=workers, verbose=False)
        environment = os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]
        numbers = streams()
        module.reset_seed()
        results.append((environment, numbers, streams()))
    assert results[0] == results[1]


@given(base_seed=st.integers(0, 2**63), worker=st.integers(0, 64), rank=st.integers(0, 4096))
def test_the_same_worker_gets_the_same_numbers(base_seed: int, worker: int, rank: int) -> None:
    results = []
    for module in (theirs, ours):
        torch.manual_seed(base_seed + worker)
        module.pl_worker_init_function(worker, rank)
        results.append(streams())
    assert results[0] == results[1]


class RandomNumbers(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]


def test_real_workers_get_the_same_numbers() -> None:
    batches = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        init = partial(module.pl_worker_init_function, rank=1)
        loader = DataLoader(RandomNumbers(), num_workers=2, worker_init_fn=init, collate_fn=list)
        batches.append(list(loader))
    assert batches[0] == batches[1]
    assert len({number for batch in batches[0] for sample in batch for number in sample}) == 12


@pytest.mark.parametrize("seed", [-1, 2**32, "abc"])
def test_the_same_seeds_are_refused_with_the_same_error(seed: Any) -> None:
    for module in (theirs, ours):
        with pytest.raises(ValueError, match=str(seed)):
            module.seed_everything(seed)


def test_garbage_in_the_environment_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "garbage")
    for module in (theirs, ours):
        with pytest.raises(ValueError, match=r"PL_GLOBAL_SEED.*'garbage'"):
            module.seed_everything()


def test_states_can_be_exchanged() -> None:
    theirs.seed_everything(5, verbose=False)
    their_states, our_states = theirs._collect_rng_states(), ours._collect_rng_states()
    assert their_states.keys() == our_states.keys()
    expected = streams()
    ours._set_rng_states(their_states)
    assert streams() == expected
    theirs._set_rng_states(our_states)
    assert streams() == expected
