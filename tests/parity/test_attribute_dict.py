from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import AttributeDict as Theirs

from fabric_lite.utilities import AttributeDict


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=3), max_size=5))
def test_looks_the_same(data: dict[str, Any]) -> None:
    assert repr(AttributeDict(data)) == repr(Theirs(data))
