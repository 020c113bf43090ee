"""From objects to what is saved of them, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from fabric_lite.checkpoint.fit import LoadModule, check_module, check_optimizer
from fabric_lite.utilities.rank_zero import rank_zero_info
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


def restore(checkpoint: dict[str, Any], state: dict[str, Any], strict: bool, load_module: LoadModule) -> dict[str, Any]:
    """Give objects their state back, in place; plain values are replaced in the dictionary.

    All of it is checked before the first of them changes. Objects that are neither modules nor optimizers, of which
    nothing can be known, come last.

    Args:
        checkpoint: What was saved, by name.
        state: Objects by name.
        strict: Whether each name must be in the checkpoint.
        load_module: Gives a module its state back.

    Returns:
        What of the checkpoint no object took.

    Raises:
        KeyError: If a name is missing and ``strict`` is set.
        RuntimeError: If the state of a module does not fit.
        ValueError: If that of an optimizer, or the length of a list with objects, does not fit.
    """
    _validate_keys_for_strict_loading(state, checkpoint, strict=strict)
    wanted = {name: state[name] for name in state if name in checkpoint}
    pairs = [pair for name, obj in wanted.items() for pair in _pairs(obj, checkpoint[name], f"state[{name!r}]", strict)]

    def load_values() -> None:
        state.update({name: _restored(obj, checkpoint[name]) for name, obj in wanted.items()})

    load_objects(pairs, load_module, load_values)
    if absent := [f"state[{name!r}]" for name in state if name not in wanted]:
        rank_zero_info(f"The checkpoint has no {', '.join(absent)}: left as it was.")
    return {name: value for name, value in checkpoint.items() if name not in wanted}


class Pair(NamedTuple):
    """An object with a state of its own, and what was saved of it.

    Attributes:
        obj: The object.
        saved: What was saved.
        where: What to call it in an error.
    """

    obj: Any
    saved: Any
    where: str


def load_objects(pairs: Iterable[Pair], load_module: LoadModule, load_values: Callable[[], None] | None = None) -> None:
    """Check that what was saved fits, and only then load it.

    Args:
        pairs: The objects, and what was saved of them.
        load_module: Gives a module its state back.
        load_values: Gives plain values back; called before the objects that are neither module nor optimizer.
    """
    modules: list[Pair] = []
    optimizers: list[Pair] = []
    others: list[Pair] = []
    for pair in pairs:
        kind = modules if isinstance(pair.obj, nn.Module) else optimizers if isinstance(pair.obj, Optimizer) else others
        kind.append(pair)
    reports = [(where, check_module(module, saved, where, load_module)) for module, saved, where in modules]
    for optimizer, saved, where in optimizers:
        check_optimizer(optimizer, saved, where)
    for module, saved, _ in modules:
        load_module(module, saved)
    for optimizer, saved, _ in optimizers:
        optimizer.load_state_dict(saved)
    if load_values is not None:
        load_values()
    for obj, saved, _ in others:
        obj.load_state_dict(saved)
    for where, keys in reports:
        if keys:
            rank_zero_info(f"{where} was loaded in part: {', '.join(keys)}.")


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


def _pairs(obj: Any, saved: Any, where: str, strict: bool) -> Iterator[Pair]:
    """The objects with a state of their own, in plain containers, too, with what was saved of each.

    Raises:
        KeyError: If the container that was saved does not have a key, and ``strict`` is set.
        ValueError: If it is another kind of container, or of another length.
    """
    if isinstance(obj, (nn.Module, _Stateful)):
        yield Pair(obj, saved, where)
        return
    if not _holds_state(obj):
        return
    kind: type[Any] | tuple[type[Any], ...] = Mapping if isinstance(obj, dict) else (list, tuple)
    if not isinstance(saved, kind) or (not isinstance(obj, dict) and len(obj) != len(saved)):
        size = "" if isinstance(obj, dict) else f" of {len(obj)}"
        saved_size = f" of {len(saved)}" if isinstance(saved, (dict, list, tuple)) else ""
        raise ValueError(
            f"{where} is a {type(obj).__name__}{size} with objects in it, and the checkpoint has a"
            f" {type(saved).__name__}{saved_size} there. Nothing was loaded. Pass as many objects as were saved."
        )
    if isinstance(obj, dict):
        _validate_keys_for_strict_loading(obj, saved, strict=strict)
    keys: Iterable[Any] = [key for key in obj if key in saved] if isinstance(obj, dict) else range(len(obj))
    for key in keys:
        yield from _pairs(obj[key], saved[key], f"{where}[{key!r}]", strict)


def _restored(obj: Any, saved: Any) -> Any:
    """The object, if it has a state of its own, or what was saved; in plain containers, of each object in it."""
    if isinstance(obj, (nn.Module, _Stateful)):
        return obj
    if not _holds_state(obj):
        return saved
    if isinstance(obj, dict):
        for key, value in saved.items():
            obj[key] = _restored(obj[key], value) if key in obj else value
        return obj
    values = [_restored(part, value) for part, value in zip(obj, saved, strict=True)]
    return values if isinstance(obj, list) else obj


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
