"""The example of callbacks that wait."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "threaded_callbacks.py"


def test_it_does_the_same_serially_and_in_threads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"^one after the other: +[\d.]+ ms per step$", done.stdout, re.MULTILINE)
    assert re.search(r"^at the same time: +[\d.]+ ms per step, [\d.]+ times as fast$", done.stdout, re.MULTILINE)
    first, second = re.findall(r"mean loss: ([\d.]+) and ([\d.]+)", done.stdout)[0]
    assert first == second
