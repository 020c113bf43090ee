"""``fabric-lite run``: a script in several processes, started and watched by ``torchrun``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from fabric_lite.cli._errors import CommandError
from fabric_lite.cli._target import _files, _near
from fabric_lite.connector import _check_strategy, _choose_devices
from fabric_lite.plugins.precision.precision import _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS
from fabric_lite.strategies.launchers.subprocess_script import _STARTER
from fabric_lite.utilities.distributed import _suggested_max_num_threads
from fabric_lite.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_PRECISIONS = (*get_args(_PRECISION_INPUT_STR), *get_args(_PRECISION_INPUT_STR_ALIAS))
_ADDRESS, _PORT = "127.0.0.1", 29400
_USAGE = "fabric-lite run [options] script.py [arguments of the script]"


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        usage=_USAGE,
        allow_abbrev=False,
        help="run a script in several processes, on one machine or many",
        description="Runs a script with a Fabric in several processes: torchrun, with Fabric's arguments.",
        epilog="The options of Fabric and of restarts may stand after the script, too. What stands after `--` is the"
        " script's in any case. The exit status is 1 if a process failed, and 128 + n if signal n ended the run.",
    )
    parser.add_argument("command_line", nargs=argparse.REMAINDER, metavar="script.py", help="and its arguments")
    _add_options(parser)
    form = parser.add_argument_group("what runs, and where its output goes (before the script)")
    form.add_argument("-m", "--module", action="store_true", help="the script is a module, as in `python -m`")
    form.add_argument("--local-addr", "--local_addr", metavar="HOST", help="the address of this machine for the others")
    form.add_argument("--log-dir", "--log_dir", metavar="FOLDER", help="for the files of --redirects and --tee")
    form.add_argument("-r", "--redirects", metavar="WHAT", help="write output to files: 1 stdout, 2 stderr, 3 both")
    form.add_argument("-t", "--tee", metavar="WHAT", help="write output to files, and show it; as for --redirects")
    form.add_argument(
        "--local-ranks-filter", "--local_ranks_filter", metavar="RANKS", help="show the output of these, such as 0,1"
    )
    parser.set_defaults(run=run, parser=parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Those that are also found after the script, as Lightning Fabric's command line finds its own."""
    fabric = parser.add_argument_group("arguments of Fabric")
    fabric.add_argument("--accelerator", metavar="NAME", help="the hardware: cpu, gpu, cuda, mps, auto, ...")
    fabric.add_argument("--strategy", type=_strategy, metavar="NAME", help="ddp, fsdp, auto, ...")
    fabric.add_argument(
        "--devices", default="1", metavar="N", help="how many per machine, which ones (0,2), -1 or auto; default 1"
    )
    fabric.add_argument(
        "--num-nodes",
        "--num_nodes",
        type=_num_nodes,
        default=(1, 1),
        metavar="N",
        help="how many machines, or MIN:MAX if they may come and go; default 1",
    )
    fabric.add_argument(
        "--node-rank", "--node_rank", type=int, metavar="N", help="which machine this is, from 0; default 0"
    )
    fabric.add_argument(
        "--main-address", "--main_address", metavar="HOST", help=f"of machine 0, where all meet; default {_ADDRESS}"
    )
    fabric.add_argument(
        "--main-port",
        "--main_port",
        type=int,
        metavar="PORT",
        help=f"on machine 0; default a free one for one machine, {_PORT} for several",
    )
    fabric.add_argument("--precision", choices=_PRECISIONS, metavar="NAME", help="32-true, bf16-mixed, ...")
    elastic = parser.add_argument_group("restarts and rendezvous, as in torchrun")
    elastic.add_argument(
        "--max-restarts", "--max_restarts", metavar="N", type=int, help="start over up to N times; default 0"
    )
    elastic.add_argument(
        "--monitor-interval", "--monitor_interval", metavar="S", type=float, help="look every S seconds; default 0.1"
    )
    elastic.add_argument(
        "--rdzv-backend", "--rdzv_backend", metavar="NAME", help="static, or c10d (default if machines may start over)"
    )
    elastic.add_argument(
        "--rdzv-endpoint", "--rdzv_endpoint", metavar="HOST:PORT", help="default: --main-address and --main-port"
    )
    elastic.add_argument("--rdzv-id", "--rdzv_id", metavar="ID", help="of the job, where several share an endpoint")
    elastic.add_argument("--rdzv-conf", "--rdzv_conf", metavar="KEY=VALUE,...", help="further settings")


def run(arguments: argparse.Namespace) -> int:
    """Check everything, and start the processes.

    Returns:
        0 if all have ended well, 1 if one failed, 128 + n if signal n ended the run.

    Raises:
        CommandError: If they cannot be started as asked for.
    """
    if not arguments.command_line:
        arguments.parser.error("name a script: fabric-lite run [options] script.py")
    script, *rest = arguments.command_line
    own = _take_options(arguments, rest)
    _check_script(script, arguments.module)
    processes = _num_processes(arguments.accelerator, arguments.devices)
    options = [f"--nproc-per-node={processes}", *_torchrun_options(arguments), script]
    _set_env_variables(arguments)
    # Without it, torchrun allows each process one thread, with a warning of five lines.
    os.environ.setdefault("OMP_NUM_THREADS", str(_suggested_max_num_threads(processes)))
    if _may_start_over(arguments):
        # Else all attempts share a store, in which a process may find the addresses of those that are gone.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if arguments.log_dir is not None:
        return _launch(options, own, arguments.log_dir)
    with TemporaryDirectory(prefix="fabric-lite-") as folder:  # torchrun would leave one behind
        return _launch(options, own, folder)


def _take_options(arguments: argparse.Namespace, rest: list[str]) -> list[str]:
    """Move the options that stand after the script into the arguments; what remains is the script's."""
    end = rest.index("--") if "--" in rest else len(rest)
    parser = argparse.ArgumentParser(prog="fabric-lite run", usage=_USAGE, add_help=False, allow_abbrev=False)
    _add_options(parser)
    _, own = parser.parse_known_args(rest[:end], arguments)
    return [*own, *rest[end + 1 :]]


def _strategy(name: str) -> str:
    """A strategy that can join processes."""
    try:
        _check_strategy(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if re.search("spawn|fork|notebook", name):
        raise argparse.ArgumentTypeError(
            f"{name!r} starts processes itself, and `fabric-lite run` has started them already; write"
            f" {name.partition('_')[0]!r}, or run the script with `python`."
        )
    return name


def _num_nodes(text: str) -> tuple[int, int]:
    """The least and the largest number of machines."""
    low, _, high = text.partition(":")
    if not low.isdecimal() or not (high or low).isdecimal() or not 0 < int(low) <= int(high or low):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of machines; write 2, or 1:4 if they may come and go.")
    return int(low), int(high or low)


def _check_script(script: str, is_module: bool) -> None:
    if is_module:
        if PathFinder.find_spec(script.partition(".")[0], ["", *sys.path]) is None:
            raise CommandError(f"there is no module {script!r}; without -m it would be a file.")
    elif not Path(script).exists():
        path = Path(script)
        near = _near(path.name, _files(path.parent))
        raise CommandError(f"there is no file {script!r}{near}")


def _num_processes(accelerator: str | None, devices: str) -> int:
    """How many processes this machine runs: one for each device."""
    try:
        return len(_choose_devices(accelerator or "auto", devices, "auto")[1])
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        chosen = f"--accelerator {accelerator} " if accelerator else ""
        raise CommandError(f"{chosen}--devices {devices}: {error}") from error


def _torchrun_options(arguments: argparse.Namespace) -> Iterator[str]:
    """All but the number of processes, in the words of torchrun."""
    least, most = arguments.num_nodes
    rank = arguments.node_rank
    if rank is not None and not 0 <= rank < most:
        raise CommandError(f"--node-rank {rank}: with --num-nodes {most} it is a number from 0 to {most - 1}.")
    yield f"--nnodes={least}:{most}"
    yield from _meeting_point(arguments)
    names = ["max_restarts", "monitor_interval", "rdzv_id", "redirects", "tee", "local_ranks_filter", "local_addr"]
    yield from (
        f"--{name.replace('_', '-')}={getattr(arguments, name)}"
        for name in names
        if getattr(arguments, name) is not None
    )
    if arguments.module:
        yield "--module"


def _may_start_over(arguments: argparse.Namespace) -> bool:
    """Whether the same run may have more than one group of processes, one after the other."""
    least, most = arguments.num_nodes
    return bool(arguments.max_restarts) or least < most


def _meeting_point(arguments: argparse.Namespace) -> Iterator[str]:
    """Where the machines meet."""
    address, port, endpoint = arguments.main_address, arguments.main_port, arguments.rdzv_endpoint
    several = arguments.num_nodes != (1, 1)
    # With static, a machine does not learn that another one starts over.
    backend = arguments.rdzv_backend or ("c10d" if endpoint or (several and _may_start_over(arguments)) else None)
    if (address, port, backend, several) == (None, None, None, False):
        yield "--standalone"  # finds a free port
        yield f"--local-addr={_ADDRESS}"  # the machine's name need not resolve
        return
    configuration = [arguments.rdzv_conf] if arguments.rdzv_conf else []
    if backend in (None, "static"):
        yield from (f"--master-addr={address or _ADDRESS}", f"--master-port={port or _PORT}")
        yield f"--node-rank={arguments.node_rank or 0}"
    else:
        if backend == "c10d" and arguments.node_rank is not None and "is_host=" not in (arguments.rdzv_conf or ""):
            # Else the machine finds out by its name, which not every machine has in its address book.
            configuration.append(f"is_host={int(arguments.node_rank == 0)}")
        yield f"--rdzv-endpoint={endpoint or f'{address or _ADDRESS}:{port or _PORT}'}"
    if backend is not None:
        yield f"--rdzv-backend={backend}"
    if configuration:
        yield f"--rdzv-conf={','.join(configuration)}"


def _set_env_variables(arguments: argparse.Namespace) -> None:
    """Leave the arguments where the script's `Fabric` finds them."""
    least, most = arguments.num_nodes
    values = {
        "CLI_USED": 1,
        "ACCELERATOR": arguments.accelerator,
        "STRATEGY": arguments.strategy,
        "DEVICES": arguments.devices,
        "NUM_NODES": most if least == most else f"{least}:{most}",
        "PRECISION": arguments.precision,
    }
    os.environ.update({f"LT_{name}": str(value) for name, value in values.items() if value is not None})
    os.environ[_STARTER] = str(os.getpid())  # of torchrun, too, which runs in this process


def _launch(options: list[str], script_arguments: list[str], log_dir: str) -> int:
    """Hand over to torchrun until all processes have ended."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    torchrun: Any = import_module("torch.distributed.run")  # it has no types
    config = torchrun.parse_args(options)
    config.log_dir, config.training_script_args = log_dir, script_arguments
    if hasattr(config, "signals_to_handle"):
        # What else a scheduler sends before it takes the machine away. Unhandled, it would leave the processes behind.
        config.signals_to_handle += ",SIGUSR1,SIGUSR2"
    try:
        torchrun.run(config)
    except ChildFailedError as error:
        print(f"fabric-lite run: {_summary(error)}", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"fabric-lite run: ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    except (ValueError, RendezvousError, DistError) as error:  # of its own settings, or nobody at the meeting point
        raise CommandError(f"torchrun: {error}") from error
    return 0


def _summary(error: ChildFailedError) -> str:
    """Which processes failed, and how."""
    if any(Path(failure.error_file).is_file() for failure in error.failures.values()):
        return str(error)  # the script records its failures: they are in there
    failures = [
        f"rank {rank} (pid {failure.pid}) by {failure.signal_name()}"
        if failure.exitcode < 0
        else f"rank {rank} (pid {failure.pid}) with exit code {failure.exitcode}"
        for rank, failure in error.failures.items()
    ]
    return f"failed: {', '.join(failures)}. The first traceback above is that of the first failure."
