"""What is wrong with a checkpoint.

RuntimeError
└── CheckpointError: it is damaged, or none at all
    └── UnsafeCheckpointError (also a pickle.UnpicklingError): it has objects in it that could run code
"""

from __future__ import annotations

import pickle


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read: it is truncated, empty, damaged, or no checkpoint at all.

    A file that is not there is a `FileNotFoundError`, and a name that is not in it a `KeyError`.
    """

    __module__ = "fabric_lite.checkpoint"


class UnsafeCheckpointError(CheckpointError, pickle.UnpicklingError):
    """A checkpoint has more in it than tensors and plain values, and was not loaded with ``weights_only=False``."""

    __module__ = "fabric_lite.checkpoint"
