"""A script written for Lightning Fabric runs after `sed 's/lightning.fabric/fabric_lite/'`, and does the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fabric_lite

SCRIPT = Path(__file__).with_name("script.py")
# As `python script folder`, in a Python that has no lightning.
WITHOUT_LIGHTNING = """
import runpy, sys
sys.modules["lightning"] = None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder: Path, *command: str | Path) -> str:
    path = os.pathsep.join([str(Path(fabric_lite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder: Path) -> dict[str, Any]:
    """What is in each file below a folder."""
    return {
        str(path.relative_to(folder)): torch.load(path) if path.suffix == ".ckpt" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_script_does_the_same_after_sed(tmp_path: Path, frozen: Callable[[Any], Any]) -> None:
    renamed = tmp_path / "renamed.py"
    command = ["sed", "s/lightning.fabric/fabric_lite/", str(SCRIPT)]
    renamed.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    outputs, files = [], []
    for name, start in {"theirs": [SCRIPT], "ours": ["-W", "error", "-c", WITHOUT_LIGHTNING, renamed]}.items():
        folder = tmp_path / name
        folder.mkdir()
        outputs.append(run(folder, *start, folder).splitlines())
        files.append(written(folder))
    assert outputs[1] == outputs[0]
    assert files[1].keys() == files[0].keys() >= {"epoch-0.ckpt", "epoch-1.ckpt", "weights.ckpt"}
    assert frozen(files[1]) == frozen(files[0])
    assert len(outputs[0]) == 2 + 2 * (4 + 1) + 1
