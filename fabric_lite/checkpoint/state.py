"""From objects to what is saved of them, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fabric_lite.utilities.types import _Stateful

Filter = Mapping[str, Callable[[str, Any], bool]]
"""For a name in the state, a function ``(key, value) -> bool`` that says what of its state dict is saved."""


def collect(
    state: Mapping[str, Any],
    filter: Filter,
    module_state: Callable[[nn.Module], Mapping[str, Any]],
    optimizer_state: Callable[[Optimizer], Mapping[str, Any]],
) -> dict[str, Any]:
    """Take the state of the objects that have any; leave plain values as they are.

    Args:
        state: Objects by name.
        filter: What to leave out, by name.
        module_state: Gives the state of a module.
        optimizer_state: Gives the state of an optimizer.

    Returns:
        What is saved, by name.
    """
    collected: dict[str, Any] = {}
    for name, obj in state.items():
        _apply_filter(name, filter, _state_of(obj, module_state, optimizer_state), collected)
    return collected


def restore(
    checkpoint: dict[str, Any],
    state: dict[str, Any],
    strict: bool,
    load_module: Callable[[nn.Module, dict[str, Any]], None],
) -> dict[str, Any]:
    """Give objects their state back, in place; plain values are replaced in the dictionary.

    Args:
        checkpoint: What was saved, by name. It is used up.
        state: Objects by name.
        strict: Whether each name must be in the checkpoint.
        load_module: Gives a module its state back.

    Returns:
        What of the checkpoint no object took.

    Raises:
        KeyError: If a name is missing and ``strict`` is set.
    """
    _validate_keys_for_strict_loading(state, checkpoint, strict=strict)

    for name in [name for name in state if name in checkpoint]:
        state[name] = _restored(state[name], checkpoint.pop(name), strict, load_module)
    return checkpoint


def keep_plain_values(state: Any, restored: Any) -> None:
    """Put the plain values that were restored into the containers that the user passed.

    Args:
        state: A dictionary or list, in which objects with a state of their own stay as they are.
        restored: The same, after `restore`.
    """
    for key in list(state) if isinstance(state, dict) else range(len(state)):
        if isinstance(state[key], (dict, list)) and _holds_state(state[key]):
            keep_plain_values(state[key], restored[key])
        elif not isinstance(state[key], (nn.Module, _Stateful)):
            state[key] = restored[key]


def _state_of(
    obj: Any,
    module_state: Callable[[nn.Module], Mapping[str, Any]],
    optimizer_state: Callable[[Optimizer], Mapping[str, Any]],
) -> Any:
    """What is saved of one object; in plain containers, of each object in it."""
    if isinstance(obj, nn.Module):
        return module_state(obj)
    if isinstance(obj, Optimizer):
        return optimizer_state(obj)
    if isinstance(obj, _Stateful):
        return obj.state_dict()
    if not _holds_state(obj):
        return obj
    if isinstance(obj, dict):
        return {key: _state_of(value, module_state, optimizer_state) for key, value in obj.items()}
    return [_state_of(value, module_state, optimizer_state) for value in obj]


def _restored(obj: Any, saved: Any, strict: bool, load_module: Callable[[nn.Module, dict[str, Any]], None]) -> Any:
    """The object with its state back, or what was saved if it has none of its own."""
    if isinstance(obj, nn.Module):
        load_module(obj, saved)
    elif isinstance(obj, _Stateful):
        obj.load_state_dict(saved)
    elif not _holds_state(obj):
        return saved
    elif isinstance(obj, dict):
        _validate_keys_for_strict_loading(obj, saved, strict=strict)
        for key, value in saved.items():
            obj[key] = _restored(obj[key], value, strict, load_module) if key in obj else value
    else:
        values = [_restored(part, value, strict, load_module) for part, value in zip(obj, saved, strict=True)]
        return values if isinstance(obj, list) else obj
    return obj


def _holds_state(obj: Any) -> bool:
    """Whether a plain container has an object with a state of its own in it."""
    if isinstance(obj, _Stateful) or not isinstance(obj, (dict, list, tuple)):
        return False
    parts = obj.values() if isinstance(obj, dict) else obj
    return any(isinstance(part, (nn.Module, _Stateful)) or _holds_state(part) for part in parts)


def _validate_keys_for_strict_loading(
    requested_keys: Iterable[str], checkpoint_keys: Iterable[str], strict: bool
) -> None:
    """Raise if a name that the user wants is not in the checkpoint."""
    missing = [key for key in requested_keys if key not in checkpoint_keys]
    if strict and missing:
        raise KeyError(
            f"The checkpoint has no {', '.join(map(repr, missing))}; it has {', '.join(map(repr, checkpoint_keys))}."
            " Leave it out of the state, or pass `strict=False` to keep what the state has."
        )


def _apply_filter(key: str, filter: Filter, source_dict: object, target_dict: dict[str, Any]) -> None:
    """Put a state into a dictionary under its name, without what its filter leaves out."""
    if key not in filter or not isinstance(source_dict, Mapping):
        target_dict[key] = source_dict
    elif kept := {name: value for name, value in source_dict.items() if filter[key](name, value)}:
        target_dict[key] = kept


def validate_filter(filter: object, state: Mapping[str, Any]) -> None:
    """Raise if a filter is no dictionary of functions, or names what is not in the state.

    Args:
        filter: What the user passed as filter.
        state: Objects by name.
    """
    if not isinstance(filter, dict):
        raise TypeError(f"`fabric.save(filter={filter!r})`: pass a dictionary from names in the state to functions.")
    if unknown := [name for name in filter if name not in state]:
        raise ValueError(
            f"`fabric.save(filter=...)` names {', '.join(map(repr, unknown))}, but the state has"
            f" {', '.join(map(repr, state))}. Use the names of the state."
        )
    for name, function in filter.items():
        if not callable(function):
            raise TypeError(
                f"`fabric.save(filter={{{name!r}: {function!r}}})`: pass a function `(key, value) -> bool`."
            )
