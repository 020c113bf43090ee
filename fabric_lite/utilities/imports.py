"""What kind of interpreter this is."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec

_IS_WINDOWS = platform.system() == "Windows"

# A Python shell has a prompt; `python -i script.py` has the flag.
_IS_INTERACTIVE = hasattr(sys, "ps1") or bool(sys.flags.interactive)

_NUMPY_AVAILABLE = find_spec("numpy") is not None
