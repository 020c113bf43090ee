"""Telling what was set up, and taking the wrappers off."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from fabric_lite.utilities.compiled import unwrap_compiled
from fabric_lite.utilities.types import _Stateful
from fabric_lite.wrappers.dataloader import _FabricDataLoader
from fabric_lite.wrappers.module import _FabricModule
from fabric_lite.wrappers.optimizer import _FabricOptimizer


def _unwrap_objects(collection: Any, dataloaders: bool = True) -> Any:
    """Take the wrappers off everything in dictionaries, lists and tuples; other objects stay the same ones.

    Args:
        collection: Any nesting.
        dataloaders: Whether to take them off dataloaders, too; for a checkpoint, they know the position in the epoch.
    """
    if isinstance(collection, _FabricOptimizer):
        return collection.optimizer
    if isinstance(collection, _FabricDataLoader):
        return collection._dataloader if dataloaders else collection
    if isinstance(collection, nn.Module):
        module, _ = unwrap_compiled(collection)
        return unwrap_compiled(module._forward_module)[0] if isinstance(module, _FabricModule) else collection
    if isinstance(collection, _Stateful) or not isinstance(collection, (dict, list, tuple)):
        return collection
    keys = list(collection) if isinstance(collection, dict) else range(len(collection))
    unwrapped = [_unwrap_objects(collection[key], dataloaders) for key in keys]
    if all(collection[key] is value for key, value in zip(keys, unwrapped, strict=True)):
        return collection
    if isinstance(collection, tuple):
        return type(collection)(*unwrapped) if hasattr(collection, "_fields") else type(collection)(unwrapped)
    copied = copy.copy(collection)
    for key, value in zip(keys, unwrapped, strict=True):
        copied[key] = value
    return copied


def is_wrapped(obj: object) -> bool:
    """Whether an object was set up by `Fabric`.

    Args:
        obj: A module (compiled or not), an optimizer, a dataloader, or anything else.
    """
    return isinstance(unwrap_compiled(obj)[0], (_FabricModule, _FabricOptimizer, _FabricDataLoader))
