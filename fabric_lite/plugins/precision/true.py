"""Everything in one data type other than 32-bit: parameters, inputs, and what is made in the forward."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from fabric_lite.plugins.precision.precision import Precision
from fabric_lite.plugins.precision.utils import _convert_fp_tensors, _DtypeContextManager


class TruePrecision(Precision):
    """Runs wholly in one data type.

    Args:
        dtype: The data type.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._desired_input_dtype = dtype

    @property
    @override
    def compute_dtype(self) -> torch.dtype:
        return self._desired_input_dtype

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        return module.to(dtype=self._desired_input_dtype)

    @override
    def tensor_init_context(self) -> AbstractContextManager[Any]:
        return _DtypeContextManager(self._desired_input_dtype)

    @override
    def module_init_context(self) -> AbstractContextManager[Any]:
        return self.tensor_init_context()

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        return self.tensor_init_context()

    @override
    def convert_input(self, data: Any) -> Any:
        return _convert_fp_tensors(data, self._desired_input_dtype)

    @override
    def convert_output(self, data: Any) -> Any:
        return _convert_fp_tensors(data, torch.get_default_dtype())
