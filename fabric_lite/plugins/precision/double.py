"""Double precision."""

from __future__ import annotations

from typing import Literal

import torch

from fabric_lite.plugins.precision.true import TruePrecision


class DoublePrecision(TruePrecision):
    """Runs wholly in 64 bits (``"64-true"``)."""

    precision: Literal["64-true"] = "64-true"

    def __init__(self) -> None:
        super().__init__(torch.double)
