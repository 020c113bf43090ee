"""Everything public of Lightning Fabric is here under the same name, and can be called in the same way."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import lightning.fabric as theirs
import lightning.fabric.accelerators as their_accelerators
import lightning.fabric.loggers as their_loggers
import lightning.fabric.plugins as their_plugins
import lightning.fabric.plugins.collectives as their_collectives
import lightning.fabric.plugins.environments as their_environments
import lightning.fabric.plugins.precision as their_precisions
import lightning.fabric.strategies as their_strategies
import lightning.fabric.wrappers as their_wrappers
import pytest

import fabric_lite as ours
import fabric_lite.accelerators as our_accelerators
import fabric_lite.loggers as our_loggers
import fabric_lite.plugins as our_plugins
import fabric_lite.plugins.collectives as our_collectives
import fabric_lite.plugins.environments as our_environments
import fabric_lite.plugins.precision as our_precisions
import fabric_lite.strategies as our_strategies
import fabric_lite.wrappers as our_wrappers

# For each module: the classes that are compared.
CLASSES: dict[tuple[Any, Any], list[str]] = {
    (theirs, ours): ["Fabric"],
    (their_strategies, our_strategies): [
        "Strategy", "SingleDeviceStrategy", "ParallelStrategy", "DDPStrategy", "FSDPStrategy", "ModelParallelStrategy",
    ],
    (their_precisions, our_precisions): [
        "Precision", "MixedPrecision", "HalfPrecision", "DoublePrecision", "TransformerEnginePrecision",
        "FSDPPrecision",
    ],
    (their_plugins, our_plugins): ["CheckpointIO", "TorchCheckpointIO", "ClusterEnvironment", "Precision"],
    (their_environments, our_environments): [
        "ClusterEnvironment", "LightningEnvironment", "TorchElasticEnvironment", "SLURMEnvironment", "MPIEnvironment",
        "LSFEnvironment", "KubeflowEnvironment",
    ],
    (their_collectives, our_collectives): ["Collective", "TorchCollective", "SingleDeviceCollective"],
    (their_accelerators, our_accelerators): ["Accelerator", "CPUAccelerator", "CUDAAccelerator", "MPSAccelerator"],
    (their_loggers, our_loggers): ["Logger", "CSVLogger", "TensorBoardLogger"],
    (their_wrappers, our_wrappers): ["_FabricModule", "_FabricOptimizer", "_FabricDataLoader"],
}  # fmt: skip

# What is not the same, and why.
DIFFERENT_DEFAULTS = {
    "Fabric.launch.function": "None, where Lightning has a function that does nothing",
    "TorchCheckpointIO.load_checkpoint.map_location": "'cpu', where Lightning has a function that means the same",
}
DIFFERENT_KINDS = {
    "Fabric.call.self": "positional-only, so that a callback may have a parameter of that name",
    "Fabric.call.hook_name": "positional-only, so that a callback may have a parameter of that name",
    "_FabricModule.state_dict.destination": "passed on as it comes",
    "_FabricModule.state_dict.prefix": "passed on as it comes",
    "_FabricModule.state_dict.keep_vars": "passed on as it comes",
}
ON_THE_INSTANCE = {
    **{
        f"{kind}Strategy.{name}": "a plain attribute"
        for kind, names in {
            "Parallel": ["parallel_devices"],
            "DDP": ["parallel_devices", "num_nodes"],
            "FSDP": ["parallel_devices", "num_nodes"],
            "ModelParallel": ["parallel_devices", "num_nodes"],
        }.items()
        for name in names
    },
    "_FabricOptimizer.load_state_dict": "passes through to the optimizer, as everything that is not listed does",
}

PAIRS = [
    pytest.param(getattr(their_module, name), getattr(our_module, name), id=name)
    for (their_module, our_module), names in CLASSES.items()
    for name in names
]


def incompatible(owner: str, their: inspect.Signature, our: inspect.Signature) -> list[str]:
    """Ways to make a call that one signature has and the other lacks. Ours may take more, if nobody needs to know."""
    found = []
    for position, (name, wanted) in enumerate(their.parameters.items()):
        label = f"{owner}.{name}"
        if label in DIFFERENT_KINDS:
            continue
        parameter = our.parameters.get(name)
        if parameter is None:
            found.append(f"{label} is missing")
            continue
        if parameter.kind is not wanted.kind:
            found.append(f"{label} is {parameter.kind.description}, not {wanted.kind.description}")
        by_position = wanted.kind in (wanted.POSITIONAL_ONLY, wanted.POSITIONAL_OR_KEYWORD)
        if by_position and list(our.parameters).index(name) != position:
            found.append(f"{label} has moved")
        if parameter.default != wanted.default and label not in DIFFERENT_DEFAULTS:
            found.append(f"{label} is {parameter.default!r} by default, not {wanted.default!r}")
    for name, parameter in our.parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if name not in their.parameters and f"{owner}.{name}" not in DIFFERENT_KINDS and not optional:
            found.append(f"{owner}.{name} is required, and Lightning does not have it")
    return found


@pytest.mark.parametrize("their, our", PAIRS)
def test_constructors(their: type, our: type) -> None:
    if their.__init__ is not object.__init__:  # type: ignore[misc]
        assert incompatible(their.__name__, inspect.signature(their), inspect.signature(our)) == []


@pytest.mark.parametrize("their, our", PAIRS)
def test_methods_and_properties(their: type, our: type) -> None:
    problems = []
    for name in sorted(vars_of(their)):
        label = f"{their.__name__}.{name}"
        if label in ON_THE_INSTANCE:
            continue
        if not hasattr(our, name):
            problems.append(f"{label} is missing")
            continue
        wanted, found = inspect.getattr_static(their, name), inspect.getattr_static(our, name)
        if isinstance(wanted, property):
            if isinstance(found, property) and (wanted.fset is None) != (found.fset is None):
                problems.append(f"{label} can be set in one and not in the other")
            if callable(found):
                problems.append(f"{label} is a method, not a property")
        elif callable(getattr(their, name)):
            mine = inspect.signature(getattr(our, name))
            problems += incompatible(label, inspect.signature(getattr(their, name)), mine)
            if isinstance(wanted, (staticmethod, classmethod)) and not isinstance(found, (staticmethod, classmethod)):
                problems.append(f"{label} needs an instance here")
        else:
            assert wanted == found, label
    assert problems == []


def vars_of(kind: type) -> set[str]:
    """The public names that a class of Lightning has from Lightning itself."""
    return {
        name
        for base in kind.__mro__
        if base.__module__.startswith("lightning.")
        for name in vars(base)
        if not name.startswith("_")
    }


@pytest.mark.parametrize("their, our", PAIRS)
def test_what_a_subclass_has_to_define(their: type, our: type) -> None:
    """A subclass written for Lightning can be made here, too."""
    assert getattr(our, "__abstractmethods__", frozenset()) <= getattr(their, "__abstractmethods__", frozenset())


@pytest.mark.parametrize(
    "module, name",
    [
        (theirs, "seed_everything"),
        (theirs, "is_wrapped"),
        (their_strategies.strategy, "_validate_keys_for_strict_loading"),
        (their_strategies.strategy, "_apply_filter"),
        (their_precisions.utils, "_convert_fp_tensor"),
        (their_precisions.amp, "_optimizer_handles_unscaling"),
        (their_wrappers, "_unwrap_objects"),
    ],
)
def test_functions(module: Any, name: str) -> None:
    our_module = import_module(module.__name__.replace("lightning.fabric", "fabric_lite"))
    their, our = getattr(module, name), getattr(our_module, name)
    assert incompatible(name, inspect.signature(their), inspect.signature(our)) == []


def test_the_front_door_has_the_same_names() -> None:
    assert set(theirs.__all__) <= set(ours.__all__)


# As they begin. The last two are helpers of Lightning's own that no page of its documentation asks a user to import.
OUT_OF_SCOPE = (
    *("XLA", "SingleDeviceXLA", "TPU", "DeepSpeed", "Bitsandbytes", "DataParallel"),
    *("find_usable_cuda_devices", "LightningDeprecationWarning"),
)
WITH_MANY_PROCESSES = {
    *"DDPStrategy FSDPStrategy ModelParallelStrategy FSDPPrecision TorchElasticEnvironment".split(),
    *"SLURMEnvironment MPIEnvironment LSFEnvironment KubeflowEnvironment".split(),
}


@pytest.mark.parametrize(
    "room",
    "accelerators plugins plugins.environments plugins.io plugins.precision strategies loggers fabric wrappers"
    " utilities utilities.apply_func utilities.cloud_io utilities.distributed utilities.init utilities.load"
    " utilities.logger utilities.rank_zero utilities.seed utilities.throughput utilities.types".split(),
)
def test_the_rooms_have_the_same_names(room: str) -> None:
    their, our = (import_module(f"{library}.{room}") for library in ("lightning.fabric", "fabric_lite"))
    names = {
        name
        for name, value in vars(their).items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not name.startswith(("_", *OUT_OF_SCOPE))
        if value.__module__.startswith(their.__name__)  # not what it imports from elsewhere
    }
    assert {name for name in names - WITH_MANY_PROCESSES if not hasattr(our, name)} == set()


def test_the_tables_hold_what_is_different_and_nothing_else() -> None:
    """What is in a table and would pass without it has been mended: take it out."""
    for table in (DIFFERENT_DEFAULTS, DIFFERENT_KINDS, ON_THE_INSTANCE):
        for label in list(table):
            reason = table.pop(label)
            try:
                owner = label.partition(".")[0]
                their, our = next(pair.values for pair in PAIRS if pair.id == owner)
                with pytest.raises(AssertionError):
                    test_methods_and_properties(their, our)
            finally:
                table[label] = reason
