"""The gradients of a module as an object with a state: for a checkpoint between two accumulated steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class GradientState:
    """What a module's gradients have accumulated so far, to be saved and to go on from.

    A checkpoint after a step of the optimizer does not need it. One between two backwards that belong to one step does:
    ``fabric.save(path, {"model": model, "gradients": GradientState(model), ...})``. Each process has its own.

    Args:
        module: The module.
    """

    differs_by_rank = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        """The gradients by the names of their parameters; those that there are."""
        return {name: each.grad.detach() for name, each in self.module.named_parameters() if each.grad is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the gradients; parameters without one have none afterwards.

        Args:
            state: From `state_dict`, of such a module.

        Raises:
            ValueError: If a gradient has no parameter, or another shape.
        """
        parameters = dict(self.module.named_parameters())
        for name, gradient in state.items():
            expected = parameters[name].shape if name in parameters else None
            if gradient.shape != expected:
                what = "no such parameter" if expected is None else f"a parameter of shape {tuple(expected)}"
                raise ValueError(
                    f"The saved gradient {name!r} has the shape {tuple(gradient.shape)}, but"
                    f" `{type(self.module).__name__}` has {what}. Load the gradients of the same model."
                )
        for name, parameter in parameters.items():
            gradient = state.get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter, copy=True)
