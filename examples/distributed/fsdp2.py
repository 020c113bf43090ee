"""Each device keeps a part of every block, gathered when it is used: ``python examples/distributed/fsdp2.py``."""

from __future__ import annotations

from text_model import Block
from train import arguments, train

from fabric_lite import Fabric
from fabric_lite.strategies import FSDPStrategy

if __name__ == "__main__":
    options = arguments(__doc__)
    strategy = FSDPStrategy(auto_wrap_policy={Block})
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices, strategy=strategy)
    fabric.launch()
    train(fabric, options.steps)
