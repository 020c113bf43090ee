"""Runs a function in several connected processes, fast enough for a unit test."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fabric_lite.plugins.environments.lightning import find_free_network_port
from fabric_lite.strategies.launchers import lifeline
from fabric_lite.strategies.launchers.workers import NotEnded, get_context, run_workers
from fabric_lite.utilities.rank_zero import rank_zero_only

T = TypeVar("T")

# Between a stack that is written and one that is read.
_MARGIN = 0.5


def run_distributed(fn: Callable[..., T], processes: int, *args: Any, timeout: float = 60.0, **kwargs: Any) -> list[T]:
    """Run a function in several processes that are connected through `torch.distributed`, and wait for them.

    In each of them the process group is there (gloo, on the CPU), and ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE`` are
    set, so ``Fabric(accelerator="cpu", devices=processes, strategy="ddp")`` made inside of the function joins: its
    ``launch()`` starts nothing. The other variables, the filters of warnings and ``sys.path`` are this process's:

        def total(value):
            fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
            fabric.launch()
            return fabric.all_reduce(torch.tensor(value + fabric.global_rank), reduce_op="sum").item()

        def test_total():
            assert run_distributed(total, 2, 10) == [21, 21]

    The first call takes as long as the import of torch, each further one some tenths of a second and what the function
    takes: a server that has everything imported forks the processes. None of these is left when it returns.

    Args:
        fn: The function, defined at the top of a module.
        processes: How many.
        *args: Its positional arguments, which have to pickle.
        timeout: How many seconds all of it may take.
        **kwargs: Its keyword arguments.

    Returns:
        What the function returned, by rank; tensors on the CPU.

    Raises:
        ValueError: If there is to be no process.
        TypeError: If the function or its arguments do not pickle.
        TimeoutError: If some did not end in time; the message names them, and where in the code they are.
        torch.multiprocessing.ProcessRaisedException: If the function raised; the message has the traceback of the rank
            that was the first.
        torch.multiprocessing.ProcessExitedException: If a process ended otherwise, for example by a signal.
    """
    if processes < 1:
        raise ValueError(f"`run_distributed({_name(fn)}, {processes})`: ask for at least one process.")
    try:
        payload = pickle.dumps((fn, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`run_distributed({_name(fn)}, ...)` cannot send the function or its arguments to other processes: {error}"
            " Define the function at the top of a module, and pass arguments that pickle."
        ) from error
    start_method = multiprocessing.get_start_method(allow_none=True)
    with tempfile.TemporaryDirectory(prefix="fabric-lite-") as folder:
        environment, filters = _environment(processes), list(warnings.filters)
        part = _Part(payload, _root_of(fn), processes, folder, timeout, environment, filters, start_method)
        try:
            return run_workers(get_context("forkserver"), part, processes, timeout=timeout + _MARGIN)
        except NotEnded as error:
            stacks = "\n".join(_stack(Path(folder), rank) for rank in error.ranks)
            raise TimeoutError(
                f"`run_distributed({_name(fn)}, {processes})`: after {timeout:g} s not ended: rank"
                f" {', '.join(map(str, error.ranks))}. Where they are:\n\n{stacks}"
            ) from None


@dataclass
class _Part:
    """What each process does.

    Attributes:
        payload: The function and its arguments, pickled.
        root: The folder from which the module of the function is imported, if there is one.
        processes: How many there are.
        folder: Where they find each other, and where they leave their stacks.
        timeout: How many seconds they have.
        environment: The variables.
        filters: Those of the warnings.
        start_method: How processes, such as workers of dataloaders, start; None for Python's default.
    """

    payload: bytes
    root: str | None
    processes: int
    folder: str
    timeout: float
    environment: dict[str, str]
    filters: list[Any]
    start_method: str | None

    def __call__(self, rank: int) -> Any:
        from fabric_lite.utilities.apply_func import move_data_to_device
        from fabric_lite.utilities.distributed import _destroy_dist_connection, _set_num_threads_if_needed

        multiprocessing.set_start_method(self.start_method, force=True)
        os.environ.clear()
        os.environ.update(self.environment, RANK=str(rank), LOCAL_RANK=str(rank))
        rank_zero_only.rank = rank
        warnings.filters[:] = self.filters  # type: ignore[index]
        warnings.simplefilter("default", append=True)  # the default anyway; Python notices that there are others now
        _set_num_threads_if_needed(self.processes)
        if self.root is not None and self.root not in sys.path:
            sys.path.append(self.root)
        with _stack_file(Path(self.folder), rank).open("w") as stacks:
            faulthandler.dump_traceback_later(self.timeout, file=stacks)
            fn, args, kwargs = pickle.loads(self.payload)
            store = torch.distributed.FileStore(  # type: ignore[attr-defined]
                f"{self.folder}/store", self.processes
            )
            torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=self.processes)
            torch.distributed.barrier()  # one that is through at once must not leave while another still connects
            result = fn(*args, **kwargs)
            _destroy_dist_connection()
            faulthandler.cancel_dump_traceback_later()
        return move_data_to_device(result, torch.device("cpu"))


def _environment(processes: int) -> dict[str, str]:
    """The variables of this process, and those by which processes know each other."""
    port = str(find_free_network_port())  # for a function that connects once more by itself
    found = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **found}


def _root_of(fn: Callable[..., Any]) -> str | None:
    """The folder that must be in `sys.path` for an import of the module of a function.

    Pytest's import mode "importlib" imports test modules without it.
    """
    name = getattr(fn, "__module__", None) or "__main__"
    file = getattr(sys.modules.get(name), "__file__", None)
    parts = name.split(".")
    if file is None or list(Path(file).with_suffix("").parts[-len(parts) :]) != parts:
        return None
    return str(Path(file).resolve().parents[len(parts) - 1])


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"stack of rank {rank}"


def _stack(folder: Path, rank: int) -> str:
    file = _stack_file(folder, rank)
    threads = file.read_text().split("\n\n") if file.exists() else []
    text = "\n\n".join(thread for thread in threads if lifeline.__file__ not in thread)
    return f"rank {rank}:\n{text or 'It had not got as far as the function.'}"


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", repr(fn))
