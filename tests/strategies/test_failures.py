"""However one process fails: all are gone soon, it is seen from outside, and the reason comes first."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fabric_lite import Fabric
from fabric_lite.strategies import DDPStrategy

SCRIPT = Path(__file__).with_name("failing.py")
ROOT = SCRIPT.parents[2]
# What the contract grants, and how long a machine with much to do may need to get as far as the failure.
ALL_GONE, REACHED = 10.0, 120.0
# Ranks in whose place it makes a difference: the one that started the others, and another one.
BOTH = (0, 1)

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return fulfilled


class Run:
    """A run of the script, with all processes that have come of it, however they are related."""

    def __init__(self, folder: Path, start_method: str, what: str, rank: int = 0, others: str = "collective") -> None:
        self.folder = folder / uuid.uuid4().hex
        self.folder.mkdir()
        self.output = self.folder / "output"
        self.devices = 2
        self.command = [sys.executable, str(SCRIPT), start_method, what, str(rank), others, str(self.folder)]
        self.process: subprocess.Popen[bytes]

    def start(self, **environment: str) -> None:
        self.devices = int(environment.get("TEST_DEVICES", "2"))
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TEST_RUN": self.folder.name, **environment},
                start_new_session=True,
            )

    def left(self) -> list[int]:
        """The processes that have not ended."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"TEST_RUN={self.folder.name}\0".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is not ours
        return found

    def await_failure(self) -> None:
        reached = [self.folder / f"reached {rank}" for rank in range(self.devices)]
        assert until(lambda: all(file.exists() for file in reached), REACHED), self.text

    def check_all_gone(self) -> None:
        assert until(lambda: self.process.poll() is not None and not self.left(), ALL_GONE), (self.left(), self.text)
        assert self.process.returncode != 0, self.text
        (port,) = [int(file.name.split()[1]) for file in self.folder.glob("port *")]
        assert until(lambda: is_free(port), ALL_GONE), port

    @property
    def text(self) -> str:
        return self.output.read_text()

    def close(self) -> None:
        for process in self.left():
            os.kill(process, signal.SIGKILL)
        self.process.wait()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closing is not listening
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with ExitStack() as stack:

        def start(*args: object, environment: dict[str, str] | None = None) -> Run:
            run = Run(tmp_path, *args)
            run.start(**(environment or {}))
            stack.callback(run.close)
            return run

        yield start


def fail(start: Callable[..., Run], *cases: tuple[object, ...], **options: dict[str, str]) -> list[Run]:
    """Run the cases at the same time, and check what is the same for all of them."""
    runs = [start(*case, **options) for case in cases]
    for run in runs:
        run.await_failure()
    for run in runs:
        run.check_all_gone()
    return runs


def position(text: str, part: str) -> int:
    return text.find(part) if part in text else len(text)


# -- the script runs again --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("others", ["collective", "busy"])
def test_one_raises(start, others):
    for run in fail(start, *(("popen", "raise", rank, others) for rank in BOTH)):
        assert "ValueError: the first failure" in run.text
        assert position(run.text, "the first failure") < position(run.text, "Connection")
        assert run.process.returncode == 1


@pytest.mark.slow
def test_one_is_killed(start):
    launching, other = fail(start, ("popen", "kill", 0, "busy"), ("popen", "kill", 1, "busy"))
    assert launching.process.returncode == -signal.SIGKILL
    assert "was ended by SIGKILL; the others are ended, too." in other.text
    assert other.process.returncode == 1


@pytest.mark.slow
def test_one_exits(start):
    launching, other = fail(start, ("popen", "exit", 0, "busy"), ("popen", "exit", 1, "busy"))
    assert launching.process.returncode == 3
    assert "Traceback" not in launching.text
    assert "ended with exit code 3; the others are ended, too." in other.text


@pytest.mark.slow
def test_one_leaves_while_the_others_need_it(start):
    fail(start, *(("popen", "exit 0", rank, "collective") for rank in BOTH))


@pytest.mark.slow
def test_barriers_under_different_names(start):
    """Nobody fails: they wait for each other at different places."""
    (run,) = fail(start, ("popen", "barrier", 1), environment={"FABRIC_LITE_DEBUG": "1"})
    assert "`fabric.barrier('ours')` was reached on rank 0, `fabric.barrier('theirs')` on rank 1" in run.text


@pytest.mark.slow
def test_three_processes(start):
    (run,) = fail(start, ("popen", "raise", 2, "busy"), environment={"TEST_DEVICES": "3"})
    assert "ValueError: the first failure" in run.text
    assert run.text.count("Traceback") == 1


# -- the launching process is interrupted, or killed ----------------------------------------------------------------


@contextmanager
def waiting(start: Callable[..., Run], *cases: tuple[object, ...]) -> Iterator[list[Run]]:
    """Runs whose processes wait for something that does not come, to be ended in the block."""
    runs = [start(*case) for case in cases]
    for run in runs:
        run.await_failure()
    yield runs
    for run in runs:
        run.check_all_gone()


@pytest.mark.slow
def test_ctrl_c_while_the_script_runs_again(start):
    # The launching process sleeps, or is inside of a collective, of which Python cannot take it out.
    with waiting(start, ("popen", "wait", 0), ("popen", "wait", 1)) as (sleeping, in_collective):
        os.kill(sleeping.process.pid, signal.SIGINT)
        os.kill(in_collective.process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in sleeping.text
    assert "fabric-lite: Ctrl-C; the processes are ended." in in_collective.text
    assert "KeyboardInterrupt" in in_collective.text


@pytest.mark.slow
def test_ctrl_c_at_the_terminal(start):
    with waiting(start, ("popen", "wait", 1), ("fork", "wait", 1)) as runs:
        for run in runs:
            os.killpg(run.process.pid, signal.SIGINT)
    assert all("KeyboardInterrupt" in run.text for run in runs)


@pytest.mark.slow
def test_ctrl_c_while_a_function_runs_in_processes(start):
    with waiting(start, ("fork", "wait", 1)) as (run,):
        os.kill(run.process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in run.text
    assert "failed first" not in run.text


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("popen", "fork"), ("spawn",), ("forkserver",)], ids="-".join)
def test_the_launching_process_is_killed(start, methods):
    with waiting(start, *((method, "wait", 1) for method in methods)) as runs:
        for run in runs:
            run.process.kill()


# -- a function runs in processes, which this one waits for -------------------------------------------------------


def launch(
    start_method: str, function: Callable[..., object], *args: object, timeout: timedelta | None = None
) -> object:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(start_method=start_method, timeout=timeout))
    return fabric.launch(function, *args)


def fail_in_process(fabric: Fabric, what: str, rank: int) -> None:
    if fabric.global_rank == rank:
        if what == "raise":
            raise ValueError("the first failure")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(3 if what == "exit" else 0)
    fabric.barrier()
    fabric.barrier()


@pytest.mark.parametrize("rank", BOTH)
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_first_failure_is_raised(start_method, rank):
    with pytest.raises(
        ProcessRaisedException, match=rf"rank {rank} of 2 failed first(.|\n)*ValueError: the first fail"
    ):
        launch(start_method, fail_in_process, "raise", rank)
    with pytest.raises(ProcessExitedException, match=rf"rank {rank} of 2 \(process \d+\) was ended by SIGKILL") as info:
        launch(start_method, fail_in_process, "kill", rank)
    assert (info.value.error_index, info.value.signal_name) == (rank, "SIGKILL")
    with pytest.raises(ProcessRaisedException, match=rf"rank {rank} of 2 failed first(.|\n)*SystemExit: 3"):
        launch(start_method, fail_in_process, "exit", rank)
    with pytest.raises(ProcessRaisedException, match=f"rank {1 - rank} of 2 failed first(.|\n)*Connection"):
        launch(start_method, fail_in_process, "exit 0", rank)


def fail_together(fabric: Fabric) -> None:
    total = fabric.all_reduce(torch.ones(1), reduce_op="sum")
    raise ValueError(f"{total.item():g} processes")


def test_one_of_several_failures_is_raised():
    with pytest.raises(ProcessRaisedException, match="ValueError: 2 processes"):
        launch("fork", fail_together)


def wait_for_nobody(fabric: Fabric) -> None:
    fabric.barrier("everybody")
    if fabric.global_rank == 0:
        time.sleep(600)
    fabric.barrier("who does not come")


def test_waiting_ends_at_the_timeout():
    begin = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=r"rank 1 of 2 failed first(.|\n)*[Tt]imed out"):
        launch("fork", wait_for_nobody, timeout=timedelta(seconds=2))
    assert time.monotonic() - begin < 2 + ALL_GONE
