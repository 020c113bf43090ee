"""A LightningModule of the lightning package, set up by either: it finds its Fabric, its logger and its optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.fabric as theirs
import lightning.fabric.loggers as their_loggers
import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn

import fabric_lite as ours
import fabric_lite.loggers as our_loggers

LIBRARIES = (theirs, ours)
LOGGERS = {theirs: their_loggers, ours: our_loggers}
Frozen = Callable[[Any], Any]


class Classifier(lightning.pytorch.LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))
        self.heard: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, index: int = 0) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"index": index, "double": 2 * loss})
        return loss

    def validation_step(self, batch: Any, index: int) -> dict[str, Tensor]:
        return {"accuracy": (self(batch[0]).argmax(1) == batch[1]).float().mean()}

    def on_train_epoch_start(self) -> None:
        self.heard.append("on_train_epoch_start")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Manual(Classifier):
    """Does all of the optimization itself."""

    def training_step(self, batch: Any, index: int = 0) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.1)
        optimizer.step()
        return loss


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(4, 3, generator=generator), torch.randint(0, 2, (4,), generator=generator)) for _ in range(3)]


def make_fabric(library: ModuleType, folder: Path, **arguments: Any) -> Any:
    library.seed_everything(1, verbose=False)
    logger = LOGGERS[library].CSVLogger(folder, name=library.__name__)
    return library.Fabric(accelerator="cpu", devices=1, loggers=logger, **arguments)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_automatic_optimization(precision: str, tmp_path: Path, frozen: Frozen) -> None:
    """The step calls the module, which goes through the precision in both."""
    results = []
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path, precision=precision)
        module = Classifier()
        optimizers, schedulers = module.configure_optimizers()
        model, optimizer = fabric.setup(module, *optimizers)
        losses = []
        for batch in batches():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            fabric.backward(loss)
            optimizer.step()
            schedulers[0].step()
            losses.append(loss)
        results.append([losses, model.state_dict(), optimizer.state_dict()])
    assert frozen(results[0]) == frozen(results[1])


def test_steps_that_log(tmp_path: Path, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path)
        module = Classifier()
        model, optimizer = fabric.setup(module, module.configure_optimizers()[0][0])
        losses, seen = [], []
        for index, batch in enumerate(batches()):
            optimizer.zero_grad()
            loss = model.training_step(batch, index)
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss)
            seen.append(model.validation_step(batch, index))
        fabric.logger.save()
        rows = (Path(fabric.logger.log_dir) / "metrics.csv").read_text()
        results.append([losses, seen, model.state_dict(), rows])
    assert frozen(results[0]) == frozen(results[1])
    assert results[1][3].count("\n") == 3 * 2 + 1


def test_manual_optimization(tmp_path: Path, frozen: Frozen) -> None:
    results = []
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path)
        module = Manual()
        model, optimizer = fabric.setup(module, module.configure_optimizers()[0][0])
        assert module.optimizers() is optimizer
        results.append([[model.training_step(batch) for batch in batches()], model.state_dict()])
    assert frozen(results[0]) == frozen(results[1])


def test_it_finds_what_it_was_set_up_with(tmp_path: Path) -> None:
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path)
        module = Classifier(width=5)
        model, first, second = fabric.setup(module, *(torch.optim.SGD(module.parameters(), lr=i) for i in (1.0, 2.0)))
        assert module._fabric is fabric
        assert module.fabric is fabric or module.fabric._fabric is fabric  # type: ignore[union-attr]
        assert module.optimizers() == [first, second]
        assert module.logger is fabric.logger
        assert module.loggers == fabric.loggers
        assert module.device == fabric.device
        assert (module.global_rank, module.local_rank) == (0, 0)
        assert dict(model.hparams) == {"width": 5}
        assert module.configure_optimizers.__func__ is Classifier.configure_optimizers  # type: ignore[attr-defined]


def test_a_module_set_up_alone(tmp_path: Path) -> None:
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path)
        module = Classifier()
        fabric.setup_module(module)
        assert module._fabric is fabric
        module.log("alone", 1.0)


def test_it_becomes_a_callback_there_and_not_here(tmp_path: Path) -> None:
    """Lightning adds it to the callbacks; here it is one only if the user passes it."""
    heard = []
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path)
        module = Classifier()
        fabric.setup(module)
        fabric.call("on_train_epoch_start")
        heard.append((len(fabric._callbacks), module.heard))
    assert heard == [(1, ["on_train_epoch_start"]), (0, [])]

    module = Classifier()
    fabric = make_fabric(ours, tmp_path, callbacks=module)
    fabric.setup(module)
    fabric.call("on_train_epoch_start")
    assert module.heard == ["on_train_epoch_start"]


def test_its_step_runs_in_the_precision_here_also_where_no_strategy_wraps_it(tmp_path: Path) -> None:
    """Lightning calls the step past the precision on a single device, and within it as soon as there are two."""
    dtypes = []
    for library in LIBRARIES:
        fabric = make_fabric(library, tmp_path, precision="bf16-mixed")
        module = Classifier()
        model = fabric.setup(module)
        seen: list[torch.dtype] = []
        module.net[0].register_forward_hook(lambda layer, x, output, seen=seen: seen.append(output.dtype))
        model.validation_step(batches()[0], 0)
        dtypes.append(seen)
    assert dtypes == [[torch.float32], [torch.bfloat16]]
