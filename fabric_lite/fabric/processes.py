"""The part of `Fabric` that knows the processes of a run: starting them, telling them apart, speaking to them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from fabric_lite.accelerators import Accelerator
from fabric_lite.connector import Plan, _is_using_cli
from fabric_lite.strategies import Strategy
from fabric_lite.strategies.strategy import TBroadcast
from fabric_lite.utilities.apply_func import apply_to_tensors, convert_to_tensors
from fabric_lite.utilities.types import ReduceOp


def _nothing() -> None:
    """What `launch` runs if there is no function."""


class _Processes:
    """Runs in each process of a plan.

    Args:
        plan: What the run consists of.
    """

    def __init__(self, plan: Plan) -> None:
        self._connector = plan
        self._accelerator = plan.accelerator
        self._strategy = plan.strategy
        self._precision = plan.precision
        self._launched = False
        # Asked now: whoever starts processes of this machine leaves the same variables that are asked for here.
        self._joins = _is_using_cli() or plan.cluster_environment.creates_processes_externally
        self._environment_ready = False
        self._inside_run = False
        if _is_using_cli():
            if type(self).run is not _Processes.run:
                raise TypeError(
                    f"`{type(self).__name__}.run()` starts the processes, but the command line has started them"
                    " already. Run the script with `python`, or call what `run` does directly."
                )
            _end_with_the_command_line()
            self._setup_environment()
            self._launched = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.run is not _Processes.run and not hasattr(cls.run, "launches"):  # also where a mixin brings it
            cls.run = _launching(cls.run)  # type: ignore[method-assign]

    # -- starting them -------------------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Override this with your training, and call it: it runs in all processes.

        Args:
            *args: Whatever it takes.
            **kwargs: Whatever it takes.

        Returns:
            What the overriding method returned in the process with rank 0.
        """

    def launch(self, function: Callable[..., Any] = _nothing, *args: Any, **kwargs: Any) -> Any:
        """Start the other processes of the run, or join them if they were started from outside.

        Args:
            function: What to run in all processes; it gets this object first. Without it, the processes go on with
                the script from here; strategies that spawn processes need it.
            *args: Its further arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returned in the process with rank 0.

        Raises:
            TypeError: If it is not a function of at least one argument, or is missing where it is needed.
            RuntimeError: If this process has launched already, and did not just join.
        """
        launcher = self._strategy.launcher
        if launcher is not None and self._launched and not self._joins:
            raise RuntimeError(
                "`fabric.launch()` was called a second time, but the processes of"
                f" `{type(self._strategy).__name__}` are running already. Remove this call: what comes after the first"
                " one, or in its function, runs in all of them."
            )
        if function is _nothing:
            if launcher is not None and launcher.requires_function:
                raise TypeError(
                    f"`{type(self._strategy).__name__}` starts processes that need something to run. Write"
                    " `fabric.launch(train)`, with `train(fabric)` a function."
                )
            return self._launch(_nothing)
        if not callable(function):
            raise TypeError(f"`fabric.launch({function!r})`: pass the function, `launch(train)`, not its result.")
        if not inspect.signature(function).parameters:
            name = getattr(function, "__name__", repr(function))
            raise TypeError(f"`fabric.launch({name})` passes the Fabric to it. Write `def {name}(fabric): ...`.")
        return self._launch(function, self, *args, **kwargs)

    def _launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        launcher = None if self._launched else self._strategy.launcher
        if launcher is not None:
            return launcher.launch(self._in_process, function, *args, **kwargs)
        return self._in_process(function, *args, **kwargs)

    def _in_process(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._setup_environment()
        self._launched = True
        return function(*args, **kwargs)

    def _setup_environment(self) -> None:
        if not self._environment_ready:
            self._strategy.setup_environment()
            self._environment_ready = True

    def _enter_run(self, *args: Any, **kwargs: Any) -> Any:
        self._inside_run = True
        try:
            return self.run(*args, **kwargs)
        finally:
            self._environment_ready = False
        self._inside_run = False

    def _validate_launched(self) -> None:
        if not self._launched and self._strategy.requires_launch:
            raise RuntimeError(
                f"`{type(self._strategy).__name__}` runs in several processes, and nothing has started them. Call"
                " `fabric.launch()` right after `Fabric(...)`, or start the script with `fabric-lite run`."
            )

    # -- telling them apart --------------------------------------------------------------------------------------

    @property
    def accelerator(self) -> Accelerator:
        """The hardware."""
        return self._accelerator

    @property
    def strategy(self) -> Strategy:
        """How the work is spread over devices and processes."""
        return self._strategy

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._strategy.root_device

    @property
    def global_rank(self) -> int:
        """Index of this process among all."""
        return self._strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Index of this process among those on the same machine."""
        return self._strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return self._strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes on all machines together."""
        return self._strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process of all."""
        return self._strategy.is_global_zero

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print in the first process of each machine only.

        Args:
            *args: As for the built-in function.
            **kwargs: As for the built-in function.
        """
        if self.local_rank == 0:
            print(*args, **kwargs)

    # -- speaking to them ----------------------------------------------------------------------------------------

    def barrier(self, name: str | None = None) -> None:
        """Wait until all processes are here. All of them have to call it.

        Args:
            name: Of the place in the program.
        """
        self._validate_launched()
        self._strategy.barrier(name=name)

    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        """Send an object from one process to all. All of them have to call it.

        Args:
            obj: Anything that pickles; tensors are fastest.
            src: Rank of the process that sends.

        Returns:
            The sender's object, in each process.
        """
        self._validate_launched()
        return self._strategy.broadcast(obj, src=src)

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Collect tensors from all processes. All of them have to call it, with the same shapes.

        Args:
            data: A number, a tensor of shape (...), or any nesting of them.
            group: The processes; by default all.
            sync_grads: Whether gradients flow back through it.

        Returns:
            The same nesting of tensors of shape (world_size, ...); on one process, of shape (...).
        """
        return self._for_each_tensor(data, self._strategy.all_gather, group=group, sync_grads=sync_grads)

    def all_reduce(self, data: Any, group: Any | None = None, reduce_op: ReduceOp | str | None = "mean") -> Any:
        """Combine tensors of all processes. All of them have to call it, with the same shapes.

        Args:
            data: A number, a tensor, or any nesting of them. Tensors are changed in place.
            group: The processes; by default all.
            reduce_op: How: ``"mean"``, ``"sum"``, or any operation of `torch.distributed`.

        Returns:
            The same nesting of tensors of the same shapes.
        """
        return self._for_each_tensor(data, self._strategy.all_reduce, group=group, reduce_op=reduce_op)

    def _for_each_tensor(self, data: Any, function: Callable[..., Any], **kwargs: Any) -> Any:
        self._validate_launched()
        tensors = convert_to_tensors(data, device=self.device)
        return apply_to_tensors(tensors, lambda tensor: function(tensor, **kwargs))

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """Under it, the first process runs the block alone, and then the others, all at once.

        Args:
            local: Whether each machine has a first process, as for a download to a disk of its own.

        Raises:
            RuntimeError: If another process failed in the block: those that waited for it do not run it.
        """
        from fabric_lite.utilities.distributed import _InfiniteBarrier

        first = (self.local_rank if local else self.global_rank) == 0
        with _InfiniteBarrier() as barrier:
            if not first:
                barrier()
            yield
            if first:
                barrier()


def _end_with_the_command_line() -> None:
    """Let this process end when the one that ``fabric-lite run`` started has ended, a SIGKILL included."""
    from fabric_lite.strategies.launchers.lifeline import end_with
    from fabric_lite.strategies.launchers.subprocess_script import _STARTER

    if (starter := os.environ.pop(_STARTER, None)) is not None:
        end_with(int(starter))


def _launching(run: Callable[..., Any]) -> Callable[..., Any]:
    """The ``run`` of a subclass, which first starts the processes."""

    @wraps(run)
    def launched(self: _Processes, *args: Any, **kwargs: Any) -> Any:
        if self._inside_run:  # in the processes already, or called by the `run` of a subclass
            return run(self, *args, **kwargs)
        return self._launch(self._enter_run, *args, **kwargs)

    launched.launches = True  # type: ignore[attr-defined]
    return launched
