"""What setting up returns: thin wrappers around the user's module, optimizer and dataloader."""

from fabric_lite.wrappers.dataloader import _FabricDataLoader
from fabric_lite.wrappers.module import _FabricModule
from fabric_lite.wrappers.optimizer import _FabricOptimizer
from fabric_lite.wrappers.unwrap import _unwrap_objects, is_wrapped

__all__ = ["_FabricDataLoader", "_FabricModule", "_FabricOptimizer", "_unwrap_objects", "is_wrapped"]
