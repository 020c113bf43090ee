"""Runs the script again, once for each further device of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import override

from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.strategies.launchers.launcher import _Launcher
from fabric_lite.strategies.launchers.lifeline import end_with
from fabric_lite.strategies.launchers.watch import _Watch

# In the environment of the processes that are started here: the id of the one that started them.
_STARTER = "FABRIC_LITE_STARTED_BY"


class _SubprocessScriptLauncher(_Launcher):
    """Starts the script again for each further device of this machine; the process that does so is the first one.

    The others find their place in the environment: ``LOCAL_RANK``, ``NODE_RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and
    ``MASTER_PORT``. With several machines, the script is started on each of them. If one process fails, all of this
    machine end, and the exit code of the first is not 0; all end with the first.

    Args:
        cluster_environment: Knows where the processes meet, and whether somebody else starts them.
        num_processes: Processes on this machine.
        num_nodes: Number of machines.
    """

    def __init__(self, cluster_environment: ClusterEnvironment, num_processes: int, num_nodes: int) -> None:
        self.cluster_environment = cluster_environment
        self.num_processes = num_processes
        self.num_nodes = num_nodes
        self.procs: list[subprocess.Popen[bytes]] = []

    @property
    @override
    def is_interactive_compatible(self) -> bool:
        return False

    @override
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from fabric_lite.utilities.distributed import _set_num_threads_if_needed

        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        elif (starter := os.environ.pop(_STARTER, None)) is not None:
            end_with(int(starter))
        _set_num_threads_if_needed(self.num_processes)
        return function(*args, **kwargs)

    def _call_children_scripts(self) -> None:
        self._check_can_spawn_children()
        os.environ.update(
            MASTER_ADDR=self.cluster_environment.main_address,
            MASTER_PORT=str(self.cluster_environment.main_port),
            NODE_RANK=str(self.cluster_environment.node_rank()),
            LOCAL_RANK=str(self.cluster_environment.local_rank()),
            WORLD_SIZE=str(self.num_processes * self.num_nodes),
        )
        if self.num_processes == 1:
            return
        command = _command()
        watch = _Watch(self.procs)
        for local_rank in range(1, self.num_processes):
            environment = {**os.environ, "LOCAL_RANK": str(local_rank), _STARTER: str(os.getpid())}
            self.procs.append(subprocess.Popen(command, env=environment))
        watch.start()

    def _check_can_spawn_children(self) -> None:
        if self.procs:
            raise RuntimeError("The processes have been started already. Call `fabric.launch()` once.")
        if (local_rank := self.cluster_environment.local_rank()) != 0:
            raise RuntimeError(
                f"`{type(self.cluster_environment).__name__}` says that nobody has started the processes, and that this"
                f" one has the local rank {local_rank}: only the one with 0 starts the others. Let its"
                " `creates_processes_externally` be True if somebody has."
            )


def _command() -> Sequence[str]:
    """What runs this script again."""
    import __main__

    python = [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
    spec = getattr(__main__, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return [*python, "-m", spec.name, *sys.argv[1:]]
    # Of a folder or an archive that is run as a script, the file is inside of it.
    script = getattr(__main__, "__file__", None) if spec is None else sys.argv[0]
    if script is None:
        raise RuntimeError(
            'There is no script that could be run again for the other processes. Write it to a file, or `strategy="ddp_'
            'notebook"` with `fabric.launch(train)`.'
        )
    return [*python, os.path.abspath(script), *sys.argv[1:]]
