"""Making modules without initialising them, and initialising them later."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from fabric_lite.utilities.distributed import _is_dtensor
from fabric_lite.utilities.rank_zero import rank_zero_warn
from fabric_lite.utilities.types import _DEVICE


class _EmptyInit(TorchFunctionMode):
    """While active, the functions of `torch.nn.init` leave their tensor as it is.

    For a model whose weights are loaded from a checkpoint right after it was made.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.enabled and getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _materialize(module: Module, device: _DEVICE) -> None:
    """Give a module's own parameters and buffers memory on a device, and their initial values."""
    _validate_reset_parameters(module)
    module.to_empty(device=device, recurse=False)
    module.reset_parameters()  # type: ignore[operator]


def _validate_reset_parameters(module: Module) -> None:
    """Raise if nothing can give a module's parameters their initial values."""
    if not callable(getattr(module, "reset_parameters", None)):
        name = type(module).__name__
        raise TypeError(
            f"{name} has parameters or buffers on the meta device, and no method that gives them their initial values."
            f" Write a method `reset_parameters(self)` in {name}."
        )


def _materialize_meta_tensors(module: Module, device: _DEVICE) -> None:
    """Give all tensors of a module that are on the meta device memory and initial values; tied ones stay tied."""
    tied = _tied_meta_parameters(module)
    empty = [child for child in module.modules() if _has_meta_device_parameters_or_buffers(child, recurse=False)]
    for submodule in empty:
        _validate_reset_parameters(submodule)  # all of them, before any has changed
    for submodule in empty:
        _materialize(submodule, device)
    for places in tied:
        # Had they been tied when they were initialised, the last initialisation would be what is left.
        owner, name = places[-1]
        for other, other_name in places[:-1]:
            setattr(other, other_name, getattr(owner, name))


def _tied_meta_parameters(module: Module) -> list[list[tuple[Module, str]]]:
    """For each meta parameter that several modules share: these modules, and its name in them."""
    places: dict[Parameter, list[tuple[Module, str]]] = defaultdict(list)
    for submodule in module.modules():
        for name, parameter in submodule._parameters.items():
            if parameter is not None and parameter.is_meta:
                places[parameter].append((submodule, name))
    return [group for group in places.values() if len(group) > 1]


def _materialize_distributed_module(module: Module, device: torch.device) -> None:
    """Give memory and initial values to the meta tensors of a module whose parameters may be sharded.

    Sharded parameters get the values that they would have if they were whole, those of the first process.
    """
    empty = [child for child in module.modules() if _has_meta_device_parameters_or_buffers(child, recurse=False)]
    if not empty:
        return
    # On the root, as sharded parameters must not be exchanged one module at a time.
    module._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    )
    uninitialized = set()
    for submodule in empty:
        reset_parameters = getattr(submodule, "reset_parameters", None)
        if callable(reset_parameters):
            with _whole_parameters(submodule, device):
                reset_parameters()
        else:
            uninitialized.add(type(submodule).__name__)
    if uninitialized:
        rank_zero_warn(
            "These modules have no method `reset_parameters(self)`, so their parameters and buffers hold whatever was"
            f" in memory: {', '.join(sorted(uninitialized))}. Write the method, or load a checkpoint before using them."
        )


@contextmanager
def _whole_parameters(module: Module, device: torch.device) -> Iterator[None]:
    """Under it, a module's own sharded parameters are whole; afterwards the shards have the values that these got."""
    sharded = {name: p for name, p in module._parameters.items() if p is not None and _is_dtensor(p)}
    for name, parameter in sharded.items():
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        module._parameters[name] = Parameter(whole, requires_grad=parameter.requires_grad)
    try:
        yield
        from torch.distributed.tensor import distribute_tensor

        for name, parameter in sharded.items():
            whole = cast(Tensor, module._parameters[name]).detach()
            torch.distributed.broadcast(whole, 0)
            spread = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.detach().copy_(spread)
    finally:
        module._parameters.update(cast(dict[str, Parameter], sharded))


def _has_meta_device_parameters_or_buffers(obj: Module | Optimizer, recurse: bool = True) -> bool:
    """Whether any tensor of a module, or any parameter of an optimizer, is on the meta device."""
    if isinstance(obj, Optimizer):
        parameters = chain.from_iterable(group["params"] for group in obj.param_groups)
        return any(p.is_meta for p in parameters if isinstance(p, Parameter))
    if isinstance(obj, Module):
        return any(t.is_meta for t in _own_tensors(obj, recurse))
    raise TypeError(f"Expected a `torch.nn.Module` or a `torch.optim.Optimizer`, got a {type(obj).__name__}.")


def _own_tensors(module: Module, recurse: bool = False) -> chain[Tensor]:
    return chain(module.parameters(recurse), module.buffers(recurse))
