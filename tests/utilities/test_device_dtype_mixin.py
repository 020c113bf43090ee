from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin, _update_properties


class Inner(_DeviceDtypeModuleMixin):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Outer(_DeviceDtypeModuleMixin):
    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Sequential(Inner())

    @property
    def inner(self) -> Inner:
        inner = self.between[0]
        assert isinstance(inner, Inner)
        return inner


@pytest.mark.parametrize(
    ("change", "device", "dtype"),
    [
        (lambda m: m.to("meta"), "meta", torch.float32),
        (lambda m: m.to(torch.device("meta"), torch.float16), "meta", torch.float16),
        (lambda m: m.to(torch.ones((), dtype=torch.float64)), "cpu", torch.float64),
        (lambda m: m.to(dtype=torch.bfloat16), "cpu", torch.bfloat16),
        (lambda m: m.to_empty(device="meta"), "meta", torch.float32),
        (lambda m: m.cpu(), "cpu", torch.float32),
        (lambda m: m.double().float(), "cpu", torch.float32),
        (lambda m: m.double(), "cpu", torch.float64),
        (lambda m: m.half(), "cpu", torch.float16),
        (lambda m: m.bfloat16(), "cpu", torch.bfloat16),
        (lambda m: m.type(torch.float64), "cpu", torch.float64),
        (lambda m: m.type("torch.HalfTensor"), "cpu", torch.float16),
    ],
)
def test_the_properties_follow_the_parameters(
    change: Callable[[Outer], Outer], device: str, dtype: torch.dtype
) -> None:
    outer = Outer()
    assert change(outer) is outer
    for module in (outer, outer.inner):
        assert module.device == torch.device(device) == outer.inner.weight.device
        assert module.dtype == dtype == outer.inner.weight.dtype


def test_the_beginning_is_the_default() -> None:
    with torch.device("meta"):
        assert _DeviceDtypeModuleMixin().device == torch.device("meta")
    torch.set_default_dtype(torch.float64)
    assert _DeviceDtypeModuleMixin().dtype == torch.float64


@pytest.mark.parametrize(
    ("argument", "index"), [(None, 3), (1, 1), (torch.device("cuda", 2), 2), (torch.device("cuda"), 3)]
)
def test_a_cuda_device_has_an_index(argument: Any, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moved_to = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(nn.Module, "cuda", lambda self, device: moved_to.append(torch.device(device)) or self)
    module = _DeviceDtypeModuleMixin().cuda(argument)
    assert module.device == torch.device("cuda", index)
    assert moved_to in ([torch.device("cuda", index)], [torch.device("cuda")])


def test_the_dtype_cannot_be_assigned() -> None:
    with pytest.raises(
        RuntimeError, match=r"dtype of Outer follows its parameters .*Write `module\.to\(torch\.float16\)`"
    ):
        Outer().dtype = torch.float16


def test_properties_are_noted_without_moving() -> None:
    outer = Outer()
    _update_properties(nn.Sequential(outer), device=torch.device("meta"), dtype=torch.float16)
    assert (outer.inner.device, outer.inner.dtype) == (torch.device("meta"), torch.float16)
    assert (outer.inner.weight.device, outer.inner.weight.dtype) == (torch.device("cpu"), torch.float32)


def test_copies_keep_the_properties() -> None:
    module = Inner().to("cpu", torch.float64)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (other.device, other.dtype) == (torch.device("cpu"), torch.float64)
