"""The base class of string enums."""

from __future__ import annotations

from lightning_utilities.core.enums import StrEnum as LightningEnum

__all__ = ["LightningEnum"]
