"""From the arguments of `Fabric` and the environment to one checked plan."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch

from fabric_lite.accelerators import ACCELERATOR_REGISTRY, Accelerator
from fabric_lite.accelerators.device import DeviceAccelerator
from fabric_lite.plugins import (
    CheckpointIO,
    ClusterEnvironment,
    Precision,
)
from fabric_lite.plugins.environments.detection import choose_environment
from fabric_lite.plugins.environments.variables import MissingVariableError
from fabric_lite.plugins.precision.precision import (
    _PRECISION_INPUT as _PRECISION_INPUT,
)
from fabric_lite.plugins.precision.precision import (
    _PRECISION_INPUT_INT,
    _PRECISION_INPUT_STR,
    _PRECISION_INPUT_STR_ALIAS,
    _PRECISION_INPUT_STR_ALIAS_CONVERSION,
)
from fabric_lite.strategies import STRATEGY_REGISTRY, SingleDeviceStrategy, Strategy
from fabric_lite.utilities.rank_zero import rank_zero_warn

_PLUGIN_INPUT = Precision | ClusterEnvironment | CheckpointIO

# What Lightning Fabric has by names that begin so, and what there is instead.
_NOT_HERE = {
    "dp": "DataParallel is not in fabric-lite; `strategy='ddp'`, a process for each device, does the same faster",
    "deepspeed": "DeepSpeed is not in fabric-lite; `strategy='fsdp'` shards parameters, gradients and optimizer states",
    "xla": "TPUs are not in fabric-lite, Lightning Fabric has them",
    "tpu": "TPUs are not in fabric-lite, Lightning Fabric has them",
}


@dataclass(frozen=True)
class Plan:
    """What a run consists of. Everything has been checked, and the strategy has its parts.

    Attributes:
        accelerator: The hardware.
        strategy: How the work is spread over devices and processes.
        precision: How numbers are represented.
        precision_input: The name of the precision, as the strategy uses it.
        parallel_devices: The devices of the processes on this machine.
        cluster_environment: Where the processes find each other.
        num_nodes: Number of machines.
    """

    accelerator: Accelerator
    strategy: Strategy
    precision: Precision
    precision_input: _PRECISION_INPUT_STR
    parallel_devices: tuple[torch.device, ...]
    cluster_environment: ClusterEnvironment
    num_nodes: int

    @property
    def _precision_input(self) -> _PRECISION_INPUT_STR:
        return self.precision_input


def make_plan(
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: list[int] | str | int = "auto",
    num_nodes: int = 1,
    precision: _PRECISION_INPUT | None = None,
    plugins: _PLUGIN_INPUT | Iterable[_PLUGIN_INPUT] | None = None,
) -> Plan:
    """Check the arguments of `Fabric` against each other, the environment and this machine.

    Args:
        accelerator: The hardware or its name.
        strategy: The strategy or its name.
        devices: How many devices, or which ones.
        num_nodes: Number of machines.
        precision: Name of the precision.
        plugins: A precision, a cluster environment, a way to keep checkpoints: at most one of each.

    Returns:
        The plan.

    Raises:
        ValueError: For a name that is not known, or arguments that contradict each other.
        TypeError: For a plugin or devices of another kind.
        RuntimeError: For hardware that is not there, or processes that cannot be started here.
    """
    accelerator = _from_environment("accelerator", accelerator, default="auto")
    strategy = _from_environment("strategy", strategy, default="auto")
    devices = _from_environment("devices", devices, default="auto")
    num_nodes = _check_num_nodes(_from_environment("num_nodes", num_nodes, default=1))
    precision = _from_environment("precision", precision, default=None)

    strategy = _check_strategy(strategy)
    name = _convert_precision_to_unified_args(precision)
    parts = _sort_plugins(plugins)
    if Precision in parts and name is not None:
        raise ValueError(
            f"`Fabric(precision={precision!r}, plugins={parts[Precision]!r})` asks for two precisions. Choose one."
        )
    if isinstance(strategy, Strategy):
        accelerator = _take_parts(strategy, accelerator, parts)
        if name is not None and strategy._precision is not None:
            raise ValueError(
                f"`{type(strategy).__name__}` was made with {strategy._precision!r}, and `Fabric` got"
                f" `precision={precision!r}`. Keep one of them."
            )
    hardware, parallel_devices = _choose_devices(accelerator, devices, strategy)
    environment = choose_environment(parts.get(ClusterEnvironment))
    chosen = _choose_strategy(strategy, parallel_devices, num_nodes)
    numbers = parts.get(Precision) or chosen.make_precision(name or "32-true", parallel_devices[0].type)
    plan = Plan(
        accelerator=hardware,
        strategy=chosen,
        precision=numbers,
        precision_input=numbers.precision,
        parallel_devices=parallel_devices,
        cluster_environment=environment,
        num_nodes=num_nodes,
    )
    _equip(plan, parts.get(CheckpointIO))
    _check_processes(plan, strategy)
    return plan


def _from_environment(name: str, given: Any, default: Any) -> Any:
    """The value that the command line left in the environment, or the one that the script gives."""
    value = os.environ.get(f"LT_{name.upper()}")
    if value is None:
        return given
    if str(given) not in (value, str(default)) and _is_using_cli():
        raise ValueError(
            f"The script has `Fabric({name}={given!r})`, but the command line says"
            f" `--{name.replace('_', '-')}={value}`. Remove one of them."
        )
    return value


def _is_using_cli() -> bool:
    """Whether the script was started by the command line."""
    return bool(int(os.environ.get("LT_CLI_USED", "0")))


def _check_num_nodes(num_nodes: object) -> int:
    """A number of machines."""
    if isinstance(num_nodes, str) and ":" in num_nodes:  # `fabric-lite run --num-nodes MIN:MAX`: torchrun has counted
        num_nodes = os.environ.get("GROUP_WORLD_SIZE", num_nodes)
    number = int(num_nodes) if isinstance(num_nodes, str) and num_nodes.strip().isdecimal() else num_nodes
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"`Fabric(num_nodes={num_nodes!r})`: pass the number of machines, an integer above 0.")
    return number


def _check_strategy(strategy: str | Strategy) -> str | Strategy:
    """A strategy, or a name that is known."""
    if isinstance(strategy, Strategy):
        return strategy
    for name in (strategy, str(strategy).lower()):
        if name == "auto" or name in STRATEGY_REGISTRY:
            return name
    reason = next((f" Note: {text}." for key, text in _NOT_HERE.items() if str(name).startswith(key)), "")
    raise ValueError(
        f"`Fabric(strategy={strategy!r})`: choose one of"
        f" {', '.join(map(repr, ['auto', *STRATEGY_REGISTRY.available_strategies()]))}, or pass an instance of"
        f" `fabric_lite.strategies.Strategy`.{reason}"
    )


def _convert_precision_to_unified_args(precision: _PRECISION_INPUT | None) -> _PRECISION_INPUT_STR | None:
    """The full name of a precision."""
    if precision is None:
        return None
    names = (*get_args(_PRECISION_INPUT_STR), *get_args(_PRECISION_INPUT_STR_ALIAS), *get_args(_PRECISION_INPUT_INT))
    if precision not in names or isinstance(precision, float):
        raise ValueError(f"`Fabric(precision={precision!r})`: choose one of {', '.join(map(repr, names))}.")
    name = str(precision)
    full = _PRECISION_INPUT_STR_ALIAS_CONVERSION.get(name, name)
    if full.endswith("mixed") and full != name:
        rank_zero_warn(f"`precision={precision!r}` does not say how 16 bits are used. Write `precision={full!r}`.")
    return cast(_PRECISION_INPUT_STR, full)


def _sort_plugins(plugins: _PLUGIN_INPUT | Iterable[_PLUGIN_INPUT] | None) -> dict[type, Any]:
    """The plugins by their kind."""
    several = isinstance(plugins, Iterable) and not isinstance(plugins, str)
    given: list[Any] = [] if plugins is None else list(cast(Iterable[Any], plugins)) if several else [plugins]
    kinds = (Precision, CheckpointIO, ClusterEnvironment)
    for plugin in given:
        if not isinstance(plugin, kinds):
            raise TypeError(
                f"`Fabric(plugins=...)` got {plugin!r}. A plugin is an instance of a subclass of"
                f" {', '.join(f'`{kind.__name__}`' for kind in kinds)}."
            )
    sorted_plugins: dict[type, Any] = {kind: plugin for plugin in given for kind in kinds if isinstance(plugin, kind)}
    twice = [kind.__name__ for kind, n in Counter(k for p in given for k in kinds if isinstance(p, k)).items() if n > 1]
    if twice:
        raise ValueError(f"`Fabric(plugins={given!r})` has more than one {' and '.join(twice)}. Keep one of each kind.")
    return sorted_plugins


def _take_parts(strategy: Strategy, accelerator: str | Accelerator, parts: dict[type, Any]) -> str | Accelerator:
    """Take over what a strategy was made with; it may not be given a second time."""
    own = {
        Precision: strategy._precision,
        CheckpointIO: strategy._checkpoint_io,
        ClusterEnvironment: getattr(strategy, "cluster_environment", None),
    }
    for kind, part in own.items():
        if part is not None and parts.setdefault(kind, part) is not part:
            raise ValueError(
                f"`{type(strategy).__name__}` was made with {part!r}, and `Fabric(plugins=...)` has {parts[kind]!r}."
                " Keep one of them."
            )
    if strategy._accelerator is None:
        return accelerator
    if accelerator != "auto":
        raise ValueError(
            f"`{type(strategy).__name__}` was made with {strategy._accelerator!r}, and `Fabric` got"
            f" `accelerator={accelerator!r}`. Keep one of them."
        )
    return strategy._accelerator


def _choose_devices(
    accelerator: str | Accelerator, devices: list[int] | str | int, strategy: str | Strategy
) -> tuple[Accelerator, tuple[torch.device, ...]]:
    """The hardware and the devices of the processes on this machine."""
    own = tuple(getattr(strategy, "parallel_devices", None) or ())
    if own and accelerator not in ("auto", "gpu", own[0].type) and isinstance(accelerator, str):
        raise ValueError(
            f"`{type(strategy).__name__}` was made with devices of type {own[0].type!r}, and `Fabric` got"
            f" `accelerator={accelerator!r}`. Keep one of them."
        )
    if not isinstance(accelerator, Accelerator):
        accelerator = _find_hardware(own[0].type if own else accelerator)
    kind = type(accelerator)
    if not kind.is_available():
        there = sorted(name for name in ACCELERATOR_REGISTRY if ACCELERATOR_REGISTRY.get(name).is_available())
        raise RuntimeError(
            f"`{kind.__name__}`: this machine has no such device. Choose one of {', '.join(map(repr, there))}, or"
            " `accelerator='auto'`."
        )
    if devices in ([], 0, "0"):
        raise ValueError(f"`Fabric(devices={devices!r})` leaves nothing to run on. Ask for at least one device.")
    if devices == "auto":
        # A notebook has one process, and cannot be run again in others.
        devices = 1 if _is_interactive() else kind.auto_device_count()
    parsed = kind.parse_devices(devices)
    return accelerator, own or tuple(kind.get_parallel_devices(parsed))


def _find_hardware(name: str) -> Accelerator:
    """The accelerator of a name: registered, or the one that torch finds on this machine."""
    current = torch.accelerator.current_accelerator(check_available=True)
    found = current.type if current is not None else None
    if name == "gpu" and found is None:
        raise RuntimeError("`Fabric(accelerator='gpu')`: torch finds no GPU on this machine. Use `accelerator='cpu'`.")
    if name in ("auto", "gpu"):
        name = found or "cpu"
    if name in ACCELERATOR_REGISTRY:
        return cast(Accelerator, ACCELERATOR_REGISTRY.get(name))
    if name is not None and name == found:
        return DeviceAccelerator.for_type(name)()
    known = ["auto", "gpu", *sorted(ACCELERATOR_REGISTRY.available_accelerators())]
    reason = f" Note: {_NOT_HERE[name]}." if name in ("xla", "tpu") else ""
    raise ValueError(
        f"`Fabric(accelerator={name!r})`: choose one of {', '.join(map(repr, known))}, or pass an instance of"
        f" `fabric_lite.accelerators.Accelerator`.{reason}"
    )


def _is_interactive() -> bool:
    """Whether this is a notebook or a prompt (``ps1``), or ``python -i``."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def _choose_strategy(strategy: str | Strategy, devices: tuple[torch.device, ...], num_nodes: int) -> Strategy:
    """The strategy of a name, or the plain one for this many devices."""
    if isinstance(strategy, Strategy):
        return strategy
    if strategy == "auto" and len(devices) == 1 and num_nodes == 1:
        return SingleDeviceStrategy(devices[0])
    if strategy == "auto":
        strategy = "ddp_notebook" if num_nodes == 1 and _is_interactive() else "ddp"
    return cast(Strategy, STRATEGY_REGISTRY.get(strategy))


def _equip(plan: Plan, checkpoint_io: CheckpointIO | None) -> None:
    """Give the strategy its parts."""
    strategy = plan.strategy
    strategy.accelerator = plan.accelerator
    strategy.precision = plan.precision
    if checkpoint_io is not None:
        strategy.checkpoint_io = checkpoint_io
    strategy.connect(plan.parallel_devices, plan.cluster_environment, plan.num_nodes)


def _check_processes(plan: Plan, asked: str | Strategy) -> None:
    """Raise if the processes that the strategy needs cannot be, or are not those that somebody has started."""
    environment, launcher = plan.cluster_environment, plan.strategy.launcher
    devices = len(plan.parallel_devices)
    name = f"strategy={asked!r}" if isinstance(asked, str) else f"{type(asked).__name__}(...)"
    if launcher is None:
        if asked == "auto" and environment.creates_processes_externally:
            _warn_if_alone(environment)
        return
    if plan.parallel_devices[0].type == "mps":
        raise ValueError(
            f"`Fabric({name}, accelerator='mps')`: processes on MPS cannot speak to each other. Write"
            " `Fabric(accelerator='mps', devices=1)`, or `accelerator='cpu'`."
        )
    environment.validate_settings(num_devices=devices, num_nodes=plan.num_nodes)
    if _is_interactive() and not launcher.is_interactive_compatible:
        raise RuntimeError(
            f"`Fabric({name}, devices={devices})` runs the script again in other processes, and a notebook or prompt is"
            " no script. Write `Fabric(strategy='ddp_notebook')`, or run a script. A function that is called in"
            " processes of your own can make its `Fabric` there."
        )


def _warn_if_alone(environment: ClusterEnvironment) -> None:
    """Warn if somebody has started several processes, and the script is for one."""
    try:
        environment.validate_settings(num_devices=1, num_nodes=1)
    except MissingVariableError:
        return  # one process needs no variables
    except ValueError as error:
        rank_zero_warn(f"Each process runs alone. {error}")
