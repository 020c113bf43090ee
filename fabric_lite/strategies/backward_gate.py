"""Refuses ``loss.backward()`` where ``fabric.backward(loss)`` does something that it would leave out."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fabric_lite.utilities.apply_func import apply_to_tensors


class _Gate:
    """How many calls of `Fabric.backward` are under way in this process.

    One for all: gradients may run through modules of several Fabrics, and through unpickled copies. A number that is
    counted up and down, and no context manager, since it is part of every step.
    """

    opened = 0


gate = _Gate()


def guard_backward(output: Any) -> Any:
    """Let the gradients of tensors pass in `Fabric.backward` only.

    Args:
        output: What a module returned: any nesting of tensors.

    Returns:
        The same; in compiled code, with views in the place of the tensors.
    """
    if torch.compiler.is_compiling():  # a hook on a tensor would break the graph
        return apply_to_tensors(output, _gated)
    apply_to_tensors(output, _hook)
    return output


def _gated(tensor: Tensor) -> Tensor:
    return _Gated.apply(tensor) if tensor.requires_grad else tensor  # type: ignore[no-untyped-call]


def _hook(tensor: Tensor) -> Tensor:
    # A parameter that a module returns would keep the hook, and get another one each time.
    if tensor.requires_grad and not tensor.is_leaf:
        tensor.register_hook(_check)  # type: ignore[no-untyped-call]
    return tensor


def _check(_: object = None) -> None:
    if not gate.opened:
        raise RuntimeError(
            "`loss.backward()` was called on a loss of a module whose strategy or precision needs"
            " `fabric.backward(loss)`, which also scales or synchronizes the gradients. Call that instead."
        )


class _Gated(torch.autograd.Function):
    """Identity, whose gradient is multiplied by the one that the check returns if the gate is open."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The product makes the check part of the graph: what has no result would be removed from it.
        return gradient * torch.ops.fabric_lite.check_backward_gate(gradient)  # type: ignore[no-any-return]


@cache
def define_compiled_check() -> None:
    """Define the operator that compiled code checks the gate with: torch traces over it, and runs it as it is."""

    def check_backward_gate(gradient: Tensor) -> Tensor:
        _check()
        return gradient.new_ones(())

    operator = torch.library.custom_op("fabric_lite::check_backward_gate", check_backward_gate, mutates_args=())
    operator.register_fake(lambda gradient: gradient.new_ones(()))
