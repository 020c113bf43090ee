from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import (
    BackwardPrefetch,
    CPUOffload,
    CPUOffloadPolicy,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, always_wrap_policy

from fabric_lite import Fabric
from fabric_lite.plugins import FSDPPrecision, HalfPrecision
from fabric_lite.plugins import MixedPrecision as Autocast
from fabric_lite.strategies import FSDPStrategy
from fabric_lite.strategies import fsdp_options as options

# -- arguments of the FSDP before `fully_shard` ---------------------------------------------------------------------


def test_arguments_that_ask_for_what_is_done_anyway() -> None:
    FSDPStrategy(use_orig_params=True, limit_all_gathers=True, forward_prefetch=False, process_group=None)
    FSDPStrategy(backward_prefetch=BackwardPrefetch.BACKWARD_PRE, param_init_fn=None, device_id=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_orig_params": False}, "leave it out: parameters are never flattened"),
        ({"limit_all_gathers": False}, "leave it out: they are limited"),
        ({"forward_prefetch": True}, "call `set_modules_to_forward_prefetch` of the modules"),
        ({"backward_prefetch": BackwardPrefetch.BACKWARD_POST}, "call `set_modules_to_backward_prefetch`"),
        ({"process_group": "a group"}, "pass `device_mesh`"),
        ({"param_init_fn": print}, r"write a method `reset_parameters\(self\)`"),
        ({"device_id": 0}, r"choose the devices with `Fabric\(accelerator=\.\.\., devices=\.\.\.\)`"),
        ({"sharding_strategy": "NO_SHARD"}, r"shards nothing\. Use `Fabric\(strategy='ddp'\)`"),
        ({"sharding_strategy": ShardingStrategy.NO_SHARD}, r"shards nothing\. Use `Fabric\(strategy='ddp'\)`"),
        ({"sharding_strategy": "HALF"}, "choose one of 'FULL_SHARD', 'SHARD_GRAD_OP', 'HYBRID_SHARD'"),
        ({"sharding_strategy": "SHARD_GRAD_OP", "reshard_after_forward": True}, "contradicts itself"),
        ({"device_mesh": (2, 2)}, "Add `sharding_strategy='HYBRID_SHARD'`"),
        ({"state_dict_type": "local"}, "choose 'full' or 'sharded'"),
        ({"mixed_precision": MixedPrecision(buffer_dtype=torch.float16)}, "and convert buffers in the module"),
    ],
)
def test_values_that_there_are_no_more(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"`FSDPStrategy\({next(iter(arguments))}=.*{message}"):
        FSDPStrategy(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"auto_warp_policy": None}, "there is no such argument"),
        ({"cpu_offload": "yes"}, r"pass True or False, or `torch\.distributed\.fsdp\.CPUOffloadPolicy\(\)`"),
        ({"device_mesh": 3}, "pass two numbers, .* or a `DeviceMesh`"),
        ({"ignored_modules": nn.Sequential()}, "pass a list, even of one"),
        ({"timeout": 5}, "pass a `datetime.timedelta`"),
        ({"mixed_precision": "bf16"}, r"pass `torch\.distributed\.fsdp\.MixedPrecisionPolicy\("),
        ({"auto_wrap_policy": nn.Linear}, "pass a set of module classes"),
        ({"auto_wrap_policy": {"Linear"}}, "pass a set of module classes"),
        ({"activation_checkpointing_policy": 3}, "or a function `\\(module, recurse, nonwrapped_numel\\) -> bool`"),
    ],
)
def test_arguments_of_another_kind(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=rf"`FSDPStrategy\({next(iter(arguments))}=.*{message}"):
        FSDPStrategy(**arguments)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FULL_SHARD", (None, False)),
        ("shard_grad_op", (False, False)),
        (ShardingStrategy.SHARD_GRAD_OP, (False, False)),
        ("HYBRID_SHARD", (None, True)),
        (ShardingStrategy._HYBRID_SHARD_ZERO2, (False, True)),
    ],
)
def test_resharding(name: Any, expected: tuple[Any, bool]) -> None:
    assert options.resharding(name, None, None) == expected
    assert options.resharding("FULL_SHARD", 2, None) == (2, False)


@pytest.mark.parametrize(
    ("given", "offloads"),
    [
        (None, False),
        (False, False),
        (True, True),
        (CPUOffload(offload_params=True), True),
        (CPUOffload(), False),
        (CPUOffloadPolicy(), True),
        (OffloadPolicy(), False),
    ],
)
def test_offload(given: Any, offloads: bool) -> None:
    assert options.offloads(given) is offloads
    assert options.offload_policy(given, "cpu") == (CPUOffloadPolicy(pin_memory=False) if offloads else OffloadPolicy())
    assert options.offload_policy(given, "cuda") == (CPUOffloadPolicy() if offloads else OffloadPolicy())


def test_mixed_precision_of_the_user() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    assert FSDPStrategy(mixed_precision=policy).mixed_precision_config is policy
    former = FSDPStrategy(mixed_precision=MixedPrecision(torch.bfloat16, torch.float32)).mixed_precision_config
    assert former == MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=True)


def test_the_former_name_of_the_policy_for_activations() -> None:
    with pytest.warns(DeprecationWarning, match=r"Write `FSDPStrategy\(activation_checkpointing_policy=\{Linear\}\)`"):
        strategy = FSDPStrategy(activation_checkpointing=nn.Linear)
    assert strategy._recomputed == {nn.Linear}
    with warnings.catch_warnings(), pytest.raises(ValueError, match="has taken the place of the former"):
        FSDPStrategy(activation_checkpointing=[nn.Linear], activation_checkpointing_policy={nn.Linear})


# -- policies ---------------------------------------------------------------------------------------------------------


def test_modules_are_chosen_from_the_inside() -> None:
    inner, outer = nn.Sequential(nn.Linear(2, 2)), nn.ModuleList([nn.Sequential(nn.Linear(3, 3)), nn.Tanh()])
    root = nn.Sequential(inner, outer)
    for policy in (
        {nn.Linear, nn.Sequential},
        [nn.Sequential, nn.Linear],
        ModuleWrapPolicy({nn.Linear, nn.Sequential}),
    ):
        chosen = list(options.choose_modules(root, policy))
        assert chosen == [outer[0][0], outer[0], inner[0], inner]
    assert root not in options.choose_modules(root, always_wrap_policy)
    assert outer not in options.choose_modules(root, always_wrap_policy)  # it has no forward
    assert options.choose_modules(root, None) == {}


def test_a_policy_is_asked_what_is_left() -> None:
    root = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Sequential(nn.Linear(1, 5, bias=False), nn.PReLU(2)))
    asked = []

    def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        asked.append((type(module).__name__, recurse, nonwrapped_numel))
        return recurse or nonwrapped_numel == 5

    assert list(options.choose_modules(root, policy)) == [root[1][0]]
    assert ("Sequential", True, 10) in asked
    assert ("Sequential", False, 2) in asked  # without the five that were chosen


def test_shared_parameters_stay_with_the_root() -> None:
    root = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    root[1][1].weight = root[0].weight
    chosen = options.choose_modules(root, {nn.Linear, nn.Sequential})
    assert list(options.without_shared_parameters(chosen, root)) == [root[1][0]]


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["32-true", "16-true", "bf16-true", "bf16-mixed"])
def test_precision_by_name(name: Any) -> None:
    strategy = FSDPStrategy()
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy, precision=name)
    assert isinstance(fabric._precision, FSDPPrecision)
    assert fabric._precision.precision == strategy.precision.precision == name
    assert strategy.has_plain_precision is (name == "32-true")
    assert strategy.requires_fabric_backward is (name == "bf16-mixed")
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    assert strategy.mixed_precision_config == (mixed if name == "bf16-mixed" else MixedPrecisionPolicy())


def test_sixteen_bits_on_a_cpu() -> None:
    with pytest.warns(UserWarning, match="runs as 'bf16-mixed'"):
        fabric = Fabric(accelerator="cpu", devices=2, strategy="fsdp", precision="16-mixed")
    assert fabric._precision.precision == "bf16-mixed"
    assert FSDPPrecision("16-mixed", device="cpu").scaler is not None
    assert FSDPPrecision("bf16-mixed").scaler is None


def test_what_a_precision_converts() -> None:
    numbers = {"x": torch.ones(2, dtype=torch.float64), "n": torch.ones(2, dtype=torch.int64)}
    for name, dtype in (("32-true", torch.float64), ("bf16-true", torch.bfloat16), ("bf16-mixed", torch.bfloat16)):
        precision = FSDPPrecision(name)  # type: ignore[arg-type]
        assert precision.convert_input(numbers)["x"].dtype == dtype
        assert precision.convert_input(numbers)["n"].dtype == torch.int64
        weights = precision.convert_module(nn.Linear(1, 1)).weight.dtype
        assert weights == (torch.bfloat16 if name == "bf16-true" else torch.float32)
        with precision.tensor_init_context():
            assert torch.empty(1).dtype == weights
        with precision.forward_context():
            assert torch.is_autocast_enabled("cpu") is (name == "bf16-mixed")
    half = torch.ones(1, dtype=torch.bfloat16)
    assert FSDPPrecision("bf16-mixed").convert_output(half).dtype == torch.float32
    assert FSDPPrecision("32-true").convert_output(half).dtype == torch.bfloat16


def test_precisions_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"`FSDPPrecision\(precision='64-true'\)`: sharded parameters can be in '32-t"):
        Fabric(accelerator="cpu", devices=2, strategy="fsdp", precision="64-true")
    with pytest.raises(ValueError, match="only '16-mixed' takes a scaler"):
        FSDPPrecision("bf16-mixed", scaler=torch.amp.GradScaler("cpu"))
    for precision in (HalfPrecision("bf16-true"), Autocast("bf16-mixed", "cpu")):
        name = precision.precision
        with pytest.raises(TypeError, match=rf"Write `Fabric\(precision='{name}'\)`, or pass an `FSDPPrecision`"):
            Fabric(accelerator="cpu", devices=2, strategy="fsdp", plugins=precision)
