"""The command line ``fabric-lite``."""

from fabric_lite.cli._main import main

__all__ = ["main"]
