"""Starting ``fabric-lite run``, and making sure that nothing of it outlives a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# What the processes inherit only if a test says so.
UNWANTED = ("LT_", "OMP_", "PET_", "PL_", "TORCHELASTIC_", "MASTER_", "SLURM_", "PYTHON", "RANK", "LOCAL_RANK", "WORLD")


class Command:
    """A running command line, with all the processes that come of it: they inherit a variable of its own."""

    def __init__(
        self, arguments: Sequence[object], folder: Path, prefix: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> None:
        self.mark = f"FABRIC_LITE_TEST_RUN={uuid.uuid4().hex}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)}
        self.output, self.errors = (folder / f"{self.mark}.{stream}" for stream in ("out", "err"))
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "fabric_lite", *map(str, arguments)],
                cwd=folder,
                env={
                    **clean,
                    "PYTHONPATH": str(ROOT),
                    "TMPDIR": str(folder),
                    **(env or {}),
                    **dict([self.mark.split("=")]),
                },
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self.output.read_text()

    @property
    def err(self) -> str:
        return self.errors.read_text()

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end; returns the exit status."""
        return self.process.wait(seconds)

    def until(self, holds: Callable[[], object], seconds: float = 60) -> None:
        """Look until something holds, while it runs."""
        deadline = time.monotonic() + seconds
        while not holds():
            going_on = self.process.poll() is None and time.monotonic() < deadline
            assert going_on, f"{self.out}\n{self.err}"
            time.sleep(0.02)

    def gone(self, seconds: float = 10) -> bool:
        """Look until none of its processes runs."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.alive()

    def alive(self) -> list[int]:
        """The ids of those of its processes that run."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environ.read_bytes():  # of one that has ended, it is empty
                    found.append(int(environ.parent.name))
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
        return found

    def end(self) -> None:
        while left := self.alive():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts ``fabric-lite`` with arguments, in a folder of its own; all its processes end with the test."""
    started: list[Command] = []

    def start(*arguments: object, **kwargs: Any) -> Command:
        started.append(Command(arguments, tmp_path, **kwargs))
        return started[-1]

    yield start
    for command in started:
        command.end()
