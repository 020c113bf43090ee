"""The parts of a `Fabric` that can be exchanged."""

from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.plugins.io import CheckpointIO, TorchCheckpointIO
from fabric_lite.plugins.precision import (
    DoublePrecision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TransformerEnginePrecision,
)

__all__ = [
    "CheckpointIO",
    "ClusterEnvironment",
    "DoublePrecision",
    "FSDPPrecision",
    "HalfPrecision",
    "MixedPrecision",
    "Precision",
    "TorchCheckpointIO",
    "TransformerEnginePrecision",
]
