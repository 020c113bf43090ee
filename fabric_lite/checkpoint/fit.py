"""Whether what was saved fits an object, found out without changing the object."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from fabric_lite.utilities.distributed import _is_dtensor

LoadModule = Callable[[nn.Module, dict[str, Any]], None]


def check_module(module: nn.Module, saved: Any, where: str, load_module: LoadModule) -> list[str]:
    """Load what was saved into a likeness of a module that has no memory, so that all of its own rules apply.

    Args:
        module: The module.
        saved: What was saved of it.
        where: What to call it in an error.
        load_module: Gives a module its state back.

    Returns:
        The keys that are missing in what was saved, and those that are left over: what loading admits.

    Raises:
        RuntimeError: If it does not fit.
    """
    incompatible: list[Any] = []
    memo: dict[int, nn.Module] = {}
    likeness = _likeness(module, memo)
    if likeness is None:
        return _compare(module, saved, where)
    for part in memo.values():
        part._load_state_dict_post_hooks[-1] = lambda _, keys: incompatible.append(keys)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter", UserWarning)
            load_module(likeness, _unsharded(saved))
    except RuntimeError as error:
        raise RuntimeError(f"{where} does not fit the checkpoint, and nothing was loaded. {error}") from error
    keys = incompatible[-1] if incompatible else ((), ())
    return [*(f"{key!r} is missing" for key in keys[0]), *(f"{key!r} is left over" for key in keys[1])]


def _compare(module: nn.Module, saved: Any, where: str) -> list[str]:
    """Compare the shapes of a module that has no likeness with those that were saved.

    Raises:
        RuntimeError: If one differs.
    """
    if any(is_lazy(parameter) for parameter in module.parameters()) or not isinstance(saved, Mapping):
        return []
    own = module.state_dict()
    shapes = {
        key: (getattr(value, "shape", None), getattr(own.get(key), "shape", None)) for key, value in saved.items()
    }
    different = [
        f"{key!r} has the shape {tuple(there)} in the checkpoint, and {tuple(here)} in the module"
        for key, (there, here) in shapes.items()
        if there is not None and here is not None and there != here and (there.numel(), here.numel()) != (1, 1)
    ]
    if different:
        raise RuntimeError(f"{where} does not fit the checkpoint, and nothing was loaded: {'; '.join(different)}.")
    return []


def _likeness(module: nn.Module, memo: dict[int, nn.Module]) -> nn.Module | None:
    """A module of the same parts and settings with parameters and buffers on the device "meta".

    None if there can be none: of a scripted module, or of one with parameters that have no shape yet. What is sharded
    has the shape of the whole.
    """
    if id(module) in memo:
        return memo[id(module)]
    if isinstance(module, torch.jit.ScriptModule):
        return None
    own = [*module._parameters.values(), *module._buffers.values()]
    if not all(tensor is None or _is_plain(tensor) for tensor in own):
        return None
    copied: nn.Module = object.__new__(type(module))
    memo[id(module)] = copied
    vars(copied).update(
        vars(module),
        _load_state_dict_post_hooks=OrderedDict(module._load_state_dict_post_hooks),
        _parameters={
            name: None if p is None else nn.Parameter(_empty(p), False) for name, p in module._parameters.items()
        },
        _buffers={name: None if b is None else _empty(b) for name, b in module._buffers.items()},
    )
    parts = {name: None if part is None else _likeness(part, memo) for name, part in module._modules.items()}
    if any(parts[name] is None for name, part in module._modules.items() if part is not None):
        return None
    vars(copied)["_modules"] = parts
    return copied


def _is_plain(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) or _is_dtensor(tensor)
    return plain and not is_lazy(tensor) and not tensor.is_quantized


def _unsharded(saved: Any) -> Any:
    """The same, without the values of what is sharded, which do not go together with tensors that are not."""
    if not isinstance(saved, Mapping) or not any(map(_is_dtensor, saved.values())):
        return saved
    return {name: _empty(value) if _is_dtensor(value) else value for name, value in saved.items()}


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def check_optimizer(optimizer: Optimizer, saved: Any, where: str) -> None:
    """Compare the parameter groups of an optimizer with those that were saved.

    Args:
        optimizer: The optimizer. Of one with its own way of loading nothing is known.
        saved: What was saved of it.
        where: What to call it in an error.

    Raises:
        KeyError: If no groups were saved.
        ValueError: If there are others.
    """
    own_way = type(optimizer).load_state_dict is not Optimizer.load_state_dict
    if own_way or getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", None):
        return
    if not isinstance(saved, Mapping) or "param_groups" not in saved:
        raise KeyError(
            f"{where} is an optimizer, and what the checkpoint has under its name was not saved of one: 'param_groups'"
            " is missing. Nothing was loaded."
        )
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != saved_sizes:
        raise ValueError(
            f"{where} does not fit the checkpoint, and nothing was loaded: the optimizer's parameter groups have"
            f" {_listed(sizes)} parameters, those that were saved {_listed(saved_sizes)}. Make it from the same model,"
            " with the same groups."
        )


def _listed(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes)) or "no"
