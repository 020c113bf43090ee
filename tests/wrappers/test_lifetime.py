"""A Fabric that goes out of scope frees all that it held at once, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from fabric_lite import Fabric
from fabric_lite.plugins import MixedPrecision


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))

    def training_step(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self(x).square().sum()}

    def count(self) -> int:
        return len(list(self.parameters()))


class Callback:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def on_train_batch_end(self, loss: Tensor, **kwargs: Any) -> None:
        self.kept.append(loss)

    def on_after_optimizer_step(self, optimizer: Any) -> None:
        self.kept.append(optimizer)


class Log:
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.last = metrics


class Everything:
    """All the objects of a run. What is added is not kept alive."""

    def __init__(self) -> None:
        self.alive: dict[str, weakref.ref[Any]] = {}

    def add(self, **objects: Any) -> None:
        self.alive.update({name: weakref.ref(each) for name, each in objects.items()})

    @property
    def left(self) -> list[str]:
        return [name for name, ref in self.alive.items() if ref() is not None]


@pytest.fixture
def everything() -> Iterator[Everything]:
    # The first step of an optimizer makes torch import its compiler, which keeps the frames of that moment alive.
    torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1).step()
    gc.collect()
    gc.disable()
    try:
        yield Everything()
    finally:
        gc.enable()


MAKE: dict[str, Callable[..., Fabric]] = {
    name: lambda name=name, **kwargs: Fabric(accelerator="cpu", devices=1, precision=name, **kwargs)
    for name in ("32-true", "64-true", "bf16-true", "bf16-mixed")
}
MAKE["16-mixed"] = lambda **kwargs: Fabric(
    accelerator="cpu",
    devices=1,
    plugins=MixedPrecision("16-mixed", device="cpu", scaler=GradScaler("cpu", init_scale=2.0)),
    **kwargs,
)


def train(fabric: Fabric, everything: Everything, scheduled: str | None = None) -> tuple[Any, Any, Any]:
    net = Net()
    bare = torch.optim.Adam(net.parameters())
    own: DataLoader[Any] = DataLoader([torch.ones(1), torch.zeros(1)] * 2, batch_size=2, shuffle=True)
    model, optimizer = fabric.setup(net, bare)
    loader = fabric.setup_dataloaders(own)
    everything.add(net=net, bare=bare, own=own, model=model, optimizer=optimizer, loader=loader)
    everything.add(fabric=fabric, strategy=fabric.strategy, precision=fabric._precision, parameter=net.layer.weight)
    scheduler = None
    if scheduled is not None:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer if scheduled == "wrapped" else bare, 1)
        everything.add(scheduler=scheduler)
    for step, x in enumerate(loader):
        optimizer.zero_grad()
        loss = model(x).square().sum() if step else model.training_step(x)["loss"]
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        fabric.log("loss", loss)
        fabric.call("on_train_batch_end", loss=loss.detach(), fabric=fabric)
        everything.add(**{f"loss {step}": loss, f"x {step}": x})
    model.count()
    return model, optimizer, loader


@pytest.mark.parametrize("scheduled", [None, "wrapped", "bare"])
@pytest.mark.parametrize("precision", MAKE)
def test_everything_goes_at_once(precision: str, scheduled: str | None, everything: Everything) -> None:
    def run() -> None:
        callback, log = Callback(), Log()
        fabric = MAKE[precision](callbacks=callback, loggers=log)
        everything.add(callback=callback, log=log, callbacks=fabric.callbacks)
        fabric.launch()
        train(fabric, everything, scheduled)

    run()
    assert everything.left == []


def test_with_a_strategy_that_wraps(everything: Everything, wrapping: Any) -> None:
    def run() -> None:
        fabric = MAKE["bf16-mixed"](strategy=wrapping())
        model, _, _ = train(fabric, everything)
        model.mark_forward_method("training_step")
        everything.add(inside=model._forward_module)

    run()
    assert everything.left == []


def test_after_misuse(everything: Everything, wrapping: Any) -> None:
    def run() -> None:
        fabric = MAKE["bf16-mixed"](strategy=wrapping())
        model, optimizer, _ = train(fabric, everything)
        for misuse in (lambda: fabric.setup(model), lambda: fabric.setup(model.module, optimizer)):
            with pytest.raises(ValueError, match="set up before"):
                misuse()
        with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
            model(torch.ones(2, 1)).sum().backward()

    run()
    gc.collect()  # `pytest.raises` keeps the traceback, and so the frames, in a cycle of its own
    assert everything.left == []


def test_saved_loaded_and_run_in_a_subclass(everything: Everything, tmp_path: Any) -> None:
    class Trainer(Fabric):
        def run(self) -> None:
            model, optimizer, _ = train(self, everything)
            self.save(tmp_path / "file", {"model": model, "optimizer": optimizer})
            self.load(tmp_path / "file", {"model": model, "optimizer": optimizer})

    Trainer(accelerator="cpu", devices=1, callbacks=[Callback()]).run()
    assert everything.left == []


def test_the_model_outlives_its_fabric_and_goes_with_its_last_user(everything: Everything) -> None:
    def run() -> Any:
        return train(MAKE["bf16-mixed"](), everything)[0]

    model = run()
    assert not {"fabric", "bare", "optimizer", "loader", "own"} & set(everything.left)
    assert model(torch.ones(2, 1)).shape == (2, 2)
    del model
    assert everything.left == []


def test_one_of_several_models_goes_alone(everything: Everything) -> None:
    fabric = MAKE["bf16-mixed"]()

    def one() -> None:
        train(fabric, everything)

    one()
    one()
    assert set(everything.left) <= {"fabric", "strategy", "precision"}
