"""The gate that gradients of a module pass only under `fabric.backward`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fabric_lite.strategies.backward_gate import define_compiled_check, gate, guard_backward

MESSAGE = r"`loss.backward\(\)` was called .* `fabric.backward\(loss\)`"


@contextmanager
def opened() -> Iterator[None]:
    gate.opened += 1
    try:
        yield
    finally:
        gate.opened -= 1


def output() -> Any:
    return torch.ones(2, requires_grad=True) * 2


def test_closed_open_and_closed_again() -> None:
    y = guard_backward(output())
    with pytest.raises(RuntimeError, match=MESSAGE):
        y.sum().backward(retain_graph=True)
    with opened():
        y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=MESSAGE):
        y.sum().backward()


def test_open_as_long_as_one_has_it_open() -> None:
    y = guard_backward(output())
    with opened():
        with opened():
            y.sum().backward(retain_graph=True)
        y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=MESSAGE):
        y.sum().backward()


def test_the_same_object_comes_back() -> None:
    held = {"a": [output(), 3], "b": None}
    assert guard_backward(held) is held
    with pytest.raises(RuntimeError, match=MESSAGE):
        held["a"][0].sum().backward()  # type: ignore[index]


@pytest.mark.parametrize("grad", [True, False])
def test_leaves_and_what_needs_no_gradient_get_no_hook(grad: bool) -> None:
    leaf = torch.ones(1, requires_grad=grad)
    assert guard_backward(leaf) is leaf
    assert not leaf._backward_hooks
    assert not guard_backward(output().detach())._backward_hooks


def test_the_operator_of_compiled_code() -> None:
    define_compiled_check()
    define_compiled_check()  # once is enough, twice does no harm
    gradient = torch.full((2,), 3.0)
    with pytest.raises(RuntimeError, match=MESSAGE):
        torch.ops.fabric_lite.check_backward_gate(gradient)
    with opened():
        assert torch.ops.fabric_lite.check_backward_gate(gradient) == 1
