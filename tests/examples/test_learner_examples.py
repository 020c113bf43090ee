"""The examples of `Learner` and of callbacks in any loop, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One thread: many would wait for each other where the tests of others run on the same cores.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def run(name: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *args]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def number(name: str, output: str) -> float:
    found = re.search(rf"^{name}: (\d+(\.\d+)?)\b", output, re.MULTILINE)
    assert found is not None, output
    return float(found[1])


def test_digits_with_a_learner() -> None:
    output = run("digits_learner.py", "--accelerator", "cpu", "--precision", "bf16-mixed")
    assert number("validation accuracy", output) > 0.97
    assert number("epochs", output) <= 12


def test_a_hand_written_loop_with_the_same_callbacks() -> None:
    output = run("handwritten_loop.py", "--accelerator", "cpu")
    table = re.findall(r"^ +(train|validation) +(\d+) +([\d.e-]+) +([\d.]+)$", output, re.MULTILINE)
    epochs = len(table) // 2
    assert [(phase, int(epoch)) for phase, epoch, _, _ in table] == [
        (phase, epoch) for epoch in range(1, epochs + 1) for phase in ("train", "validation")
    ]
    assert number("validation accuracy", output) == pytest.approx(float(table[-1][3]), abs=1e-3)
    assert number("validation accuracy", output) > 0.95
    assert float(table[-2][2]) < 0.1 < float(table[0][2])
    assert number("steps", output) == 45 * epochs


def test_two_networks_and_a_custom_phase() -> None:
    output = run("gan_digits.py", "--accelerator", "cpu")
    printed = re.findall(r"^epoch (\d+): reconstruction ([\d.]+), critic ([\d.]+)$", output, re.MULTILINE)
    assert [int(epoch) for epoch, _, _ in printed] == [10, 20, 30, 40]
    error, variance = re.findall(r"^reconstruction error: ([\d.]+), variance ([\d.]+)$", output, re.MULTILINE)[0]
    assert float(error) < float(variance) / 1.5
    assert abs(float(printed[-1][2]) - 0.693) < 0.15, "the critic can tell the codes apart"
    assert number("kinds of digits drawn", output) >= 9
    mixed = number("distance of mixed-up pixels to the nearest digit", output)
    assert number("distance of a drawing to the nearest digit", output) < 0.8 * mixed


OWN_CALLBACK = [
    r"--- 1\. .*\n(Hello, World!\n){3}",
    r"--- 2\. .*\nProtectedException: Read access to Learner\.step\.loss disallowed\. LossPrinter read it"
    r' in on_step_end; .*\n    "step\.loss": Read\(\),\n',
    r"--- 3\. .*\n(Step loss: \d\.\d{4}\n){3}",
    r"--- 4\. .*\nMissingStateError: Printer reads cbstate\.history, which no callback writes; add Recorder\(\),.*\n",
    r"--- 5\. .*\nStep 1 loss: (\S+)\nStep 2 loss: (\S+)\nStep 1 loss: \S+\n",
    r"--- 6\. .*\nStep 1 loss: (\S+)\nStep 2 loss: (\S+)\n",
    r"--- 7\. .*\n(Step .*\n){3}The callbacks run in this order:\n +1\. Recorder .*\n +2\. Printer .*\n"
    r" +after Recorder: Recorder creates cbstate\.history, which Printer reads\n",
]


def test_a_callback_of_ones_own_and_the_errors_on_the_way() -> None:
    output = run("own_callback.py")
    found = re.fullmatch("".join(f"(?P<part{i}>{part})" for i, part in enumerate(OWN_CALLBACK)), output)
    assert found is not None, output
    in_training = re.findall(r"Step \d loss: .*\n", found["part4"])[:2]
    assert re.findall(r"Step \d loss: .*\n", found["part5"]) == in_training
