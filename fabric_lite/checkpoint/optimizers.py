"""The two forms of an optimizer's state: parameters by their number, as torch has it, and by their name.

Numbers depend on the order in which the optimizer was given its parameters, names do not: sharded checkpoints have
names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Names = Mapping[int, str]
"""The names of parameters, by their `id`."""


def parameter_names(objects: Any) -> dict[int, str]:
    """The names that parameters have in their modules.

    Args:
        objects: Modules and others, in any nesting of dictionaries, lists and tuples.

    Returns:
        The name of each parameter in the first module that has it, by its `id`.
    """
    names: dict[int, str] = {}
    for module in modules_in(objects):
        for name, parameter in module.named_parameters():
            names.setdefault(id(parameter), name)
    return names


def modules_in(objects: Any) -> Iterator[nn.Module]:
    """The modules among objects.

    Args:
        objects: In any nesting of dictionaries, lists and tuples.
    """
    if isinstance(objects, nn.Module):
        yield objects
    elif isinstance(objects, (dict, list, tuple)):
        for part in objects.values() if isinstance(objects, dict) else objects:
            yield from modules_in(part)


def keys_of(optimizer: Optimizer, names: Names) -> dict[str, Tensor]:
    """The parameters of an optimizer by name, in its order; by number, as text, if names do not tell them apart.

    Args:
        optimizer: The optimizer.
        names: The names of parameters.

    Returns:
        The parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = [names.get(id(parameter)) for parameter in parameters]
    if None in keys or len(set(keys)) < len(keys):
        return {str(number): parameter for number, parameter in enumerate(parameters)}
    return dict(zip(keys, parameters, strict=True))  # type: ignore[arg-type]


def name_parameters(optimizer: Optimizer, names: Names) -> dict[str, Any]:
    """The state of an optimizer, with names of parameters.

    Args:
        optimizer: The optimizer.
        names: The names of parameters.

    Returns:
        The state.
    """
    state = optimizer.state_dict()
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    key = dict(zip(numbers, keys_of(optimizer, names), strict=True))
    groups = [{**group, "params": [key[number] for number in group["params"]]} for group in state["param_groups"]]
    return {**state, "state": {key.get(k, k): slots for k, slots in state["state"].items()}, "param_groups": groups}


def number_parameters(state: Mapping[str, Any], optimizer: Optimizer, names: Names) -> dict[str, Any]:
    """The state of an optimizer, with numbers of parameters.

    Args:
        state: With names or numbers.
        optimizer: Where it goes.
        names: The names of its parameters.

    Returns:
        The state, as `torch.optim.Optimizer.load_state_dict` takes it.

    Raises:
        KeyError: If the names are not those of the optimizer's parameters.
        ValueError: If it has other groups of parameters.
    """
    if not is_named(state):
        return {**state, "state": dict(state.get("state", {}))} if "param_groups" in state else dict(state)
    numbers = {name: number for number, name in enumerate(keys_of(optimizer, names))}
    saved: list[str] = [name for group in state["param_groups"] for name in group["params"]]
    if not any(id(parameter) in names for group in optimizer.param_groups for parameter in group["params"]):
        numbers = {name: number for number, name in enumerate(saved)}  # its module is not there to tell
    if different := sorted(set(saved).symmetric_difference(numbers)):
        raise KeyError(
            f"The checkpoint and `{type(optimizer).__name__}` do not have the same parameters: {_text(different)} are"
            " in one of them only. Make the optimizer from the parameters that it was saved with."
        )
    if len(state["param_groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"The checkpoint has {len(state['param_groups'])} groups of parameters, `{type(optimizer).__name__}` has"
            f" {len(optimizer.param_groups)}. Make the optimizer with the groups that it was saved with."
        )
    following = iter(range(len(numbers)))
    groups = [
        {**group, "params": [next(following) for _ in own["params"]]}
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    slots = {numbers[name]: values for name, values in state.get("state", {}).items()}
    return {**state, "state": slots, "param_groups": groups}


def number_as_they_come(checkpoint: Any) -> Any:
    """Give numbers to the parameters of all optimizers in a checkpoint, in the order of their groups.

    Args:
        checkpoint: Any nesting of dictionaries and lists.

    Returns:
        The same, with the states of optimizers as torch has them.
    """
    if isinstance(checkpoint, list):
        return [number_as_they_come(part) for part in checkpoint]
    if not isinstance(checkpoint, dict):
        return checkpoint
    if not is_named(checkpoint):
        return {name: number_as_they_come(part) for name, part in checkpoint.items()}
    following = count()
    number = {name: next(following) for group in checkpoint["param_groups"] for name in group["params"]}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in checkpoint["param_groups"]]
    slots = {number[name]: values for name, values in checkpoint.get("state", {}).items()}
    return {**checkpoint, "state": slots, "param_groups": groups}


def for_optimizers(saved: Any, objects: Any, convert: Callable[[Optimizer, Any], Any]) -> Any:
    """Convert what was saved of optimizers.

    Args:
        saved: What was saved.
        objects: Of which objects, in any nesting of dictionaries, lists and tuples.
        convert: Gets an optimizer and what was saved of it.

    Returns:
        What was saved; a copy where something was converted.
    """
    if isinstance(objects, Optimizer):
        return convert(objects, saved) if isinstance(saved, Mapping) else saved
    if isinstance(objects, dict) and isinstance(saved, dict):
        both = [key for key in objects if key in saved]
        return {**saved, **{key: for_optimizers(saved[key], objects[key], convert) for key in both}}
    if isinstance(objects, (list, tuple)) and isinstance(saved, (list, tuple)) and len(objects) == len(saved):
        parts = [for_optimizers(*pair, convert) for pair in zip(saved, objects, strict=True)]
        return saved if all(map(operator.is_, parts, saved)) else parts
    return saved


def is_named(state: Any) -> bool:
    """Whether something is the state of an optimizer with names of parameters.

    Args:
        state: Anything.
    """
    groups = state.get("param_groups") if isinstance(state, dict) else None
    return isinstance(groups, list) and any(
        isinstance(key, str) for group in groups if isinstance(group, dict) for key in group.get("params", ())
    )


def _text(names: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
