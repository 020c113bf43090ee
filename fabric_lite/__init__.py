"""fabric-lite: devices, precision and an open hook bus for hand-written PyTorch training loops."""

from importlib import import_module as _import_module
from types import ModuleType as _ModuleType

from fabric_lite.__about__ import __version__ as __version__
from fabric_lite.fabric import Fabric
from fabric_lite.utilities.seed import seed_everything
from fabric_lite.wrappers import is_wrapped

__all__ = ["Fabric", "is_wrapped", "seed_everything"]


def __getattr__(name: str) -> _ModuleType:
    """Subpackages that `Fabric` does not need are imported when they are first asked for."""
    if name != "loggers":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _import_module("fabric_lite.loggers")
