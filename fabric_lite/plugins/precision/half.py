"""Half precision."""

from __future__ import annotations

from typing import Literal

import torch

from fabric_lite.plugins.precision.true import TruePrecision

_DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16}


class HalfPrecision(TruePrecision):
    """Runs wholly in 16 bits.

    Args:
        precision: ``"16-true"`` for `torch.float16`, ``"bf16-true"`` for `torch.bfloat16`.

    Raises:
        ValueError: For any other.
    """

    precision: Literal["16-true", "bf16-true"] = "16-true"

    def __init__(self, precision: Literal["16-true", "bf16-true"] = "16-true") -> None:
        if precision not in _DTYPES:
            raise ValueError(f"`HalfPrecision(precision={precision!r})`: choose '16-true' or 'bf16-true'.")
        super().__init__(_DTYPES[precision])
        self.precision = precision
