"""How numbers are represented: the seam, and full precision, which changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fabric_lite.utilities.types import Optimizable

_PRECISION_INPUT_INT = Literal[64, 32, 16]
_PRECISION_INPUT_STR_ALIAS = Literal["64", "32", "16", "bf16"]
_PRECISION_INPUT_STR_ALIAS_CONVERSION = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_PRECISION_INPUT_STR = Literal[
    "transformer-engine",
    "transformer-engine-float16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
]
_PRECISION_INPUT = _PRECISION_INPUT_INT | _PRECISION_INPUT_STR | _PRECISION_INPUT_STR_ALIAS

_UNCHANGED = nullcontext()


class Precision:
    """Full precision (``"32-true"``), and the base class of the others.

    A subclass overrides what it changes; each method here leaves its argument as it is.
    """

    precision: _PRECISION_INPUT_STR = "32-true"

    @property
    def compute_dtype(self) -> torch.dtype:
        """The data type in which most of the arithmetic is done."""
        return torch.float32

    @property
    def requires_fabric_backward(self) -> bool:
        """Whether ``loss.backward()`` would leave out something that ``fabric.backward(loss)`` does."""
        kind = type(self)
        return any(
            getattr(kind, name) is not getattr(Precision, name)
            for name in ("pre_backward", "backward", "post_backward")
        )

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert the parameters of a module that is being set up.

        Args:
            module: The module.

        Returns:
            The module with its parameters in this precision.
        """
        return module

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Under it, new floating point tensors get the data type of this precision."""
        return _UNCHANGED

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Under it, new modules get their parameters in this precision."""
        return _UNCHANGED

    def forward_context(self) -> AbstractContextManager[Any]:
        """The forward of a module runs under it."""
        return _UNCHANGED

    def convert_input(self, data: Any) -> Any:
        """Convert what a module is called with.

        Args:
            data: Any nesting of tensors.

        Returns:
            The same, floating point tensors in the data type that the module expects.
        """
        return data

    def convert_output(self, data: Any) -> Any:
        """Convert what a module returned.

        Args:
            data: Any nesting of tensors.

        Returns:
            The same, floating point tensors in torch's default data type.
        """
        return data

    def pre_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
        """Runs before `backward`.

        Args:
            tensor: The loss.
            module: The module whose parameters get the gradients, if the user named it.
        """

    def backward(self, tensor: Tensor, model: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients.

        Args:
            tensor: The loss.
            model: The module whose parameters get the gradients, if the user named it.
            *args: Passed to `torch.Tensor.backward`.
            **kwargs: Passed to `torch.Tensor.backward`.
        """
        tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def post_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
        """Runs after `backward`.

        Args:
            tensor: The loss.
            module: The module whose parameters got the gradients, if the user named it.
        """

    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """Let an optimizer update the parameters.

        Args:
            optimizer: The optimizer.
            **kwargs: Passed to its ``step``.

        Returns:
            What its ``step`` returned.
        """
        return optimizer.step(**kwargs)

    def main_params(self, optimizer: Optimizer) -> Iterator[nn.Parameter]:
        """The parameters whose gradients are clipped.

        Args:
            optimizer: The optimizer that updates them.
        """
        for group in optimizer.param_groups:
            yield from group["params"]

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients that were scaled to their true size. Calling it again before the step changes nothing.

        Args:
            optimizer: The optimizer that updates the parameters.
        """

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved to go on as before."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Args:
            state_dict: From `state_dict`.
        """

    def teardown(self) -> None:
        """Give back what is held beyond the run."""
