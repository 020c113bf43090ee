"""A training script as people write it for Lightning Fabric. The test beside it runs it as it is, and renamed."""

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.loggers import CSVLogger
from lightning.fabric.utilities import AttributeDict, rank_zero_only
from lightning.fabric.utilities.throughput import measure_flops
from lightning.fabric.wrappers import _FabricModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Printer:
    def on_train_batch_end(self, loss, step):
        print("batch", step, repr(loss.item()))

    def on_epoch_end(self, epoch, **metrics):
        print("epoch", epoch, {name: repr(value) for name, value in metrics.items()})


@rank_zero_only
def report(*values):
    print(*values)


def evaluate(fabric: Fabric, model: _FabricModule, loader: DataLoader) -> float:
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(dim=1) == y).float().mean() for x, y in loader]
    model.train()
    return fabric.all_reduce(torch.stack(right).mean()).item()


def main(fabric: Fabric, folder: Path, config: AttributeDict) -> None:
    x = torch.randn(48, 8)
    data = TensorDataset(x, (x.sum(dim=1) > 0).long())
    loader, validation = fabric.setup_dataloaders(
        DataLoader(data, batch_size=config.batch_size, shuffle=True), DataLoader(data, batch_size=48)
    )
    with fabric.init_module():
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    model, optimizer = fabric.setup(model, optimizer)
    state = AttributeDict(model=model, optimizer=optimizer, scheduler=scheduler, config=dict(config), step=0)
    fabric.print(model.__class__.__name__, isinstance(model, _FabricModule), isinstance(optimizer, torch.optim.AdamW))
    fabric.print("flops", measure_flops(model, lambda: model(x[:4])))
    for epoch in range(config.epochs):
        for i, (inputs, target) in enumerate(loader):
            accumulating = i % 2 == 0
            with fabric.no_backward_sync(model, enabled=accumulating):
                loss = nn.functional.cross_entropy(model(inputs), target)
                fabric.backward(loss / 2)
            if not accumulating:
                norm = fabric.clip_gradients(model, optimizer, max_norm=0.5)
                optimizer.step()
                optimizer.zero_grad()
                fabric.log_dict({"loss": loss, "norm": norm}, step=state.step)
            state.step += 1
            fabric.call("on_train_batch_end", loss=loss, step=state.step, epoch=epoch, batch=(inputs, target))
        scheduler.step()
        accuracy = evaluate(fabric, model, validation)
        fabric.call("on_epoch_end", epoch=epoch, accuracy=accuracy, lr=optimizer.param_groups[0]["lr"])
        fabric.save(folder / f"epoch-{epoch}.ckpt", state)
    fabric.load(folder / "epoch-0.ckpt", state)
    report("back at step", state.step, repr(evaluate(fabric, model, validation)))
    fabric.save(folder / "weights.ckpt", {"model": model}, filter={"model": lambda name, value: "bias" not in name})
    fabric.logger.finalize("success")


if __name__ == "__main__":
    seed_everything(42, workers=True, verbose=False)
    output = Path(sys.argv[1])
    fabric = Fabric(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed",
        callbacks=[Printer()],
        loggers=CSVLogger(output, name="log"),
    )
    fabric.launch(main, output, AttributeDict(lr=0.01, epochs=2, batch_size=12))
