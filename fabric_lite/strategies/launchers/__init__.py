"""How the processes of a run come to be."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

from fabric_lite.strategies.launchers.launcher import _Launcher
from fabric_lite.utilities.lazy import names_on_demand as _names_on_demand

if _TYPE_CHECKING:
    from fabric_lite.strategies.launchers.multiprocessing import _MultiProcessingLauncher
    from fabric_lite.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

_HOMES = {"_MultiProcessingLauncher": "multiprocessing", "_SubprocessScriptLauncher": "subprocess_script"}

__getattr__ = _names_on_demand(__name__, _HOMES)

__all__ = ["_Launcher", "_MultiProcessingLauncher", "_SubprocessScriptLauncher"]
