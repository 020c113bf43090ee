from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fabric_lite.utilities.apply_func import convert_tensors_to_scalars, convert_to_tensors, move_data_to_device

# The meta device stands for an accelerator: data really changes device, on any machine.
META = torch.device("meta")


class Recorder(Tensor):
    """A tensor that notes how it is moved."""

    calls: ClassVar[list[dict[str, Any]]] = []

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(kwargs)
        return torch.empty(self.shape)


class Batch:
    def __init__(self) -> None:
        self.x = torch.ones(2)

    def to(self, device: torch.device) -> Batch:
        self.x = self.x.to(device)
        return self


class ForgetfulBatch(Batch):
    def to(self, device: torch.device) -> None:  # type: ignore[override]
        super().to(device)


class BatchEncoding(UserDict):  # type: ignore[type-arg]
    def to(self, device: torch.device) -> str:
        return f"moved to {device}"


class Pair(NamedTuple):
    x: Tensor
    to: str


@dataclasses.dataclass
class Sample:
    x: Tensor
    names: list[str]
    derived: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.derived = self.x * 2

    @cached_property
    def total(self) -> Tensor:
        return self.x.sum()


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Tensor
    inner: dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    x: Tensor


@dataclasses.dataclass
class Late:
    x: Tensor
    y: Tensor = dataclasses.field(init=False)


@pytest.mark.parametrize("device", [META, "meta"])
def test_moves_a_tensor(device: torch.device | str) -> None:
    assert move_data_to_device(torch.ones(2), device).device == META


def test_a_tensor_that_is_there_already_is_not_copied() -> None:
    x = torch.ones(2)
    assert move_data_to_device(x, "cpu") is x
    assert move_data_to_device([x], "cpu")[0] is x


class Name(str):
    pass


leaves = st.one_of(
    st.builds(lambda n: torch.ones(n), st.integers(0, 3)),
    st.integers(),
    st.none(),
    st.text(max_size=3),
    st.binary(max_size=3),
)
nested = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), children, max_size=3),
        st.dictionaries(st.text(max_size=2), children, max_size=3).map(OrderedDict),
        st.dictionaries(st.text(max_size=2), children, max_size=3).map(lambda d: defaultdict(list, d)),
        st.builds(Pair, children, st.text(max_size=3)),
        st.builds(Frozen, children, st.dictionaries(st.text(max_size=2), children, max_size=2)),
        st.lists(children, max_size=3).map(deque),
    ),
    max_leaves=8,
)


def same_but_moved(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return before.device.type == "cpu" and after.device == META and before.shape == after.shape
    if type(before) is not type(after):
        return False
    if dataclasses.is_dataclass(before):
        return all(same_but_moved(getattr(before, f.name), getattr(after, f.name)) for f in dataclasses.fields(before))
    if isinstance(before, dict):
        if isinstance(before, defaultdict) and before.default_factory is not after.default_factory:
            return False
        return list(before) == list(after) and all(same_but_moved(before[k], after[k]) for k in before)
    if isinstance(before, (list, tuple, deque)):
        return len(before) == len(after) and all(map(same_but_moved, before, after))
    return before is after


@given(nested)
def test_moves_any_nesting_and_leaves_the_original_as_it_was(data: Any) -> None:
    assert same_but_moved(data, move_data_to_device(data, META))


@pytest.mark.parametrize("batch", [range(3), b"abc", bytearray(b"abc"), memoryview(b"abc"), Name("abc"), {1, 2}, 3.5])
def test_what_holds_no_tensors_is_passed_on(batch: Any) -> None:
    assert move_data_to_device(batch, META) is batch
    moved = move_data_to_device([torch.ones(1), batch], META)
    assert moved[0].device == META
    assert moved[1] is batch


def test_moves_other_mappings() -> None:
    moved = move_data_to_device(MappingProxyType({"x": torch.ones(1)}), META)
    assert isinstance(moved, MappingProxyType)
    assert moved["x"].device == META
    assert move_data_to_device(Counter("aab"), META) == Counter("aab")


def test_a_subclass_of_a_list_stays_one() -> None:
    class Points(list):  # type: ignore[type-arg]
        pass

    moved = move_data_to_device(Points([torch.ones(1)]), META)
    assert type(moved) is Points
    assert moved[0].device == META


def test_moves_a_packed_sequence() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    moved = move_data_to_device({"x": packed}, META)["x"]
    assert isinstance(moved, PackedSequence)
    assert moved.data.device == META
    assert packed.data.device.type == "cpu"


def test_a_method_to_is_respected() -> None:
    batch = Batch()
    assert move_data_to_device([batch], META)[0] is batch
    assert batch.x.device == META


def test_a_method_to_may_forget_to_return_the_object() -> None:
    batch = ForgetfulBatch()
    assert move_data_to_device((batch, 1), META)[0] is batch
    assert batch.x.device == META


def test_an_object_with_a_method_to_is_not_descended_into() -> None:
    assert move_data_to_device(BatchEncoding(x=torch.ones(1)), META) == "moved to meta"
    assert convert_to_tensors({"batch": BatchEncoding(x=1)}, META) == {"batch": "moved to meta"}


def test_a_field_called_to_is_no_method() -> None:
    moved = move_data_to_device(Pair(torch.ones(1), to="me"), META)
    assert moved.x.device == META
    assert moved.to == "me"


def test_moves_a_dataclass() -> None:
    sample = Sample(torch.ones(2), names=["a"])
    assert sample.total.device.type == "cpu"  # now cached
    sample.note = "attached"  # type: ignore[attr-defined]
    moved = move_data_to_device([sample], META)[0]
    assert type(moved) is Sample
    assert moved.x.device == moved.derived.device == moved.total.device == META
    assert moved.names == ["a"]
    assert moved.note == "attached"
    assert sample.x.device == sample.derived.device == sample.total.device == torch.device("cpu")


@pytest.mark.parametrize("batch", [Frozen(torch.ones(2), {"y": torch.ones(1)}), FrozenSlots(torch.ones(2))])
def test_moves_a_frozen_dataclass(batch: Frozen | FrozenSlots) -> None:
    for moved in (move_data_to_device(batch, META), move_data_to_device({"a": [batch]}, META)["a"][0]):
        assert type(moved) is type(batch)
        assert moved.x.device == META
        assert batch.x.device.type == "cpu"
        if isinstance(moved, Frozen):
            assert moved.inner["y"].device == META


def test_a_field_that_is_not_set_stays_so() -> None:
    moved = move_data_to_device(Late(torch.ones(1)), META)
    assert moved.x.device == META
    assert not hasattr(moved, "y")


def test_a_dataclass_type_is_no_data() -> None:
    assert move_data_to_device([Sample, torch.ones(1)], META)[0] is Sample


@pytest.mark.parametrize(("device", "kwargs"), [("cpu", False), ("mps", False), ("cuda", True), ("meta", True)])
def test_copies_are_asynchronous_unless_to_the_host_or_mps(device: str, kwargs: bool) -> None:
    Recorder.calls.clear()
    tensor = torch.ones(2).as_subclass(Recorder)
    move_data_to_device([tensor], torch.device(device))
    assert Recorder.calls == [{"non_blocking": kwargs}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, torch.tensor(1, dtype=torch.uint8)),
        (3, torch.tensor(3, dtype=torch.int32)),
        (0.5, torch.tensor(0.5, dtype=torch.float32)),
        (np.float64(0.5), torch.tensor(0.5, dtype=torch.float32)),
        (np.arange(3), torch.arange(3)),
        (np.ones(2, dtype=np.float16), torch.ones(2, dtype=torch.float16)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    ],
)
def test_converts_to_tensors(value: Any, expected: Tensor) -> None:
    converted = convert_to_tensors({"a": [value]}, "cpu")["a"][0]
    torch.testing.assert_close(converted, expected, rtol=0, atol=0)
    assert convert_to_tensors(value, META).device == META


def test_conversion_reaches_into_dataclasses_and_leaves_the_rest() -> None:
    @dataclasses.dataclass(frozen=True)
    class Metrics:
        loss: float
        name: str

    converted = convert_to_tensors((Metrics(0.5, "a"), None, "b"), "cpu")
    assert converted[0].loss.dtype == torch.float32
    assert converted[0].name == "a"
    assert converted[1:] == (None, "b")


def test_a_converted_array_is_a_copy() -> None:
    array = np.zeros(2)
    convert_to_tensors(array, "cpu").add_(1)
    assert array.tolist() == [0, 0]
    array.flags.writeable = False
    assert convert_to_tensors(array, "cpu").tolist() == [0, 0]


def test_converts_to_scalars() -> None:
    Result = namedtuple("Result", ["a"])
    data = {"loss": torch.tensor(0.5), "n": {"x": [torch.tensor([[2]])]}, "r": Result(torch.tensor(True)), "s": "text"}
    assert convert_tensors_to_scalars(data) == {"loss": 0.5, "n": {"x": [2]}, "r": Result(True), "s": "text"}
    assert convert_tensors_to_scalars(torch.tensor(3)) == 3
    assert convert_tensors_to_scalars(1.5) == 1.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"train": {"loss": torch.ones(2, 3)}},
            r"The metric 'train.loss' has 6 elements \(shape \(2, 3\)\) and cannot become one number\. Reduce it first",
        ),
        ({"loss": [torch.ones(0)]}, r"The metric 'loss' has 0 elements \(shape \(0,\)\)"),
        (torch.ones(2), r"The tensor has 2 elements"),
    ],
)
def test_a_metric_of_several_elements_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_tensors_to_scalars(data)
