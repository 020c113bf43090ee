"""From the arguments that Lightning Fabric's `FSDPStrategy` has to those of torch's `fully_shard`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import CPUOffload, MixedPrecision, MixedPrecisionPolicy, OffloadPolicy, ShardingStrategy
    from torch.distributed.fsdp.wrap import CustomPolicy, ModuleWrapPolicy

    Policy: TypeAlias = Collection[type[nn.Module]] | Callable[..., bool] | ModuleWrapPolicy | CustomPolicy
    Offload: TypeAlias = bool | CPUOffload | OffloadPolicy
    Mixed: TypeAlias = MixedPrecision | MixedPrecisionPolicy
    Sharding: TypeAlias = ShardingStrategy | Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"]

# Whether parameters are gathered once more for the backward (None: torch's choice, all but the root's), and whether
# there is a copy of them on each machine.
_SHARDING: dict[str, tuple[bool | None, bool]] = {
    "FULL_SHARD": (None, False),
    "SHARD_GRAD_OP": (False, False),
    "HYBRID_SHARD": (None, True),
    "_HYBRID_SHARD_ZERO2": (False, True),
}

# Arguments of the FSDP before `fully_shard`: the values that ask for what `fully_shard` does anyway, and what to write
# for others.
_FORMER: dict[str, tuple[tuple[Any, ...], str]] = {
    "process_group": ((None,), "pass `device_mesh`"),
    "backward_prefetch": (
        (None, "BACKWARD_PRE"),
        "torch fetches the next parameters by itself; for more, call `set_modules_to_backward_prefetch` of its modules",
    ),
    "forward_prefetch": ((None, False), "call `set_modules_to_forward_prefetch` of the modules"),
    "param_init_fn": ((None,), "write a method `reset_parameters(self)` in each module that has parameters"),
    "device_id": ((None,), "choose the devices with `Fabric(accelerator=..., devices=...)`"),
    "limit_all_gathers": ((None, True), "leave it out: they are limited"),
    "use_orig_params": ((None, True), "leave it out: parameters are never flattened"),
}


def check_former(arguments: Mapping[str, Any]) -> None:
    """Raise for arguments that `fully_shard` has no counterpart of.

    Args:
        arguments: By name.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If its value asks for something that there is no more.
    """
    for name, value in arguments.items():
        if name not in _FORMER:
            raise TypeError(
                f"`FSDPStrategy({name}={value!r})`: there is no such argument. It takes those of Lightning Fabric's"
                " `FSDPStrategy` that mean something to `torch.distributed.fsdp.fully_shard`."
            )
        accepted, instead = _FORMER[name]
        if getattr(value, "name", value) not in accepted:
            raise ValueError(
                f"`FSDPStrategy({name}={value!r})`: `torch.distributed.fsdp.fully_shard`, on which this strategy is"
                f" built, has no such setting. Instead, {instead}."
            )


def resharding(
    strategy: Sharding, reshard_after_forward: bool | int | None, device_mesh: object
) -> tuple[bool | int | None, bool]:
    """What the name of a sharding strategy says.

    Args:
        strategy: The name, or torch's enumeration.
        reshard_after_forward: What the user passed under this name.
        device_mesh: What the user passed under this name.

    Returns:
        ``reshard_after_forward`` of `fully_shard`, and whether there is a copy on each machine.

    Raises:
        TypeError: If there can be no such mesh.
        ValueError: For another name, or contradicting arguments.
    """
    name = strategy.upper() if isinstance(strategy, str) else getattr(strategy, "name", repr(strategy))
    if name == "NO_SHARD":
        raise ValueError("`FSDPStrategy(sharding_strategy='NO_SHARD')` shards nothing. Use `Fabric(strategy='ddp')`.")
    if name not in _SHARDING:
        names = ", ".join(repr(each) for each in _SHARDING if not each.startswith("_"))
        raise ValueError(f"`FSDPStrategy(sharding_strategy={strategy!r})`: choose one of {names}.")
    reshard, hybrid = _SHARDING[name]
    if reshard is not None and reshard_after_forward not in (None, reshard):
        raise ValueError(
            f"`FSDPStrategy(sharding_strategy={name!r}, reshard_after_forward={reshard_after_forward!r})` contradicts"
            f" itself: {name!r} keeps parameters until the backward. Leave one of them out."
        )
    if device_mesh is not None and not isinstance(device_mesh, tuple) and not hasattr(device_mesh, "mesh_dim_names"):
        raise TypeError(
            f"`FSDPStrategy(device_mesh={device_mesh!r})`: pass two numbers, (copies, processes that share each copy),"
            " or a `DeviceMesh`."
        )
    if not hybrid and isinstance(device_mesh, tuple) and len(device_mesh) > 1:
        raise ValueError(
            f"`FSDPStrategy(device_mesh={device_mesh!r})` has copies of the model, {name!r} has none. Add"
            " `sharding_strategy='HYBRID_SHARD'`, or leave the mesh out."
        )
    return (reshard if reshard_after_forward is None else reshard_after_forward), hybrid


def offload_policy(cpu_offload: Offload | None, device_type: str) -> OffloadPolicy:
    """Where parameters are when nothing is computed.

    Args:
        cpu_offload: What the user passed under this name.
        device_type: Where it is computed.

    Returns:
        The policy of `fully_shard`.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

    policy = cpu_offload
    if not isinstance(policy, OffloadPolicy):
        policy = CPUOffloadPolicy() if offloads(cpu_offload) else OffloadPolicy()
    if isinstance(policy, CPUOffloadPolicy) and device_type == "cpu":  # nothing to pin memory for
        policy = dataclasses.replace(policy, pin_memory=False)
    return policy


def offloads(cpu_offload: Offload | None) -> bool:
    """Whether parameters are on the CPU when nothing is computed.

    Args:
        cpu_offload: What the user passed under this name.

    Raises:
        TypeError: If it says nothing.
    """
    if cpu_offload is None or isinstance(cpu_offload, bool):
        return bool(cpu_offload)
    from torch.distributed.fsdp import CPUOffload, OffloadPolicy

    if not isinstance(cpu_offload, (CPUOffload, OffloadPolicy)):
        raise TypeError(
            f"`FSDPStrategy(cpu_offload={cpu_offload!r})`: pass True or False, or"
            " `torch.distributed.fsdp.CPUOffloadPolicy()`."
        )
    return bool(getattr(cpu_offload, "offload_params", hasattr(cpu_offload, "pin_memory")))


def mixed_precision_policy(given: Mixed) -> MixedPrecisionPolicy:
    """What `fully_shard` converts.

    Args:
        given: Its policy, or the settings of the FSDP before it.

    Returns:
        The policy.

    Raises:
        TypeError: For anything else.
        ValueError: For settings that it has not.
    """
    from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

    if isinstance(given, MixedPrecisionPolicy):
        return given
    advice = "Pass `torch.distributed.fsdp.MixedPrecisionPolicy(param_dtype=..., reduce_dtype=...)`"
    if not isinstance(given, MixedPrecision):
        raise TypeError(f"`FSDPStrategy(mixed_precision={given!r})`: {advice[0].lower()}{advice[1:]}.")
    if given.buffer_dtype is not None or given.keep_low_precision_grads:
        raise ValueError(
            f"`FSDPStrategy(mixed_precision={given!r})`: `fully_shard` converts no buffers and no gradients that stay."
            f" {advice}, and convert buffers in the module."
        )
    cast = given.cast_forward_inputs or given.cast_root_forward_inputs
    return MixedPrecisionPolicy(given.param_dtype, given.reduce_dtype, cast_forward_inputs=cast)


def check_policy(name: str, policy: Policy | None) -> None:
    """Raise for a policy that chooses nothing.

    Args:
        name: Of the argument.
        policy: What the user passed.

    Raises:
        TypeError: If it is neither classes of modules nor a function.
    """
    if policy is None or callable(policy) or hasattr(policy, "_run_policy"):
        if not isinstance(policy, type):
            return
    elif isinstance(policy, Collection) and all(isinstance(c, type) and issubclass(c, nn.Module) for c in policy):
        return
    raise TypeError(
        f"`FSDPStrategy({name}={policy!r})`: pass a set of module classes, `{{Block}}`, or a function"
        " `(module, recurse, nonwrapped_numel) -> bool`."
    )


def check_list(name: str, given: object) -> None:
    """Raise for one thing where several are expected.

    Args:
        name: Of the argument.
        given: What the user passed.

    Raises:
        TypeError: If it is no collection, or a module, some of which are.
    """
    if given is not None and (isinstance(given, (nn.Module, Tensor)) or not isinstance(given, Iterable)):
        raise TypeError(f"`FSDPStrategy({name}={given!r})`: pass a list, even of one.")


def choose_modules(root: nn.Module, policy: Policy | None) -> dict[nn.Module, dict[str, Any]]:
    """The modules that a policy chooses.

    Args:
        root: The module, which itself does not count.
        policy: Classes, a function, or one of torch's policies.

    Returns:
        Modules, inner ones first, and the settings that the policy has for each.
    """
    chosen: dict[nn.Module, dict[str, Any]] = {}
    run = getattr(policy, "_run_policy", None)
    if run is not None:
        chosen = run(root, set(), {})
    elif isinstance(policy, Collection):
        chosen = {module: {} for module in root.modules() if isinstance(module, tuple(policy))}
    elif policy is not None:
        _ask(root, cast(Callable[..., bool], policy), chosen)
    # Containers have no forward of their own, so nothing would gather what they hold.
    inner_first = [m for m in reversed(list(root.modules())) if not isinstance(m, (nn.ModuleList, nn.ModuleDict))]
    return {module: chosen[module] for module in inner_first if module in chosen and module is not root}


def without_shared_parameters(
    chosen: Mapping[nn.Module, dict[str, Any]], root: nn.Module
) -> dict[nn.Module, dict[str, Any]]:
    """Leave those modules out that share a parameter with another part of the whole: it is gathered with the root.

    Args:
        chosen: Modules, and the settings for each.
        root: The module that they are parts of.

    Returns:
        The others.
    """
    places = _places(root)
    return {m: own for m, own in chosen.items() if all(n == places[p] for p, n in _places(m).items())}


def _places(root: nn.Module) -> Counter[nn.Parameter]:
    """In how many places each parameter is."""
    return Counter(p for module in root.modules() for p in module.parameters(recurse=False))


def _ask(module: nn.Module, policy: Callable[..., bool], chosen: dict[nn.Module, dict[str, Any]]) -> int:
    """Ask a policy about a module and what is in it; returns the number of elements in what was chosen."""
    elements = sum(parameter.numel() for parameter in module.parameters())
    if not policy(module=module, recurse=True, nonwrapped_numel=elements):
        return 0
    taken = sum(_ask(child, policy, chosen) for child in module.children())
    if policy(module=module, recurse=False, nonwrapped_numel=elements - taken):
        chosen[module] = {}
        return elements
    return taken
