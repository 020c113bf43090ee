from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from fabric_lite import Fabric, MissingStateError, State
from fabric_lite.callbacks.progress import ProgressPrinter
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def epoch(fabric: Fabric, learner: Any, phase: Any, steps: int) -> None:
    fabric.call("on_epoch_begin", learner=learner, phase=phase)
    for _ in range(steps):
        fabric.call("on_step_begin", learner=learner, phase=phase)
        fabric.call("on_step_end", learner=learner, phase=phase)
    fabric.call("on_epoch_end", learner=learner, phase=phase)


def with_recorder(printer: ProgressPrinter, **state: Any) -> tuple[Fabric, State]:
    return Fabric(accelerator="cpu", callbacks=[printer, Recorder()], guard="strict"), State(cbstate=State(), **state)


def test_lines_where_there_is_no_terminal() -> None:
    times = iter([0.0, 1.2, 2.0, 2.54, 3.0, 5.0])
    file = io.StringIO()
    fabric, learner = with_recorder(ProgressPrinter(file, clock=lambda: next(times)))
    epoch(fabric, learner, TRAIN, 23)
    epoch(fabric, learner, VALIDATION, 2)
    epoch(fabric, learner, TRAIN, 22)
    expected = [
        "Epoch 1 train: 23 steps, 1.2 s",
        "Epoch 1 validation: 2 steps, 0.5 s",
        "Epoch 2 train: 22 steps, 2.0 s",
    ]
    assert file.getvalue().splitlines() == expected


def test_standard_output_is_looked_up_when_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    fabric, learner = with_recorder(ProgressPrinter(clock=lambda: 0.0))
    epoch(fabric, learner, TRAIN, 1)
    assert capsys.readouterr().out == "Epoch 1 train: 1 steps, 0.0 s\n"


def test_other_processes_are_silent() -> None:
    file = Terminal()
    fabric, learner = with_recorder(ProgressPrinter(file), fabric=SimpleNamespace(is_global_zero=False))
    epoch(fabric, learner, TRAIN, 3)
    assert file.getvalue() == ""


def console(file: Terminal) -> Console:
    return Console(file=file, force_terminal=True, width=120, color_system=None, legacy_windows=False)


def test_a_bar_for_each_epoch() -> None:
    file = Terminal()
    fabric, learner = with_recorder(ProgressPrinter(console=console(file)), data={"train": range(3)})
    epoch(fabric, learner, TRAIN, 3)
    epoch(fabric, learner, VALIDATION, 2)
    epoch(fabric, learner, TRAIN, 2)  # one was cancelled
    written = file.getvalue()
    for title, count in [("Epoch 1 train", "3/3"), ("Epoch 1 validation", "2/2"), ("Epoch 2 train", "2/2")]:
        assert any(title in line and count in line for line in written.splitlines())
    assert written.count("\x1b[?25h") == written.count("\x1b[?25l") == 3  # the cursor is shown again


def test_an_epoch_within_an_epoch() -> None:
    file = Terminal()
    fabric, learner = with_recorder(ProgressPrinter(console=console(file)))
    fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
    epoch(fabric, learner, VALIDATION, 2)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    assert "Epoch 1 validation" in file.getvalue()
    assert file.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize("hook", ["on_exception", "on_fit_end"])
def test_the_bar_goes_when_the_epoch_does_not_end(hook: str) -> None:
    file = Terminal()
    before = threading.active_count()
    fabric, learner = with_recorder(ProgressPrinter(console=console(file)))
    fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
    assert threading.active_count() == before  # a thread would be in the way of dataloaders that fork
    fabric.call(hook, learner=learner)
    assert file.getvalue().endswith("\x1b[?25h")
    epoch(fabric, learner, TRAIN, 1)  # and it can go on


def test_a_terminal_gets_a_bar_and_without_rich_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    fabric, learner = with_recorder(ProgressPrinter(file))
    epoch(fabric, learner, TRAIN, 1)
    assert "\x1b[?25l" in file.getvalue()
    monkeypatch.setattr("fabric_lite.callbacks.progress.find_spec", lambda name: None)
    file = Terminal()
    fabric, learner = with_recorder(ProgressPrinter(file, clock=lambda: 0.0))
    epoch(fabric, learner, TRAIN, 1)
    epoch(fabric, learner, TRAIN, 1)
    assert file.getvalue().splitlines() == [
        'A progress bar needs the package rich: pip install "torch-fabric-lite[progress]".',
        "Epoch 1 train: 1 steps, 0.0 s",
        "Epoch 2 train: 1 steps, 0.0 s",
    ]


def test_rich_is_imported_when_it_is_used() -> None:
    import subprocess

    code = "import sys, fabric_lite.callbacks.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_in_a_learner() -> None:
    file = io.StringIO()
    data = [(torch.ones(2, 1), torch.zeros(2, 1))] * 3
    learner = Learner(
        torch.nn.Linear(1, 1),
        torch.nn.functional.mse_loss,
        data=(data,),
        callbacks=[ProgressPrinter(file, clock=lambda: 0.0), Recorder()],
        fabric=Fabric(accelerator="cpu", guard="strict"),
        usedefaultcallbacks=False,
    )
    learner.fit(2)
    assert file.getvalue().splitlines() == ["Epoch 1 train: 3 steps, 0.0 s", "Epoch 2 train: 3 steps, 0.0 s"]


def test_it_needs_the_recorder() -> None:
    with pytest.raises(MissingStateError, match=r"cbstate\.history"):
        Fabric(accelerator="cpu", callbacks=ProgressPrinter())


def test_the_bar_moves_at_most_ten_times_a_second() -> None:
    now = 0.0
    file = Terminal()
    fabric, learner = with_recorder(
        ProgressPrinter(console=console(file), clock=lambda: now), data={"train": range(99)}
    )
    fabric.call("on_epoch_begin", learner=learner, phase=TRAIN)
    for step in range(1, 51):
        now = step / 100
        fabric.call("on_step_begin", learner=learner, phase=TRAIN)
        fabric.call("on_step_end", learner=learner, phase=TRAIN)
    drawn = [count for count in range(1, 51) if f" {count}/99" in file.getvalue()]
    assert 4 <= len(drawn) <= 6
    fabric.call("on_exception", learner=learner)
