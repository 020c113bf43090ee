"""The training loop that the three scripts beside it share: it does not know by which strategy it runs."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from text_model import Characters, Transformer
from torch.utils.data import DataLoader

from fabric_lite import Fabric


def arguments(description: str) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    return parser.parse_args()


def train(fabric: Fabric, steps: int) -> float:
    """Train the transformer, and return its loss on text that it has not seen, in nats per character."""
    fabric.seed_everything(0, verbose=False)
    with fabric.init_module():
        model = Transformer()
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-3))
    training = fabric.setup_dataloaders(DataLoader(Characters(training=True), batch_size=16, shuffle=True))
    validation = fabric.setup_dataloaders(DataLoader(Characters(training=False), batch_size=64))

    step = 0
    while step < steps:
        for characters, following in training:
            loss = F.cross_entropy(model(characters), following.flatten())
            optimizer.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            step += 1
            if step % 50 == 0:
                fabric.print(f"step {step}: {fabric.all_reduce(loss.detach()).item():.3f}")
            if step == steps:
                break

    with torch.no_grad():
        losses = [F.cross_entropy(model(xs), ys.flatten()) for xs, ys in validation]
    final = fabric.all_reduce(torch.stack(losses).mean()).item()
    fabric.print(f"{fabric.world_size} processes, {type(fabric.strategy).__name__}: validation loss {final:.3f}")
    return final
