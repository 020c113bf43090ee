"""The examples of several processes: each strategy trains, and two that compute the same end with the same loss."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"


def loss(script: str, strategy: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / script), "--steps", "50"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pattern = rf"step 50: [\d.]+\n2 processes, {strategy}: validation loss ([\d.]+)\n"
    found = re.fullmatch(pattern, done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 2.8  # a guess by the frequencies of the characters alone has about 3.2
    return found[1]


@pytest.mark.slow
def test_they_train() -> None:
    assert loss("ddp.py", "DDPStrategy") == loss("fsdp2.py", "FSDPStrategy")
    loss("tensor_parallel.py", "ModelParallelStrategy")
