"""How numbers are represented where parameters are sharded: torch's `fully_shard` converts what it gathers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from typing_extensions import override

from fabric_lite.plugins.precision.amp import MixedPrecision
from fabric_lite.plugins.precision.precision import _UNCHANGED
from fabric_lite.plugins.precision.utils import _convert_fp_tensors, _DtypeContextManager

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy

_PRECISION_INPUT = Literal["32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]

_DTYPES = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}


class FSDPPrecision(MixedPrecision):
    """The precision of `FSDPStrategy`.

    With ``"...-mixed"``, each process keeps its part of the parameters in 32 bits. They are gathered in 16 bits, the
    forward runs under `torch.autocast`, and gradients are added up over processes in 32 bits.

    Args:
        precision: ``"32-true"``, ``"16-true"``, ``"bf16-true"``, ``"16-mixed"`` or ``"bf16-mixed"``.
        scaler: Scales the loss with ``"16-mixed"``; made if there is none.
        device: Type of the device to run on; by default that of this machine's accelerator.

    Raises:
        ValueError: For any other precision, or for a scaler with another one.
    """

    precision: _PRECISION_INPUT

    def __init__(
        self, precision: _PRECISION_INPUT, scaler: GradScaler | None = None, device: str | None = None
    ) -> None:
        if precision not in get_args(_PRECISION_INPUT):
            names = ", ".join(map(repr, get_args(_PRECISION_INPUT)))
            raise ValueError(f"`FSDPPrecision(precision={precision!r})`: sharded parameters can be in {names}.")
        if scaler is not None and precision != "16-mixed":
            raise ValueError(
                f"`FSDPPrecision({precision!r}, scaler={scaler!r})`: only '16-mixed' takes a scaler. Leave it out."
            )
        current = torch.accelerator.current_accelerator(check_available=True) if device is None else None
        device = device or (current.type if current is not None else "cpu")
        # "16-mixed" is the one of its two that has a scaler; what the others need is set below.
        super().__init__("16-mixed" if precision == "16-mixed" else "bf16-mixed", device=device, scaler=scaler)
        self.precision = precision
        self._desired_input_dtype = _DTYPES[precision.partition("-")[0]]
        self._is_mixed = precision.endswith("mixed")

    @property
    @override
    def requires_fabric_backward(self) -> bool:
        return self._is_mixed

    @property
    def mixed_precision_config(self) -> MixedPrecisionPolicy:
        """What `fully_shard` converts."""
        from torch.distributed.fsdp import MixedPrecisionPolicy

        if not self._is_mixed:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self._desired_input_dtype, reduce_dtype=torch.float32)

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        changes = not self._is_mixed and self.precision != "32-true"
        return module.to(dtype=self._desired_input_dtype) if changes else module

    @override
    def tensor_init_context(self) -> AbstractContextManager[Any]:
        changes = not self._is_mixed and self.precision != "32-true"
        return cast(Any, _DtypeContextManager(self._desired_input_dtype)) if changes else _UNCHANGED

    @override
    def module_init_context(self) -> AbstractContextManager[Any]:
        return self.tensor_init_context()

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        return super().forward_context() if self._is_mixed else self.tensor_init_context()

    @override
    def convert_input(self, data: Any) -> Any:
        return data if self.precision == "32-true" else _convert_fp_tensors(data, self._desired_input_dtype)

    @override
    def convert_output(self, data: Any) -> Any:
        return data if self.precision == "32-true" else super().convert_output(data)
