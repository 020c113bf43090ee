"""Mixed precision: parameters in 32 bits, most of the arithmetic in 16, chosen by `torch.autocast`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from fabric_lite.plugins.precision.precision import Precision
from fabric_lite.plugins.precision.utils import _convert_fp_tensors
from fabric_lite.utilities.types import Optimizable

_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class MixedPrecision(Precision):
    """Runs the forward under `torch.autocast`, and scales the loss where gradients in 16 bits would vanish.

    The scale is updated at the backward that follows a step: until then, gradients of other optimizers have it.

    Args:
        precision: ``"16-mixed"`` for `torch.float16`, ``"bf16-mixed"`` for `torch.bfloat16`.
        device: Type of the device to run on, such as ``"cuda"``.
        scaler: Scales the loss; made if there is none. `torch.bfloat16` needs none.

    Raises:
        ValueError: For any other precision, or for a scaler with ``"bf16-mixed"``.
    """

    def __init__(
        self, precision: Literal["16-mixed", "bf16-mixed"], device: str, scaler: GradScaler | None = None
    ) -> None:
        if precision not in _DTYPES:
            raise ValueError(f"`MixedPrecision(precision={precision!r})`: choose '16-mixed' or 'bf16-mixed'.")
        if scaler is not None and precision == "bf16-mixed":
            raise ValueError(
                f"`MixedPrecision('bf16-mixed', scaler={scaler!r})`: bfloat16 has the range of float32 and takes no"
                " scaler. Leave it out, or use '16-mixed'."
            )
        self.precision = precision
        self.device = device
        self.scaler = GradScaler(device=device) if scaler is None and precision == "16-mixed" else scaler
        self._desired_input_dtype = _DTYPES[precision]
        self._unscaled: WeakSet[Any] = WeakSet()  # optimizers whose gradients have their true size, before their step
        self._update_due = False

    @property
    @override
    def compute_dtype(self) -> torch.dtype:
        return self._desired_input_dtype

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=self._desired_input_dtype)

    @override
    def convert_input(self, data: Any) -> Any:
        return _convert_fp_tensors(data, self._desired_input_dtype)

    @override
    def convert_output(self, data: Any) -> Any:
        return _convert_fp_tensors(data, torch.get_default_dtype())

    @override
    def backward(self, tensor: Tensor, model: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        if self.scaler is None:
            super().backward(tensor, model, *args, **kwargs)
            return
        if self._update_due:
            self._update_scale()
        before = {optimizer: _gradients(optimizer) for optimizer in self._unscaled}
        super().backward(self.scaler.scale(tensor), model, *args, **kwargs)
        for optimizer, gradients in before.items():
            if _gradients(optimizer) != gradients:  # clipped, but then given up: these are new, and scaled
                self._unscaled.discard(optimizer)
                self.scaler._per_optimizer_states.pop(id(optimizer), None)

    @override
    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        if self.scaler is None:
            return super().optimizer_step(optimizer, **kwargs)
        if isinstance(optimizer, LBFGS):
            raise TypeError(
                "`LBFGS` calls the model several times in a step, which the gradient scaler of '16-mixed' does not"
                " allow. Use another optimizer, or `Fabric(precision='bf16-mixed')`."
            )
        # The scaler leaves out a step whose gradients are not finite.
        output = self.scaler.step(optimizer, **kwargs)  # type: ignore[arg-type]
        self._unscaled.discard(optimizer)
        self._update_due = True
        return output

    @override
    def unscale_gradients(self, optimizer: Optimizer) -> None:
        if self.scaler is None:
            return
        if _optimizer_handles_unscaling(optimizer):
            raise NotImplementedError(
                f"`{type(optimizer).__name__}(fused=True)` unscales the gradients inside its step, so they cannot be"
                " clipped before it under '16-mixed'. Pass `fused=False`, or use `Fabric(precision='bf16-mixed')`."
            )
        if optimizer not in self._unscaled:
            self.scaler.unscale_(optimizer)
            self._unscaled.add(optimizer)

    def _update_scale(self) -> None:
        """Update the scale, and keep what the scaler knows of optimizers that are still to make their step."""
        if self.scaler is not None:
            pending = {id(optimizer): self.scaler._per_optimizer_states[id(optimizer)] for optimizer in self._unscaled}
            self.scaler.update()
            self.scaler._per_optimizer_states.update(pending)
            self._update_due = False

    def _finish(self) -> None:
        """Bring the scaler to the state that the next iteration begins with, unless this one is under way."""
        if self._update_due and not self._unscaled:
            self._update_scale()

    @override
    def state_dict(self) -> dict[str, Any]:
        self._finish()
        return {} if self.scaler is None else self.scaler.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state_dict)
            self.scaler._per_optimizer_states.clear()
            self._unscaled.clear()
            self._update_due = False

    def __getstate__(self) -> dict[str, Any]:
        self._finish()
        return {name: value for name, value in self.__dict__.items() if name != "_unscaled"}  # weak, does not pickle

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _unscaled=WeakSet())


def _gradients(optimizer: Optimizer) -> list[tuple[int, int]]:
    """What tells whether a backward added to the gradients of an optimizer."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [(id(p.grad), p.grad._version) for p in parameters if p.grad is not None]


def _optimizer_handles_unscaling(optimizer: Any) -> bool:
    """Whether an optimizer unscales the gradients in its own step, as fused ones do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
