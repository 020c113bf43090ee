"""A copy of the module in each process, kept equal by averaging gradients: `DistributedDataParallel`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from fabric_lite.accelerators import Accelerator
from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.plugins.io import CheckpointIO
from fabric_lite.plugins.precision import Precision
from fabric_lite.strategies.capabilities import _BackwardSyncControl
from fabric_lite.strategies.parallel import ParallelStrategy
from fabric_lite.strategies.registry import _StrategyRegistry
from fabric_lite.utilities.init import _has_meta_device_parameters_or_buffers, _materialize_meta_tensors

_START_METHODS = ("popen", "spawn", "fork", "forkserver")


class DDPStrategy(ParallelStrategy):
    """Keeps a copy of the module in each process, and averages the gradients during the backward.

    A module of which no parameter requires a gradient is not wrapped: it takes the values that it has on rank 0.

    Args:
        accelerator: The hardware; `Fabric` chooses if there is none.
        parallel_devices: The devices of the processes on this machine.
        cluster_environment: Where the processes find each other.
        checkpoint_io: How checkpoints are kept.
        precision: How numbers are represented.
        process_group_backend: Of `torch.distributed`; by default the one for the devices (gloo for the CPU).
        timeout: How long a process waits for the others: by default, 30 minutes. None for torch's default.
        start_method: How the other processes start: ``"popen"`` runs the script again, the others call a function.
        ddp_comm_state: What the hook keeps between steps. One for each module: with several modules, call
            ``model._forward_module.register_comm_hook(state, hook)`` on each after it was set up, instead.
        ddp_comm_hook: How gradients are averaged: a function such as those of
            `torch.distributed.algorithms.ddp_comm_hooks`.
        **kwargs: For `torch.nn.parallel.DistributedDataParallel`: ``find_unused_parameters``, ``static_graph``,
            ``gradient_as_bucket_view``, ``broadcast_buffers``, ``bucket_cap_mb`` …

    Raises:
        ValueError: If there is no such start method.
        TypeError: If `DistributedDataParallel` has no such argument.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        *,
        ddp_comm_state: object | None = None,
        ddp_comm_hook: Callable[[Any, Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if start_method not in _START_METHODS:
            raise ValueError(
                f"`DDPStrategy(start_method={start_method!r})`: choose one of {', '.join(map(repr, _START_METHODS))}."
            )
        known = inspect.signature(DistributedDataParallel).parameters.keys() - {"module", "device_ids"}
        if unknown := sorted(kwargs.keys() - known):
            raise TypeError(
                f"`DDPStrategy({unknown[0]}=...)`: neither the strategy nor `DistributedDataParallel` takes such an"
                f" argument. The latter takes {', '.join(sorted(known))}."
            )
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision=precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._start_method = start_method
        self._ddp_comm_state = ddp_comm_state
        self._ddp_comm_hook = ddp_comm_hook
        self._ddp_kwargs = kwargs
        self._backward_sync_control = _DDPBackwardSyncControl()

    @override
    def _configure_launcher(self) -> None:
        # The launcher of scripts is also the one that joins processes which somebody else has started.
        if self._start_method == "popen" or self._environment.creates_processes_externally:
            from fabric_lite.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

            self._launcher = _SubprocessScriptLauncher(self._environment, self.num_processes, self.num_nodes)
        else:
            from fabric_lite.strategies.launchers.multiprocessing import _MultiProcessingLauncher

            self._launcher = _MultiProcessingLauncher(self, start_method=self._start_method)

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        self._setup_distributed()

    @override
    def setup_module(self, module: nn.Module) -> nn.Module:
        if not _trains(module):  # which is an error in DDP: there is nothing to average
            if self._ddp_kwargs.get("init_sync", True):
                _take_from_first(module, self._ddp_kwargs.get("process_group"))
            return module
        # What DDP does at its making must not overlap with the stream that computes.
        stream = torch.Stream(self.root_device) if self._device_ids is not None else nullcontext()
        with stream:
            ddp = DistributedDataParallel(module, device_ids=self._device_ids, **self._ddp_kwargs)
        if self._ddp_comm_hook is not None:
            ddp.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)
        return ddp

    @override
    def module_to_device(self, module: nn.Module) -> None:
        if _has_meta_device_parameters_or_buffers(module):
            _materialize_meta_tensors(module, self.root_device)
        module.to(self.root_device)

    @override
    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        return super().get_module_state_dict(_bare(module))

    @override
    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        super().load_module_state_dict(_bare(module), state_dict, strict=strict)

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        methods = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}
        for name, start_method in methods.items():
            description = f"DDP, processes started by {start_method}"
            strategy_registry.register(name, cls, description=description, start_method=start_method)
        strategy_registry.register(
            "ddp_find_unused_parameters_true",
            cls,
            description="DDP for a module of which not every parameter takes part in each step",
            start_method="popen",
            find_unused_parameters=True,
        )


def _bare(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@torch.no_grad()
def _take_from_first(module: nn.Module, group: Any) -> None:
    """Give a module the values that it has on rank 0."""
    for tensor in chain(module.parameters(), module.buffers()):
        value = tensor.detach().contiguous()
        torch.distributed.broadcast(value, group=group, group_src=0)
        tensor.copy_(value)


class _DDPBackwardSyncControl(_BackwardSyncControl):
    @override
    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        if not enabled or not _trains(module):
            return nullcontext()
        if not isinstance(module, DistributedDataParallel):
            raise TypeError(
                f"`no_backward_sync` got a `{type(module).__name__}`, which is not wrapped in"
                " `DistributedDataParallel`. Pass the module that `fabric.setup(...)` returned."
            )
        return module.no_sync()
