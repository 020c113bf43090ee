"""`Fabric`: the same loop on a CPU, a GPU or a cluster."""

from fabric_lite.fabric.fabric import Fabric
from fabric_lite.wrappers import _FabricDataLoader, _FabricModule, _FabricOptimizer

# Lightning Fabric's users look for the wrappers here, too.
__all__ = ["Fabric", "_FabricDataLoader", "_FabricModule", "_FabricOptimizer"]
