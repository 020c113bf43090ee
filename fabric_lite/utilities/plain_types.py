"""Types whose objects only hold values, so that a checkpoint with them can be loaded without running its code."""

from __future__ import annotations

import datetime
from argparse import Namespace
from contextlib import AbstractContextManager
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import SimpleNamespace
from typing import Any

from torch.serialization import safe_globals

from fabric_lite.utilities.data import AttributeDict
from fabric_lite.utilities.imports import _NUMPY_AVAILABLE

_BUILTIN = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset, range, slice)
_TIMES = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone)
_PATHS = (PosixPath, PurePosixPath, PureWindowsPath, WindowsPath)
_TYPES = (*_BUILTIN, *_TIMES, *_PATHS, Decimal, Fraction, Namespace, SimpleNamespace, AttributeDict)


def plain_types_admitted() -> AbstractContextManager[None]:
    """While it is entered, ``torch.load(weights_only=True)`` admits them besides what torch admits.

    They are what configurations and statistics are made of, NumPy's arrays and scalars included.
    """
    return safe_globals([*_TYPES, *_numpy_types()])


def _numpy_types() -> list[Any]:
    if not _NUMPY_AVAILABLE:
        return []
    import numpy

    # The functions that make them again have moved from one version of NumPy to another.
    makers: list[Any] = [numpy.float64(0).__reduce__()[0], numpy.empty(0).__reduce__()[0]]
    kinds = {type(numpy.dtype(kind)) for kind in numpy.sctypeDict.values()}
    return [*makers, numpy.ndarray, numpy.dtype, *kinds]
