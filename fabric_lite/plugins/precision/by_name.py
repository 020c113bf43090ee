"""From the name of a precision to the plugin."""

from __future__ import annotations

import torch

from fabric_lite.plugins.precision.amp import MixedPrecision
from fabric_lite.plugins.precision.double import DoublePrecision
from fabric_lite.plugins.precision.half import HalfPrecision
from fabric_lite.plugins.precision.precision import _PRECISION_INPUT_STR, Precision
from fabric_lite.plugins.precision.transformer_engine import TransformerEnginePrecision
from fabric_lite.utilities.rank_zero import rank_zero_warn


def precision_by_name(name: _PRECISION_INPUT_STR, device_type: str) -> Precision:
    """The plugin for a precision, where nothing about the strategy asks for another one.

    Args:
        name: Of the precision, in full.
        device_type: Where the numbers are: ``"cpu"``, ``"cuda"``, ...

    Returns:
        The plugin.
    """
    if name == "32-true":
        return Precision()
    if name == "64-true":
        return DoublePrecision()
    if name in ("16-true", "bf16-true"):
        return HalfPrecision(name)
    if name == "16-mixed" and device_type == "cpu":
        rank_zero_warn(
            "`Fabric(accelerator='cpu', precision='16-mixed')` runs as 'bf16-mixed': float16 is slow on a CPU."
            " Write `precision='bf16-mixed'`."
        )
        name = "bf16-mixed"
    if name in ("16-mixed", "bf16-mixed"):
        return MixedPrecision(name, device=device_type)
    return TransformerEnginePrecision(
        weights_dtype=torch.float16 if name == "transformer-engine-float16" else torch.bfloat16
    )
