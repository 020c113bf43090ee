from __future__ import annotations

import lightning.fabric.utilities as theirs

import fabric_lite.utilities as ours


def test_the_same_names_are_public() -> None:
    assert ours.__all__ == sorted(theirs.__all__)
    assert all(hasattr(ours, name) for name in ours.__all__)
