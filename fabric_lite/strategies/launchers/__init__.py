"""How the processes of a run come to be."""

from fabric_lite.strategies.launchers.launcher import _Launcher

__all__ = ["_Launcher"]
