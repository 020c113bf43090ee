"""What loggers do with hyperparameters and metrics before they write them down."""

from __future__ import annotations

import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor


def _convert_params(params: dict[str, Any] | Namespace | None) -> dict[str, Any]:
    """Hyperparameters as a dict, whichever way they came."""
    if params is None:
        return {}
    return vars(params) if isinstance(params, Namespace) else params


def _sanitize_callable_params(params: dict[str, Any]) -> dict[str, Any]:
    """Replace each callable by what it returns, or by its name where that says more."""
    return {key: _sanitize_callable(value) for key, value in params.items()}


def _sanitize_callable(value: Any) -> Any:
    if inspect.isclass(value):
        return value.__name__
    if not callable(value):
        return value
    try:
        result = value()
    except Exception:  # a function of the user's that needs arguments, or fails in any way of its own
        return getattr(value, "__name__", None)
    return value.__name__ if callable(result) else result


def _flatten_dict(params: Mapping[Any, Any], delimiter: str = "/", parent_key: str = "") -> dict[str, Any]:
    """Flatten nested dicts, namespaces, dataclasses and lists of dicts: ``{"a": {"b": 1}}`` becomes ``{"a/b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{parent_key}{delimiter}{key}" if parent_key else str(key)
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        elif isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, MutableMapping):
            flat.update(_flatten_dict(value, delimiter, name))
        elif isinstance(value, list) and all(isinstance(item, MutableMapping) for item in value):
            for index, item in enumerate(value):
                flat.update(_flatten_dict(item, delimiter, f"{name}/{index}"))
        else:
            flat[name] = value
    return flat


def _sanitize_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which everything but numbers, strings and tensors has become a string."""
    return {key: _sanitize_value(value) for key, value in params.items()}


def _sanitize_value(value: Any) -> Any:
    # who holds a NumPy scalar has imported NumPy
    if (numpy := sys.modules.get("numpy")) and isinstance(value, (numpy.bool_, numpy.integer, numpy.floating)):
        value = value.item()
    return value if type(value) in (bool, int, float, str, Tensor) else str(value)


def _convert_json_serializable(params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which what JSON cannot hold has become a string."""
    return {key: value if _is_json_serializable(value) else str(value) for key, value in params.items()}


def _is_json_serializable(value: Any) -> bool:
    """Whether `json.dumps` takes the value; a list or dict is believed without looking inside."""
    if value is None or isinstance(value, (bool, int, float, str, list, dict)):
        return True
    try:
        json.dumps(value)
    except (TypeError, OverflowError):
        return False
    return True


def _add_prefix(metrics: Mapping[str, Any], prefix: str, separator: str) -> Mapping[str, Any]:
    """The metrics under the names ``{prefix}{separator}{name}``, unchanged if there is no prefix."""
    return {f"{prefix}{separator}{name}": value for name, value in metrics.items()} if prefix else metrics


class _Snapshot(dict[str, Any]):
    """Metrics whose tensors nobody else holds, so that they need no second copy."""


def _snapshot(metrics: Mapping[str, Any]) -> _Snapshot:
    """Copy metrics for later: each tensor is detached and cloned on its device, without waiting for that device.

    Args:
        metrics: Metrics by name; tensors must have one element, dicts and lists may hold more metrics.

    Raises:
        ValueError: If a tensor is not a single number.
    """
    if isinstance(metrics, _Snapshot):
        return metrics
    return _Snapshot((name, _map_tensors(value, _clone, name)) for name, value in metrics.items())


def _to_scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Copy metrics with every tensor as a Python number, read in one transfer per device and dtype.

    Args:
        metrics: Metrics by name; tensors must have one element, dicts and lists may hold more metrics.

    Raises:
        ValueError: If a tensor is not a single number.
    """
    tensors: list[Tensor] = []

    def collect(tensor: Tensor, name: str) -> None:
        tensors.append(_single_number(tensor, name))

    for name, value in metrics.items():
        _map_tensors(value, collect, name)
    numbers = iter(_read(tensors))
    return {name: _map_tensors(value, lambda _, __: next(numbers), name) for name, value in metrics.items()}


def _map_tensors(value: Any, function: Callable[[Tensor, str], Any], name: str) -> Any:
    """Apply the function to each tensor, and the name under which it was found, in a nesting of dicts and lists."""
    if isinstance(value, Tensor):
        return function(value, name)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_map_tensors(item, function, f"{name}.{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _single_number(tensor: Tensor, name: str) -> Tensor:
    if tensor.numel() != 1:
        raise ValueError(
            f"The metric {name!r} is a tensor of shape {tuple(tensor.shape)}, and only a single number can be logged."
            f" Reduce it first, for example with `.mean()`: log({name!r}, value.mean())"
        )
    if tensor.is_meta:
        raise ValueError(
            f"The metric {name!r} is a tensor on the meta device, which has no value to log."
            " Compute it on a real device: model.to(fabric.device)"
        )
    return tensor


def _clone(tensor: Tensor, name: str) -> Tensor:
    return _single_number(tensor, name).detach().clone()


def _read(tensors: Sequence[Tensor]) -> list[Any]:
    """The values of one-element tensors; those of one device and dtype are stacked and fetched together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        # subclasses (DTensor, …) have their own idea of stacking
        alone = () if type(tensor) in (Tensor, torch.nn.Parameter) else (index,)
        groups.setdefault((tensor.device, tensor.dtype, *alone), []).append(index)
    values: list[Any] = [None] * len(tensors)
    for indices in groups.values():
        if len(indices) == 1:
            values[indices[0]] = tensors[indices[0]].item()
            continue
        with torch.no_grad():
            numbers = torch.stack([tensors[index].reshape(()) for index in indices]).tolist()
        for index, number in zip(indices, numbers, strict=True):
            values[index] = number
    return values
