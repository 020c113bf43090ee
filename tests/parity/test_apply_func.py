from __future__ import annotations

from typing import Any

import lightning.fabric.utilities.apply_func as theirs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fabric_lite.utilities.apply_func as ours

numbers = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32),
    st.none(),
    st.text(max_size=2),
    st.builds(torch.tensor, st.lists(st.integers(-5, 5), max_size=3)),
    arrays(st.sampled_from([np.int64, np.float16, np.float64, np.bool_]), st.integers(0, 3)),
    st.sampled_from([np.float32(1), np.float64(2), np.int64(3), np.bool_(True)]),
)
nested = st.recursive(
    numbers,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=2), children, max_size=3),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    return type(a) is type(b) and (a is b or a == b)


@given(nested)
def test_numbers_become_the_same_tensors(data: Any) -> None:
    assert same(
        theirs.convert_to_tensors(data, torch.device("cpu")), ours.convert_to_tensors(data, torch.device("cpu"))
    )


def test_an_integer_that_is_too_large_is_the_same_error() -> None:
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="overflow"):
            module.convert_to_tensors(2**40, torch.device("cpu"))


@given(st.dictionaries(st.text(max_size=3), st.booleans() | st.integers(-9, 9) | st.floats(width=32, allow_nan=False)))
def test_tensors_become_the_same_numbers(metrics: dict[str, Any]) -> None:
    tensors = {name: torch.tensor(value) for name, value in metrics.items()}
    assert theirs.convert_tensors_to_scalars(tensors) == ours.convert_tensors_to_scalars(tensors) == metrics


def test_a_metric_of_several_elements_is_the_same_error() -> None:
    for module in (theirs, ours):
        with pytest.raises(ValueError, match="element"):
            module.convert_tensors_to_scalars({"loss": torch.ones(2)})
