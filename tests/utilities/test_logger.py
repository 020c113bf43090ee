from __future__ import annotations

import copy
from argparse import Namespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fabric_lite.utilities.logger import (
    _add_prefix,
    _convert_json_serializable,
    _convert_params,
    _flatten_dict,
    _sanitize_params,
    _snapshot,
    _to_scalars,
)


class Operators(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_params_come_as_a_namespace_a_dict_or_nothing() -> None:
    assert _convert_params(Namespace(a=1)) == {"a": 1}
    assert _convert_params({"a": 1}) == {"a": 1}
    assert _convert_params(None) == {}


def test_the_params_of_the_caller_stay_as_they_are() -> None:
    params = {"layers": [1, 2], "none": None, "nested": {"a": Namespace(b=1)}}
    before = copy.deepcopy(params)
    assert _sanitize_params(params) == {"layers": "[1, 2]", "none": "None", "nested": "{'a': Namespace(b=1)}"}
    assert _flatten_dict(params) == {"layers": [1, 2], "none": None, "nested/a/b": 1}
    _convert_json_serializable({"set": {1}})
    assert params == before


def test_no_prefix_no_copy() -> None:
    metrics = {"a": 1.0}
    assert _add_prefix(metrics, "", "-") is metrics
    assert _add_prefix(metrics, "train", "-") == {"train-a": 1.0}


def test_snapshot_is_detached_and_does_not_follow_in_place_changes() -> None:
    weight = torch.ones(1, requires_grad=True)
    loss, running = weight * 2, torch.tensor(1.0)
    taken = _snapshot({"loss": loss, "nested": {"running": running}, "list": [running], "lr": 0.1})
    running.fill_(5)
    assert not taken["loss"].requires_grad
    assert taken["nested"]["running"] == 1
    assert taken["list"][0] == 1
    assert taken["lr"] == 0.1
    assert _snapshot(taken) is taken, "what is a snapshot needs no second copy"


def test_snapshot_waits_for_no_device() -> None:
    metrics = {"a": torch.tensor(1.0), "b": torch.ones(1, 1, requires_grad=True)}
    with Operators() as operators:
        _snapshot(metrics)
    assert set(operators.names) == {"detach", "clone"}


@pytest.mark.parametrize("convert", [_snapshot, _to_scalars])
@pytest.mark.parametrize("shape", [(0,), (2,), (3, 4)])
def test_a_tensor_that_is_no_single_number(convert: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"metric 'val\.acc' is a tensor of shape .* log\('val\.acc', value\.mean\(\)\)"
    ) as e:
        convert({"fine": 1, "val": {"acc": torch.zeros(shape)}})
    assert str(shape) in str(e.value)


@pytest.mark.parametrize("convert", [_snapshot, _to_scalars])
def test_a_tensor_without_a_value(convert: Any) -> None:
    with pytest.raises(ValueError, match=r"metric 'loss' is a tensor on the meta device.*model\.to\(fabric\.device\)"):
        convert({"loss": torch.zeros((), device="meta")})


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda value, dtype, shape: torch.tensor(value).to(dtype).reshape(shape),
    st.integers(0, 1),
    st.sampled_from(DTYPES),
    st.sampled_from([(), (1,), (1, 1)]),
)
LEAVES = TENSORS | st.floats(allow_nan=False) | st.text(max_size=2) | st.none()
NESTED = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=2), x, max_size=3))


def reference(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, dict):
        return {k: reference(v) for k, v in value.items()}
    return [reference(v) for v in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=2), NESTED, max_size=5))
def test_scalars_are_those_that_item_gives(metrics: dict[str, Any]) -> None:
    result, expected = _to_scalars(metrics), reference(metrics)
    assert repr(result) == repr(expected), "the same values of the same types"


def test_scalars_are_read_together() -> None:
    metrics = {str(i): torch.tensor(float(i), requires_grad=True) for i in range(10)}
    with Operators() as operators:
        assert list(_to_scalars(metrics).values()) == list(range(10))
    assert operators.names.count("stack") == 1
    assert "_local_scalar_dense" not in operators.names


def test_scalars_of_a_tensor_subclass_and_of_inference_tensors() -> None:
    class Tagged(torch.Tensor):
        pass

    with torch.inference_mode():
        metrics = {"a": torch.tensor(1.5), "b": torch.tensor(2.5)}
    metrics |= {"c": torch.tensor(3.5).as_subclass(Tagged), "d": torch.nn.Parameter(torch.tensor(4.5))}
    assert _to_scalars(_snapshot(metrics)) == {"a": 1.5, "b": 2.5, "c": 3.5, "d": 4.5}
    assert _to_scalars({"pair": (torch.tensor(1), 2)}) == {"pair": (1, 2)}
