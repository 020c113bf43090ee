"""Parameters, gradients and optimizer states spread over processes: torch's `fully_shard` (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from typing_extensions import override

from fabric_lite.accelerators import Accelerator
from fabric_lite.plugins.environments import ClusterEnvironment
from fabric_lite.plugins.precision import Precision
from fabric_lite.plugins.precision.by_name import precision_by_name
from fabric_lite.plugins.precision.fsdp import FSDPPrecision
from fabric_lite.plugins.precision.precision import _PRECISION_INPUT_STR
from fabric_lite.strategies import fsdp_options as options
from fabric_lite.strategies.capabilities import _Sharded
from fabric_lite.strategies.mesh import Topology, sharding_topology
from fabric_lite.strategies.registry import _StrategyRegistry
from fabric_lite.strategies.sharded import _ShardedBackwardSyncControl, _ShardedStrategy
from fabric_lite.utilities.rank_zero import rank_zero_deprecation

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy


class FSDPStrategy(_ShardedStrategy, _Sharded):
    """Spreads parameters, gradients and optimizer states over processes, which gather parameters while they need them.

    Args:
        accelerator: The hardware; `Fabric` chooses if there is none.
        parallel_devices: The devices of the processes on this machine.
        cluster_environment: Where the processes find each other.
        precision: How numbers are represented: an `FSDPPrecision`.
        process_group_backend: Of `torch.distributed`; by default the one for the devices (gloo for the CPU).
        timeout: How long a process waits for the others: by default, 30 minutes. None for torch's default.
        cpu_offload: Whether parameters, gradients and optimizer states are on the CPU when nothing is computed; or
            torch's `CPUOffloadPolicy`.
        mixed_precision: torch's `MixedPrecisionPolicy`; by default what ``Fabric(precision=...)`` says.
        auto_wrap_policy: Which modules are gathered one by one: their classes, ``{Block}``, or a function ``(module,
            recurse, nonwrapped_numel) -> bool``. The rest is gathered with the module as a whole.
        activation_checkpointing: The former name of ``activation_checkpointing_policy``.
        activation_checkpointing_policy: Which modules compute their activations again in the backward, and do not keep
            them: chosen in the same way.
        sharding_strategy: ``"FULL_SHARD"``; ``"SHARD_GRAD_OP"``, to keep gathered parameters until the backward;
            ``"HYBRID_SHARD"``, for a copy on each machine.
        state_dict_type: How `Fabric.save` writes: ``"sharded"``, a folder with the shards of each process, or
            ``"full"``, one file.
        device_mesh: With ``"HYBRID_SHARD"``, (copies, processes that share each of them); or a `DeviceMesh`.
        reshard_after_forward: See `torch.distributed.fsdp.fully_shard`.
        shard_placement_fn: See `torch.distributed.fsdp.fully_shard`.
        ignored_modules: Modules that each process keeps whole, whose gradients are not averaged.
        ignored_states: The same for parameters or modules.
        sync_module_states: Whether a module gets the values that it has in the first process before it is sharded.
        **kwargs: The other arguments of the FSDP that Lightning Fabric uses: those values are taken that ask for what
            `fully_shard` does anyway.

    Raises:
        TypeError: For an argument that there is not.
        ValueError: For one that `fully_shard` has no counterpart of; the error says what to use.
    """

    _to_save_one_file = "state_dict_type='full'"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        cpu_offload: options.Offload | None = None,
        mixed_precision: options.Mixed | None = None,
        auto_wrap_policy: options.Policy | None = None,
        activation_checkpointing: type[nn.Module] | list[type[nn.Module]] | None = None,
        activation_checkpointing_policy: options.Policy | None = None,
        sharding_strategy: options.Sharding = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "sharded",
        device_mesh: tuple[int, ...] | DeviceMesh | None = None,
        *,
        reshard_after_forward: bool | int | None = None,
        shard_placement_fn: Any | None = None,
        ignored_modules: Iterable[nn.Module] | None = None,
        ignored_states: Iterable[nn.Parameter | nn.Module] | None = None,
        sync_module_states: bool = True,
        **kwargs: Any,
    ) -> None:
        options.check_former(kwargs)
        options.offloads(cpu_offload)  # raises if it says nothing
        options.check_list("ignored_modules", ignored_modules)
        options.check_list("ignored_states", ignored_states)
        options.check_policy("auto_wrap_policy", auto_wrap_policy)
        options.check_policy("activation_checkpointing_policy", activation_checkpointing_policy)
        if state_dict_type not in ("full", "sharded"):
            raise ValueError(f"`FSDPStrategy(state_dict_type={state_dict_type!r})`: choose 'full' or 'sharded'.")
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            precision=precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.cpu_offload = cpu_offload
        self.mixed_precision = None if mixed_precision is None else options.mixed_precision_policy(mixed_precision)
        self.sharding_strategy = sharding_strategy
        self._reshard, self._hybrid = options.resharding(sharding_strategy, reshard_after_forward, device_mesh)
        self._shape = device_mesh if isinstance(device_mesh, tuple) else None
        self._device_mesh = None if isinstance(device_mesh, tuple) else device_mesh
        self._policy = auto_wrap_policy
        self._recomputed = _former_checkpointing(activation_checkpointing, activation_checkpointing_policy)
        self._placement = shard_placement_fn
        self._ignored = [*(ignored_modules or ()), *(ignored_states or ())]
        self._saves_shards = state_dict_type == "sharded"
        self._sync_module_states = sync_module_states
        self._backward_sync_control = _ShardedBackwardSyncControl()

    @property
    @override
    def topology(self) -> Topology:
        shape = self._shape if self._device_mesh is None else tuple(self._device_mesh.shape)
        return sharding_topology(self.world_size, self.num_nodes, self._hybrid, shape)

    @override
    def setup_environment(self) -> None:
        device = self.root_device.type
        if self._process_group_backend is None and device != "cpu" and options.offloads(self.cpu_offload):
            from fabric_lite.utilities.distributed import _get_default_process_group_backend_for_device

            # What is on the CPU is also clipped and saved there.
            backend = _get_default_process_group_backend_for_device(self.root_device)
            self._process_group_backend = f"cpu:gloo,{device}:{backend}"
        super().setup_environment()

    # -- precision -----------------------------------------------------------------------------------------------

    @property
    @override
    def precision(self) -> FSDPPrecision:
        """How numbers are represented."""
        if self._precision is None:
            self._precision = FSDPPrecision("32-true")
        return cast(FSDPPrecision, self._precision)

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        if precision is not None and not isinstance(precision, FSDPPrecision):
            raise TypeError(
                f"`FSDPStrategy` got the precision {precision!r}. Write `Fabric(precision={precision.precision!r})`, or"
                " pass an `FSDPPrecision`."
            )
        self._precision = precision
        self.has_plain_precision = precision is None or precision.precision == "32-true"

    @override
    def make_precision(self, name: _PRECISION_INPUT_STR, device_type: str) -> Precision:
        if name == "16-mixed":  # on a CPU it is another one
            name = precision_by_name(name, device_type).precision
        return FSDPPrecision(cast(Any, name), device=device_type)

    @property
    def mixed_precision_config(self) -> MixedPrecisionPolicy:
        """What `fully_shard` converts."""
        return self.mixed_precision or self.precision.mixed_precision_config

    # -- modules -------------------------------------------------------------------------------------------------

    @property
    @override
    def _memory(self) -> torch.device:
        return torch.device("cpu") if options.offloads(self.cpu_offload) else self.root_device

    @override
    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Under it, `torch.distributed.fsdp.wrap.wrap` shards a module at once."""
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.fsdp.wrap import enable_wrap

        return cast(AbstractContextManager[Any], enable_wrap(wrapper_cls=fully_shard, **self._fully_shard_kwargs()))

    def _fully_shard_kwargs(self) -> dict[str, Any]:
        return {
            "mesh": self.device_mesh,
            "reshard_after_forward": self._reshard,
            "shard_placement_fn": self._placement,
            "mp_policy": self.mixed_precision_config,
            "offload_policy": options.offload_policy(self.cpu_offload, self.root_device.type),
        }

    @override
    def _shard(self, module: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        for part in options.choose_modules(module, self._recomputed):
            _recompute(part)
        kwargs = self._fully_shard_kwargs()
        ignored = {p for each in self._ignored for p in ([each] if isinstance(each, Tensor) else each.parameters())}
        chosen = options.choose_modules(module, self._policy)
        if kwargs["mp_policy"].param_dtype is not None:
            # Their statistics are kept in 32 bits, which their parameters have to have, too.
            whole = MixedPrecisionPolicy(cast_forward_inputs=False)
            norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m is not module]
            chosen = {**{norm: {"mp_policy": whole} for norm in norms}, **chosen}
        for part, own in [*options.without_shared_parameters(chosen, module).items(), (module, {})]:
            if isinstance(part, FSDPModule) or (part is not module and ignored.issuperset(part.parameters())):
                continue  # sharded by the user, or nothing to shard
            fully_shard(part, **{**kwargs, "ignored_params": ignored or None, **own})
        for parameter in ignored:
            parameter.data = parameter.data.to(self.root_device)
        return module

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        strategy_registry.register(
            "fsdp", cls, description="Parameters, gradients and optimizer states sharded (FSDP2)"
        )
        strategy_registry.register(
            "fsdp_cpu_offload",
            cls,
            description="FSDP2, parameters, gradients and optimizer states on the CPU when nothing is computed",
            cpu_offload=True,
        )


@contextmanager
def fsdp_overlap_step_with_backward(
    optimizers: Optimizer | Iterable[Optimizer], fabric_module: nn.Module
) -> Iterator[None]:
    """Under it, each optimizer makes its step during the backward, as soon as its parameters have their gradients.

    The gradients go right after the step, so that those of all parameters are never there at the same time. It takes
    several optimizers, for the parts of the module, to be of use, and it leaves nothing to clip:

        with fsdp_overlap_step_with_backward(optimizers, model):
            fabric.backward(loss)

    Args:
        optimizers: One or more, as `Fabric.setup` returned them.
        fabric_module: The module whose parameters they have, as `Fabric.setup` returned it.

    Raises:
        ValueError: If an optimizer has parameters that are not in the module.
    """
    several = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    parameters = set(fabric_module.parameters())
    waiting: list[set[Tensor]] = []
    handles = []

    def arrived(parameter: Tensor, index: int) -> None:
        waiting[index].discard(parameter)
        if not waiting[index]:
            several[index].step()
            several[index].zero_grad()

    try:
        for index, optimizer in enumerate(several):
            own = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
            if not own <= parameters:
                raise ValueError(
                    f"`fsdp_overlap_step_with_backward` got a `{type(optimizer).__name__}` with parameters that are not"
                    " in the module. Pass what `model, optimizer = fabric.setup(model, optimizer)` returned."
                )
            waiting.append(own)
            handles += [p.register_post_accumulate_grad_hook(partial(arrived, index=index)) for p in own]
        yield
    finally:
        for handle in handles:
            handle.remove()
    for index, optimizer in enumerate(several):
        if waiting[index] and any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            optimizer.step()  # some parameters took no part in the loss
            optimizer.zero_grad()


def _former_checkpointing(
    former: type[nn.Module] | list[type[nn.Module]] | None, policy: options.Policy | None
) -> options.Policy | None:
    """The policy, or what the argument before it said."""
    if former is None:
        return policy
    classes = set(former) if isinstance(former, (list, tuple, set)) else {former}
    if policy is not None:
        raise ValueError(
            "`FSDPStrategy(activation_checkpointing=..., activation_checkpointing_policy=...)`: the latter has taken"
            " the place of the former. Leave the former out."
        )
    names = ", ".join(getattr(each, "__name__", repr(each)) for each in classes)
    rank_zero_deprecation(
        "`FSDPStrategy(activation_checkpointing=...)` is deprecated. Write"
        f" `FSDPStrategy(activation_checkpointing_policy={{{names}}})`.",
        stacklevel=6,
    )
    options.check_policy("activation_checkpointing", classes)
    return classes


def _recompute(module: nn.Module) -> None:
    """Let a module compute its activations again in the backward. Names and structure stay as they are."""
    from torch.utils.checkpoint import checkpoint

    if "forward" not in module.__dict__:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
