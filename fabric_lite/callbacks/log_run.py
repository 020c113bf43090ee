"""`LogRun`: what one wants to know of a run when it is over, or has been killed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
import weakref
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch

from fabric_lite.__about__ import __version__
from fabric_lite.callbacks.hook_profiler import HookProfiler
from fabric_lite.loggers.logger import _at_end
from fabric_lite.permissions import Callback, CallbackGraph, Read, StateAccess
from fabric_lite.utilities.cloud_io import _atomic_open, _files
from fabric_lite.utilities.logger import _convert_json_serializable, _flatten_dict, _sanitize_params
from fabric_lite.utilities.rank_zero import rank_zero_only
from fabric_lite.utilities.types import _PATH


class LogRun(Callback):
    """Writes ``log_run.json``, from which ``fabric-lite report`` makes a page: on the first process, always whole.

    In it are versions, devices, precision, strategy, commit and command line; the configuration; the callback graph;
    the times of a `HookProfiler`, if there is one among the callbacks; and when the run began and ended, and how.

    It is written when a module is set up, when fitting begins and ends, at the end of each epoch, at an exception and
    at the exit of the process, and else after an optimizer step; so that of a run that is killed, it is there. A loop
    need not call anything for it, beyond `Fabric.setup`. One that has none of these calls `write`.

    Reads ``fabric`` and ``stop_reason``, which the loop need not have.

    Args:
        folder: A path or fsspec URL; missing folders are made.
        config: What the run was started with: a mapping, a namespace or a dataclass, in any nesting.
        every: After an optimizer step it is written if the last time is this many seconds ago.

    Raises:
        TypeError: If ``config`` is something else.

    For example:

        fabric = Fabric(callbacks=[LogRun("runs/1", vars(args)), HookProfiler()], loggers=CSVLogger("runs/1"))
    """

    def __init__(self, folder: _PATH, config: Any = None, every: float = 30.0) -> None:
        self.path = os.path.join(os.fspath(folder), "log_run.json")
        self.config = _plain(config)
        self.every = every
        self._fabric: weakref.ref[Any] | None = None  # a Fabric that goes out of scope is gone at once
        self._record: dict[str, Any] = {}
        self._written = 0.0

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"fabric": Read(), "stop_reason": Read()}

    def init(self, learner: Any) -> None:
        """Get to know the Fabric.

        Args:
            learner: The learner.
        """
        self._meet(getattr(learner, "fabric", None))

    def on_after_setup(self, fabric: Any) -> None:
        """Get to know the Fabric, and write.

        Args:
            fabric: The Fabric.
        """
        self.write(fabric)

    def on_after_optimizer_step(self) -> None:
        """Write, if it is time."""
        if time.monotonic() - self._written >= self.every:
            self._write()

    def on_fit_begin(self, learner: Any = None) -> None:
        """Write; the run has not ended.

        Args:
            learner: The learner, if the loop has one.
        """
        self._write(ended=None, outcome=None)

    def on_epoch_end(self, learner: Any = None) -> None:
        """Write.

        Args:
            learner: The learner, if the loop has one.
        """
        self.write()

    on_train_epoch_end = on_validation_epoch_end = on_epoch_end  # what loops that have no phases call it

    def on_fit_end(self, learner: Any = None) -> None:
        """Write that the run has ended.

        Args:
            learner: The learner, if the loop has one.
        """
        self._write(ended=_now(), outcome=getattr(learner, "stop_reason", None) or "finished")

    def on_exception(self, exception: Any = None) -> None:
        """Write how the run has ended.

        Args:
            exception: What was raised.
        """
        how = "failed" if exception is None else f"{type(exception).__name__}: {exception}".removesuffix(": ")
        self._write(ended=_now(), outcome=how)

    def write(self, fabric: Any = None) -> None:
        """Write what is known.

        Args:
            fabric: The Fabric, if no hook has passed it yet.
        """
        self._meet(fabric)
        self._write()

    def _meet(self, fabric: Any) -> None:
        if fabric is not None:
            self._fabric = weakref.ref(fabric)

    def _write(self, **end: Any) -> None:
        if rank_zero_only.rank == 0:
            self._update()
            self._record.update(end)
            _save(self.path, self._record)
            self._written = time.monotonic()

    def _update(self) -> None:
        """Bring the record up to date."""
        if not self._record:
            self._record.update(started=_now(), ended=None, outcome=None)
            self._record.update(environment=_environment(), config=self.config)
            _at_end(self, partial(_finish, self.path, self._record))
        fabric = self._fabric() if self._fabric is not None else None
        if fabric is not None:
            self._record["environment"].update(_place(fabric))
            self._record["graph"] = _graph(fabric.callbacks.graph)
            profiler = fabric.callbacks.get(HookProfiler)
            self._record["timings"] = None if profiler is None else [found._asdict() for found in profiler.timings()]
        self._record["updated"] = _now()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fabric": None, "_record": {}}  # a copy has not seen anything yet


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as names and plain values, ``{"a": {"b": 1}}`` as ``{"a/b": 1}``."""
    if isinstance(config, Mapping):
        config = dict(config)
    elif config is None:
        config = {}
    elif isinstance(config, type) or not (isinstance(config, Namespace) or is_dataclass(config)):
        raise TypeError(
            f"`LogRun(config={config!r})`: pass a mapping, a namespace or a dataclass, such as"
            " `LogRun(folder, config=vars(args))`."
        )
    return _convert_json_serializable(_sanitize_params(_flatten_dict({"": config})))


def _environment() -> dict[str, Any]:
    """What is known of the process."""
    found = {
        "fabric_lite": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": shlex.join(sys.orig_argv),
        "working folder": os.getcwd(),
    }
    commit = _commit(os.path.dirname(os.path.abspath(sys.argv[0])) if sys.argv and sys.argv[0] else os.getcwd())
    return found if commit is None else {**found, "commit": commit}


def _commit(folder: str) -> str | None:
    """The commit that is checked out in a folder, marked if files differ from it; None if it has none."""
    command = ["git", "-C", folder, "describe", "--always", "--dirty=, with changes", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git; or files on a slow disk
        return None
    return done.stdout.strip() or None


def _place(fabric: Any) -> dict[str, Any]:
    """What is known of where and how a Fabric runs."""
    name = getattr(torch.get_device_module(fabric.device), "get_device_name", None)
    model = f" ({name(fabric.device)})" if callable(name) else ""
    return {
        "device": f"{fabric.device}{model}",
        "precision": str(fabric.strategy.precision.precision),
        "strategy": type(fabric.strategy).__name__,
        "processes": fabric.world_size,
    }


def _graph(graph: CallbackGraph) -> dict[str, Any]:
    """The callbacks in the order in which they run, and the edges by their places in it."""
    place = {index: rank for rank, index in enumerate(graph.indices)}
    return {
        "callbacks": [{"name": graph.labels[index], "guarded": index in graph.trees} for index in graph.indices],
        "edges": [{"before": place[a], "after": place[b], "reason": graph.reason(a, b)} for a, b in graph.pairs],
    }


def _finish(path: str, record: dict[str, Any]) -> None:
    """Write that the process has ended, or forgot about the run; unless the file has been removed meanwhile."""
    fs, file = _files(path)
    if record["ended"] is None and fs.isfile(file):
        record["ended"] = _now()
        _save(path, record)


def _save(path: str, record: dict[str, Any]) -> None:
    with _atomic_open(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
