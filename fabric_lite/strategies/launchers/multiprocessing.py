"""Runs a function in processes that it starts; this one waits for them and takes part in nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from typing_extensions import Self, override

from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.strategies.launchers.launcher import _Launcher
from fabric_lite.strategies.launchers.workers import get_context, run_workers
from fabric_lite.utilities.seed import _collect_rng_states, _set_rng_states


class _Strategy(Protocol):
    """What the launcher needs of a strategy."""

    cluster_environment: ClusterEnvironment | None

    @property
    def num_processes(self) -> int: ...


class _MultiProcessingLauncher(_Launcher):
    """Runs a function in one new process for each device of this machine.

    The first failure is raised here, with the traceback of the process; the others are ended. All of them end with
    this process.

    Args:
        strategy: Says how many processes there are, and where they meet.
        start_method: How they start. ``"spawn"`` and ``"forkserver"`` need a function and arguments that pickle, and a
            script whose beginning is guarded by ``if __name__ == "__main__"``; ``"fork"`` needs neither, and works in
            notebooks, but only if no device was used before.

    Raises:
        ValueError: If this machine does not have the start method.
    """

    requires_function = True

    def __init__(self, strategy: _Strategy, start_method: Literal["spawn", "fork", "forkserver"] = "spawn") -> None:
        methods = multiprocessing.get_all_start_methods()
        if start_method not in methods:
            raise ValueError(
                f"This machine cannot start processes by {start_method!r}. Write `start_method=` one of"
                f" {', '.join(map(repr, methods))}."
            )
        if strategy.cluster_environment is None:
            raise RuntimeError(
                f"`{type(strategy).__name__}` has no cluster environment yet: `Fabric(strategy=...)` gives one."
            )
        # Not the strategy itself, which has this launcher: a `Fabric` that nobody needs any more is gone at once.
        self._cluster_environment = strategy.cluster_environment
        self._num_processes = strategy.num_processes
        self._start_method = start_method

    @property
    @override
    def is_interactive_compatible(self) -> bool:
        return self._start_method == "fork"

    @override
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._cluster_environment.creates_processes_externally:
            return function(*args, **kwargs)
        if self._start_method == "fork":
            _refuse_used_device()
        else:
            _refuse_missing_guard(self._start_method)
        job = _Job(
            function=function,
            args=args,
            kwargs=kwargs,
            num_processes=self._num_processes,
            environment={
                **os.environ,
                "MASTER_ADDR": self._cluster_environment.main_address,
                # Where no port was given, one is found now: all of the processes have to use the same.
                "MASTER_PORT": str(self._cluster_environment.main_port),
            },
            global_state=_GlobalStateSnapshot.capture(include_cuda=self._start_method != "fork"),
            is_forked=self._start_method == "fork",
        )
        return run_workers(get_context(self._start_method), job, self._num_processes)[0]


@dataclass
class _Job:
    """What each process does.

    Attributes:
        function: What was launched.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        num_processes: How many share this machine.
        environment: The variables of the launching process, which a fork server does not know.
        global_state: The switches and generators of the launching process. Even a forked process does not have them
            all: Python seeds its generator anew in it.
        is_forked: Whether function and arguments are inherited, not sent.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_processes: int
    environment: dict[str, str]
    global_state: _GlobalStateSnapshot
    is_forked: bool

    def __call__(self, rank: int) -> Any:
        from fabric_lite.utilities.apply_func import move_data_to_device
        from fabric_lite.utilities.distributed import _destroy_dist_connection, _set_num_threads_if_needed

        os.environ.clear()
        os.environ.update(self.environment, LOCAL_RANK=str(rank))
        self.global_state.restore()
        args, kwargs = (self.args, self.kwargs) if self.is_forked else _unshared((self.args, self.kwargs))
        if self.is_forked and "OMP_NUM_THREADS" not in os.environ:
            # The threads of the launching process are not there, and OpenMP would wait for them forever.
            torch.set_num_threads(1)
            os.environ["OMP_NUM_THREADS"] = "1"
        _set_num_threads_if_needed(self.num_processes)
        result = self.function(*args, **kwargs)
        _destroy_dist_connection()
        return move_data_to_device(result, torch.device("cpu")) if rank == 0 else None


@dataclass
class _GlobalStateSnapshot:
    """What a fresh process does not know of the one that started it: the switches of torch, random numbers.

    Attributes:
        use_deterministic_algorithms: Whether `torch.use_deterministic_algorithms` is on.
        use_deterministic_algorithms_warn_only: Whether it warns only.
        cudnn_benchmark: Whether cuDNN chooses its algorithms by trying.
        float32_matmul_precision: Of `torch.set_float32_matmul_precision`.
        default_dtype: Of `torch.set_default_dtype`.
        rng_states: Of Python, NumPy and torch.
    """

    use_deterministic_algorithms: bool
    use_deterministic_algorithms_warn_only: bool
    cudnn_benchmark: bool
    float32_matmul_precision: str
    default_dtype: torch.dtype
    rng_states: dict[str, Any]

    @classmethod
    def capture(cls, include_cuda: bool = True) -> Self:
        """Take it from this process.

        Args:
            include_cuda: Whether to take the generators of CUDA, too, which initializes it.
        """
        deterministic, warn_only = _determinism()
        return cls(
            use_deterministic_algorithms=deterministic,
            use_deterministic_algorithms_warn_only=warn_only,
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            float32_matmul_precision=torch.get_float32_matmul_precision(),
            default_dtype=torch.get_default_dtype(),
            rng_states=_collect_rng_states(include_cuda),
        )

    def restore(self) -> None:
        """Set this process up in the same way."""
        deterministic, warn_only = self.use_deterministic_algorithms, self.use_deterministic_algorithms_warn_only
        if (deterministic, warn_only) != _determinism():  # setting it imports the compiler, which takes long
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.set_float32_matmul_precision(self.float32_matmul_precision)
        torch.set_default_dtype(self.default_dtype)
        _set_rng_states(self.rng_states)


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _unshared(data: Any) -> Any:
    """The same, its modules with memory of their own.

    Tensors that are sent to a process keep their memory, so all processes would train one and the same module.
    """
    from lightning_utilities.core.apply_func import apply_to_collection

    def own_memory(module: nn.Module) -> nn.Module:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
        return module

    return apply_to_collection(data, nn.Module, own_memory)


def _refuse_used_device() -> None:
    """Raise if a forked process could not use the device."""
    current = torch.accelerator.current_accelerator()
    for name in dict.fromkeys(("cuda", current.type if current is not None else "cuda")):
        module = torch.get_device_module(name)
        # The latter answers for a process that was itself forked from one that had used the device.
        questions = (getattr(module, question, None) for question in ("is_initialized", "_is_in_bad_fork"))
        if any(question is not None and question() for question in questions):
            raise RuntimeError(
                f"Processes cannot be forked after the device {name!r} was used, and something before `launch` used"
                " it: a tensor, a module or a query on the device. Move it into the launched function (in a notebook,"
                ' restart the kernel first), or write `strategy="ddp_spawn"`.'
            )


def _refuse_missing_guard(start_method: str) -> None:
    """Raise in a process that is just starting, and whose import of the script would start processes again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"Processes that are started by {start_method!r} import your script, and at its import it launches"
            ' processes again. Put what it does under `if __name__ == "__main__":`, or write `strategy="ddp"`.'
        )
