"""The package's general exceptions."""

from __future__ import annotations


class MisconfigurationException(Exception):
    """The package was set up in a way that cannot work."""
