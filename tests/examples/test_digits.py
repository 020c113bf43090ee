"""The demo, run as a user runs it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-W", "error", str(ROOT / "examples" / "digits.py"), "--accelerator", "cpu"]
# One thread: many would wait for each other where the tests of others run on the same cores.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def run(*args: object) -> str:
    command = [*COMMAND, *map(str, args)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def final_accuracy(output: str) -> float:
    last = re.fullmatch(r"validation accuracy: (\d\.\d\d)", output.splitlines()[-1])
    assert last is not None, output
    return float(last[1])


def numbers(name: str, output: str) -> list[float]:
    return [float(value) for value in re.findall(rf"^{name}: (\d\.\d{{4}})\r?$", output, re.MULTILINE)]


def check(output: str, folder: Path) -> None:
    """It has learned, and each callback and the logger have reported."""
    training, validation = numbers("Training loss", output), numbers("Validation accuracy", output)
    assert final_accuracy(output) > 0.95
    assert len(training) == len(validation) == 8
    assert training[-1] < 0.1 < training[0]
    assert validation[-1] > 0.95
    assert re.findall(r"^--- epoch (\d) of 8$", output, re.MULTILINE) == list("12345678")
    metrics = r"^Epoch (\d) complete with metrics: {'train_loss': .*, 'val_accuracy': .*}$"
    assert re.findall(metrics, output, re.MULTILINE) == list("12345678")
    assert re.findall(r"^Iteration (\d+) took \d+\.\d ms$", output, re.MULTILINE) == ["40", "80", "120", "160"]

    with (folder / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [f"{float(row['val_accuracy']):.4f}" for row in rows] == [f"{value:.4f}" for value in validation]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run in full precision printed, and its folder."""
    folder = tmp_path_factory.mktemp("digits")
    return run("--out", folder), folder


def test_it_learns_and_its_callbacks_report(finished: tuple[str, Path]) -> None:
    check(*finished)


def test_it_learns_in_mixed_precision(tmp_path: Path, finished: tuple[str, Path]) -> None:
    output = run("--precision", "bf16-mixed", "--out", tmp_path)
    check(output, tmp_path)
    assert numbers("Training loss", output) != numbers("Training loss", finished[0])


def test_it_goes_on_from_its_checkpoint(finished: tuple[str, Path]) -> None:
    output, folder = finished
    more = run("--epochs", 9, "--out", folder)
    assert re.findall(r"^--- (.*)$", more, re.MULTILINE) == ["epoch 9 of 9"]
    assert numbers("Training loss", more)[0] < numbers("Training loss", output)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_in_a_terminal_there_is_a_progress_bar_and_the_same_results(tmp_path: Path, finished: tuple[str, Path]) -> None:
    import pty

    reader, terminal = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [*COMMAND, "--epochs", "1", "--out", str(tmp_path)], env=environment, stdout=terminal
    ) as child:
        os.close(terminal)
        chunks = []
        while chunk := read(reader):
            chunks.append(chunk)
    os.close(reader)
    assert child.returncode == 0
    raw = b"".join(chunks).decode()
    assert raw.rfind("\x1b[?25h") > raw.rfind("\x1b[?25l") >= 0  # the cursor was hidden, and is shown again
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
    assert re.search(r"training ━+ 100%", shown), shown
    assert "--- epoch" not in shown
    shown = re.sub(r"training [^\r\n]*?\d:\d\d:\d\d|training [^\r\n]*?-:--:--|\r", "\n", shown)
    for name in ("Training loss", "Validation accuracy"):
        assert numbers(name, shown) == numbers(name, finished[0])[:1], shown


def read(terminal: int) -> bytes:
    """What the terminal shows next; nothing at its end, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
