"""What `tests/checkpoint` and `tests/strategies` cannot reach: torch's sharded checkpoints where there is no NumPy."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric_lite.utilities import shards


def test_without_numpy_all_processes_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "_NUMPY_AVAILABLE", False)
    for function in (
        lambda: shards.write_shards({}, tmp_path),
        lambda: shards.serialize_shards({}, tmp_path),
        lambda: shards.ShardReader(tmp_path).read({}, collective=True),
    ):
        with pytest.raises(
            ModuleNotFoundError, match=r"^Sharded checkpoints need the package numpy.*: pip install numpy$"
        ):
            function()
    assert list(tmp_path.iterdir()) == []
