"""Limiting gradients that are spread over processes, each along axes of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fabric_lite.utilities.distributed import _is_dtensor


def clip_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    """Scale gradients down to a norm. All processes have to call it.

    Args:
        parameters: Those whose gradients count, sharded over different axes, or not at all.
        max_norm: The largest norm of all of them, on all processes together.
        norm_type: Which norm.
        error_if_nonfinite: Whether a norm that is not finite is an error.

    Returns:
        The norm before, a scalar: no shard.

    Raises:
        RuntimeError: If the norm is not finite, and ``error_if_nonfinite`` is set.
    """
    groups = _by_mesh(parameters)
    if not groups:
        return torch.tensor(0.0)
    norms = [nn.utils.get_total_norm([cast(Tensor, p.grad) for p in group], norm_type) for group in groups]
    whole = [norm.full_tensor() if _is_dtensor(norm) else norm for norm in norms]
    total = whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole), norm_type)
    if error_if_nonfinite and not torch.isfinite(total):
        raise RuntimeError(
            f"The gradients have the norm {total.item()} and cannot be clipped. Find out where they come from, or pass"
            " `error_if_nonfinite=False` to `fabric.clip_gradients`."
        )
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total


def clip_value(parameters: Iterable[nn.Parameter], clip_val: float) -> None:
    """Cut each element of the gradients off.

    Args:
        parameters: Those whose gradients are cut.
        clip_val: The largest absolute value.
    """
    for group in _by_mesh(parameters):
        nn.utils.clip_grad_value_(group, clip_val)


def _by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters with a gradient, in groups whose gradients torch can compute with together."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if _is_dtensor(gradient):
            if any(placement.is_partial() for placement in gradient.placements):
                parameter.grad = cast(Tensor, _added_up(gradient))
            groups.setdefault(gradient.device_mesh, []).append(parameter)
        else:
            groups.setdefault(None, []).append(parameter)
    return list(groups.values())


def _added_up(gradient: Any) -> Any:
    """A gradient of which each process has a summand, as the sum."""
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
    return gradient.redistribute(placements=placements)
