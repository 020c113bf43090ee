"""What every test leaves as it found it, and what no test may leave behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import hypothesis
import pytest
import torch

from fabric_lite.utilities.rank_zero import rank_zero_only

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")

# Names, or how they begin, of what a launcher or Fabric itself writes into the environment.
ENVIRONMENT = ("PL_", "LT_", "FABRIC_LITE_", "MASTER_", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}


def children() -> set[int | None]:
    """The ids of this process's children, without the helpers that multiprocessing keeps for good."""
    own = {process.pid for process in multiprocessing.active_children()}  # and collects those that have ended
    if not Path("/proc/self/stat").exists():
        return own
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()  # the usual answer, at the price of one system call
    found: set[int | None] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(parent) == os.getpid():
            found.add(int(stat.parent.name))
    helpers = (resource_tracker._resource_tracker, "_pid"), (forkserver._forkserver, "_forkserver_pid")
    return found - {getattr(helper, name, None) for helper, name in helpers}


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Puts back the global switches that Fabric sets on a user's behalf."""
    env, dtype, precision = environment(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    rank = rank_zero_only.rank
    yield
    for name in environment().keys() - env.keys():
        del os.environ[name]
    os.environ.update(env)
    torch.set_default_dtype(dtype)
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)
    rank_zero_only.rank = rank


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fails the test that leaves a thread or a child process behind."""
    threads, processes = set(threading.enumerate()), children()
    yield
    for collect in (False, True):  # what only a cycle keeps alive ends with it
        if collect:
            gc.collect()
        started = set(threading.enumerate()) - threads
        for thread in started:
            if thread.name == "QueueFeederThread":  # its queue is closed, and nobody waits for the thread
                thread.join(timeout=5)
        left = [*(thread for thread in started if thread.is_alive()), *(children() - processes)]
        if not left:
            return
    pytest.fail(f"the test left threads or child processes behind: {left}; close, join or wait for them in the test")
