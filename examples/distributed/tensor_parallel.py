"""The matrices of a block are spread over devices: ``python examples/distributed/tensor_parallel.py``.

With four devices, two pairs of them share the data, and the two of a pair share each matrix.
"""

from __future__ import annotations

from text_model import Transformer
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from train import arguments, train

from fabric_lite import Fabric
from fabric_lite.strategies import ModelParallelStrategy


def parallelize(model: Transformer, device_mesh: DeviceMesh) -> Transformer:
    """Split the blocks over one dimension of the mesh, and shard what is left over the other."""
    plan = {
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.out": RowwiseParallel(),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }
    for block in model.blocks:
        parallelize_module(block, device_mesh["tensor_parallel"], plan)
    for block in model.blocks:
        fully_shard(block, mesh=device_mesh["data_parallel"])
    return fully_shard(model, mesh=device_mesh["data_parallel"])


if __name__ == "__main__":
    options = arguments(__doc__)
    strategy = ModelParallelStrategy(parallelize, tensor_parallel_size=2)
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices, strategy=strategy)
    fabric.launch()
    train(fabric, options.steps)
