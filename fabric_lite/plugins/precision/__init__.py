"""How numbers are represented in parameters and arithmetic."""

from fabric_lite.plugins.precision.amp import MixedPrecision
from fabric_lite.plugins.precision.double import DoublePrecision
from fabric_lite.plugins.precision.fsdp import FSDPPrecision
from fabric_lite.plugins.precision.half import HalfPrecision
from fabric_lite.plugins.precision.precision import Precision
from fabric_lite.plugins.precision.transformer_engine import TransformerEnginePrecision

__all__ = [
    "DoublePrecision",
    "FSDPPrecision",
    "HalfPrecision",
    "MixedPrecision",
    "Precision",
    "TransformerEnginePrecision",
]
