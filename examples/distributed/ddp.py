"""A copy of the model on each device. Run it with ``python examples/distributed/ddp.py``."""

from __future__ import annotations

from train import arguments, train

from fabric_lite import Fabric

if __name__ == "__main__":
    options = arguments(__doc__)
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices, strategy="ddp")
    fabric.launch()
    train(fabric, options.steps)
