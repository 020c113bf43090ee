"""What public repositories import from Lightning Fabric and use of it, under its new name."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fabric_lite as ours
from fabric_lite.loggers import CSVLogger

# Counted in 18 repositories: litgpt, lit-llama, sheeprl, TinyLlama, regmix, Samba, fusion_bench, lightly-train, …
IMPORTED = """
fabric_lite: Fabric seed_everything
fabric_lite.accelerators: MPSAccelerator CUDAAccelerator Accelerator
fabric_lite.accelerators.accelerator: Accelerator
fabric_lite.connector: _is_using_cli _PRECISION_INPUT _PLUGIN_INPUT
fabric_lite.fabric: _FabricOptimizer
fabric_lite.loggers: CSVLogger TensorBoardLogger Logger
fabric_lite.loggers.csv_logs: CSVLogger
fabric_lite.loggers.logger: Logger rank_zero_experiment
fabric_lite.loggers.tensorboard: TensorBoardLogger
fabric_lite.plugins: Precision
fabric_lite.plugins.collectives: TorchCollective
fabric_lite.plugins.collectives.collective: CollectibleGroup
fabric_lite.plugins.collectives.torch_collective: default_pg_timeout
fabric_lite.plugins.environments.cluster_environment: ClusterEnvironment
fabric_lite.plugins.io.checkpoint_io: CheckpointIO
fabric_lite.plugins.precision: Precision FSDPPrecision
fabric_lite.plugins.precision.amp: _optimizer_handles_unscaling
fabric_lite.plugins.precision.precision: _PRECISION_INPUT
fabric_lite.plugins.precision.utils: _convert_fp_tensor _DtypeContextManager _ClassReplacementContextManager
fabric_lite.strategies: FSDPStrategy SingleDeviceStrategy Strategy ModelParallelStrategy DDPStrategy STRATEGY_REGISTRY
fabric_lite.strategies.fsdp: fsdp_overlap_step_with_backward FSDPStrategy
fabric_lite.strategies.launchers.subprocess_script: _SubprocessScriptLauncher
fabric_lite.strategies.parallel: ParallelStrategy
fabric_lite.strategies.strategy: _validate_keys_for_strict_loading _apply_filter _Sharded _BackwardSyncControl
fabric_lite.strategies.strategy: TBroadcast Strategy
fabric_lite.utilities: rank_zero_only measure_flops ThroughputMonitor Throughput
fabric_lite.utilities.apply_func: convert_to_tensors convert_tensors_to_scalars
fabric_lite.utilities.cloud_io: get_filesystem _is_dir
fabric_lite.utilities.distributed: _sync_ddp_if_available _init_dist_connection ReduceOp
fabric_lite.utilities.distributed: _get_default_process_group_backend_for_device _distributed_is_initialized
fabric_lite.utilities.init: _materialize_meta_tensors
fabric_lite.utilities.load: _lazy_load _move_state_into _NotYetLoadedTensor _METADATA_FILENAME
fabric_lite.utilities.logger: _sanitize_callable_params _convert_params
fabric_lite.utilities.rank_zero: rank_zero_only rank_zero_warn rank_zero_info
fabric_lite.utilities.seed: reset_seed _set_rng_states _collect_rng_states
fabric_lite.utilities.throughput: measure_flops ThroughputMonitor
fabric_lite.utilities.types: _PATH _Stateful Optimizable
fabric_lite.wrappers: _FabricOptimizer _FabricModule _FabricDataLoader _unwrap_objects
"""
IMPORTS = [
    f"{module}: {name}"
    for line in IMPORTED.strip().splitlines()
    for module, _, names in [line.partition(":")]
    for name in names.split()
]


def find(name: str) -> Any:
    module, _, attribute = name.partition(": ")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("name", IMPORTS)
def test_what_they_import_is_there(name: str) -> None:
    assert find(name) is not None


def test_modules_are_there_without_importing_each() -> None:
    """`import lightning.fabric` alone is enough to write `lightning.fabric.loggers.CSVLogger`."""
    modules = "accelerators connector fabric loggers plugins strategies utilities wrappers".split()
    code = f"import fabric_lite; print([name for name in {modules} if not hasattr(fabric_lite, name)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


USED = """
backward launch setup device global_rank save seed_everything print setup_dataloaders clip_gradients log_dict
no_backward_sync world_size barrier setup_optimizers load init_module strategy setup_module logger local_rank to_device
broadcast all_reduce call accelerator is_global_zero all_gather loggers _precision load_raw rank_zero_first log
_connector init_tensor _loggers _launched _setup_dataloader _strategy _callbacks
"""


def test_what_they_use_of_a_fabric_is_there(tmp_path: Any) -> None:
    fabric = ours.Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(tmp_path))
    missing = [name for name in USED.split() if not hasattr(fabric, name)]
    assert missing == []


def test_private_parts_of_a_fabric() -> None:
    fabric = ours.Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    assert fabric._strategy is fabric.strategy
    assert fabric._precision is fabric.strategy.precision
    assert fabric._connector._precision_input == "bf16-true"
    assert fabric._launched is False
    fabric.launch()
    assert fabric._launched is True


class Hook:
    def __init__(self) -> None:
        self.steps = 0

    def on_event(self) -> None:
        self.steps += 1

    def on_after_optimizer_step(self, optimizer: Any) -> None:
        self.steps += 1


class Log:
    def __init__(self) -> None:
        self.metrics: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((metrics, step))


def test_callbacks_and_loggers_can_be_assigned() -> None:
    """Some make their `Fabric` first, and what it reports to later."""
    fabric = ours.Fabric(accelerator="cpu", devices=1)
    optimizer = fabric.setup_optimizers(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
    first, second, log = Hook(), Hook(), Log()
    fabric._callbacks = [first]
    fabric._callbacks.append(second)
    fabric._loggers = [log]
    fabric.call("on_event")
    optimizer.step()
    fabric.log("a", 1.0, step=3)
    assert (first.steps, second.steps) == (2, 2)
    assert list(fabric._callbacks) == [first, second]
    assert log.metrics == [({"a": 1.0}, 3)]
    assert fabric.loggers == [log]
    assert fabric.logger is log


def test_private_parts_of_what_setting_up_returns() -> None:
    fabric = ours.Fabric(accelerator="cpu", devices=1)
    module, loader = nn.Linear(1, 1), DataLoader([1, 2])  # type: ignore[arg-type]
    bare = torch.optim.SGD(module.parameters(), lr=0.1)
    model, optimizer = fabric.setup(module, bare)
    assert model._forward_module is module
    assert model._original_module is module
    assert optimizer._optimizer is bare
    assert fabric._setup_dataloader(loader)._dataloader is loader
    assert fabric.setup_dataloaders(loader)._dataloader is loader


def test_a_module_that_asks_for_its_fabric_gets_it() -> None:
    class Asking(nn.Linear):
        _fabric: Any = None
        _fabric_optimizers: Any = None

    fabric = ours.Fabric(accelerator="cpu", devices=1)
    module = Asking(1, 1)
    _, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert module._fabric is fabric
    assert module._fabric_optimizers == [optimizer]
    assert not hasattr(fabric.setup(nn.Linear(1, 1)).module, "_fabric")
