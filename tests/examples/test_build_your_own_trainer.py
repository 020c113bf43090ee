"""The trainer to copy, feature by feature, in one process."""

from __future__ import annotations

import ast
import csv
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fabric_lite import Callback, CancelFittingException, ProtectedException, Read, Write
from fabric_lite.callbacks import Checkpointer, EarlyStopping, LogHyperParams, LogMetrics, Metrics, StopOnNaNLoss
from fabric_lite.loggers import CSVLogger

FILE = Path(__file__).parents[2] / "examples" / "build_your_own_trainer" / "trainer.py"
SPEC = importlib.util.spec_from_file_location("build_your_own_trainer", FILE)
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = MODULE  # where dataclasses look for the names in annotations
SPEC.loader.exec_module(MODULE)

XS = torch.linspace(-1, 1, 80, dtype=torch.float64).reshape(40, 2)
YS = XS.sum(1, keepdim=True) + 0.5


class Net(nn.Module):
    """As for Lightning, without any of it. What it returns from `configure_optimizers` is handed in."""

    def __init__(self, configure: Callable[[SGD], Any] = lambda optimizer: optimizer) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, dtype=torch.float64)
        self.configure = configure
        nn.init.constant_(self.layer.weight, 0.3)
        nn.init.zeros_(self.layer.bias)

    def forward(self, xs: Tensor) -> Any:
        return self.layer(xs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": nn.functional.mse_loss(self(batch[0]), batch[1]), "batch": batch_idx, "preds": self(batch[0])}

    def configure_optimizers(self) -> Any:
        return self.configure(SGD(self.parameters(), lr=0.1))


def loader(batch_size: int = 4, count: int = 40) -> DataLoader[Any]:
    return DataLoader(TensorDataset(XS[:count], YS[:count]), batch_size)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(XS, YS, strict=True))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    def make(callbacks: Any = None, **kwargs: Any) -> Any:
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "checkpoint_dir": tmp_path / "checkpoints"}
        return MODULE.Trainer(**{**defaults, **kwargs}, callbacks=callbacks)

    return make


class Hearing:
    """Takes down every hook that is called, with the names of its arguments, and some of their values."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_") or name in self.__dict__.get("deaf", ()):
            raise AttributeError(name)
        return lambda **arguments: self.heard.append((name, arguments))


# -- how long, how much --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, epochs, steps",
    [
        ({"max_epochs": 3}, 3, 30),
        ({"max_epochs": None, "max_steps": 7}, 0, 7),
        ({"max_epochs": None, "max_steps": 20}, 2, 20),  # the last epoch is complete: it is validated, and counts
        ({"max_epochs": 3, "max_steps": 20}, 2, 20),
        ({"limit_train_batches": 4}, 2, 8),
        ({"limit_train_batches": 99}, 2, 20),
        ({"grad_accum_steps": 3}, 2, 8),
        ({"grad_accum_steps": 3, "limit_train_batches": 5}, 2, 4),
        ({"grad_accum_steps": 3, "max_steps": 2}, 0, 2),
        ({"grad_accum_steps": 99}, 2, 2),
    ],
)
def test_limits(make: Callable[..., Any], arguments: dict[str, Any], epochs: int, steps: int) -> None:
    trainer = make(**arguments)
    trainer.fit(Net(), loader(), loader())
    assert (trainer.current_epoch, trainer.global_step) == (epochs, steps)
    assert ("val_loss" in trainer.metrics) == (epochs > 0)


@pytest.mark.parametrize("limit", [10, float("inf")])
def test_accumulated_batches_are_one_large_batch(make: Callable[..., Any], limit: float) -> None:
    """Also the last step of an epoch, which has one batch instead of three."""
    small, large = Net(), Net()
    make(grad_accum_steps=3, limit_train_batches=limit).fit(small, loader(4))
    make().fit(large, loader(12))
    torch.testing.assert_close(small.state_dict(), large.state_dict())


def test_data_without_a_length(make: Callable[..., Any]) -> None:
    steps = Hearing()
    trainer = make(steps, grad_accum_steps=3, max_epochs=2)
    model = Net()
    trainer.fit(model, DataLoader(Endless(), 4), DataLoader(Endless(), 4))
    assert (trainer.current_epoch, trainer.global_step) == (2, 8)
    assert all(parameter.grad is None for parameter in model.parameters()), "an epoch leaves no gradients to the next"
    trainer.fit(Net(), DataLoader(Endless(), 4), ckpt_path="latest")
    assert trainer.global_step == 8


@pytest.mark.parametrize("frequency, validated", [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (9, [])])
def test_validation(make: Callable[..., Any], frequency: int, validated: list[int]) -> None:
    seen = Hearing()
    trainer = make(seen, max_epochs=5, validation_frequency=frequency, limit_val_batches=3)
    trainer.fit(Net(), loader(), loader())
    ends = [arguments["learner"] for name, arguments in seen.heard if name == "on_validation_epoch_end"]
    batches = [arguments["batch_idx"] for name, arguments in seen.heard if name == "on_validation_batch_end"]
    assert (len(ends), batches) == (len(validated), [0, 1, 2] * len(validated))


def test_what_is_frozen_stays_frozen_and_validation_keeps_no_graph(make: Callable[..., Any]) -> None:
    model = Net()
    model.dropout = nn.Dropout().eval()
    modes: list[Any] = []

    class Modes:
        def on_validation_batch_end(self, outputs: Any) -> None:
            modes.append((model.training, outputs["preds"].requires_grad, torch.is_grad_enabled()))

        def on_train_batch_end(self, outputs: Any) -> None:
            modes.append((model.training, model.dropout.training, outputs.requires_grad))

    make(Modes(), limit_train_batches=1, limit_val_batches=1).fit(model, loader(), loader())
    assert modes == [(True, False, False), (False, False, False)] * 2


# -- schedulers ----------------------------------------------------------------------------------------------------


def halving(optimizer: SGD) -> StepLR:
    return StepLR(optimizer, 1, 0.5)


def plateau(optimizer: SGD) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9)  # nothing is good enough for it


BY_STEP = {"interval": "step", "frequency": 2}


@pytest.mark.parametrize(
    "configure, rates",
    [
        (lambda o: o, [1, 1, 1, 1, 1, 1]),
        (lambda o: [o], [1, 1, 1, 1, 1, 1]),
        (lambda o: {"optimizer": o}, [1, 1, 1, 1, 1, 1]),
        (lambda o: (o, halving(o)), [1, 1, 2, 2, 4, 4]),
        (lambda o: ([o], [halving(o)]), [1, 1, 2, 2, 4, 4]),
        (lambda o: ([o], []), [1, 1, 1, 1, 1, 1]),
        (lambda o: {"optimizer": o, "lr_scheduler": halving(o)}, [1, 1, 2, 2, 4, 4]),
        (lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": halving(o), "frequency": 2}}, [1, 1, 1, 1, 2, 2]),
        (lambda o: (o, {"scheduler": halving(o), "interval": "step"}), [1, 2, 4, 8, 16, 32]),
        (lambda o: ([o], [{"scheduler": halving(o), **BY_STEP}]), [1, 1, 2, 2, 4, 4]),
        (lambda o: (o, plateau(o)), [1, 1, 2, 2, 4, 4]),
        (lambda o: {"optimizer": o, "lr_scheduler": plateau(o), "monitor": "train_loss"}, [1, 1, 2, 2, 4, 4]),
        (lambda o: (o, {"scheduler": plateau(o), "monitor": "train_loss", "interval": "step"}), [1, 2, 4, 8, 16, 32]),
        (lambda o: (o, {"scheduler": plateau(o), "monitor": "logged"}), [1, 1, 2, 2, 4, 4]),
    ],
)
def test_schedulers(make: Callable[..., Any], configure: Callable[[SGD], Any], rates: list[int]) -> None:
    used: list[int] = []

    class Logging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("logged", super().training_step(batch, batch_idx), prog_bar=True)
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            used.append(round(0.1 / optimizer.param_groups[0]["lr"]))

    model = Logging(configure)
    make(max_epochs=3, limit_train_batches=2).fit(model, loader(), loader())
    assert used == rates
    assert not hasattr(model, "log"), "what the model was lent is taken back"


def test_the_monitored_value_is_the_mean_over_the_epoch(make: Callable[..., Any]) -> None:
    given: list[Any] = []

    class Own(Net):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            given.append(metric)

    def configure(optimizer: SGD) -> Any:
        return optimizer, {"scheduler": LambdaLR(optimizer, lambda _: 1.0), "monitor": "val_batch"}

    trainer = make(max_epochs=2)
    trainer.fit(Own(configure), loader(), loader())
    assert given == [4.5, 4.5]
    assert set(trainer.metrics) == {"train_loss", "val_loss", "val_batch"}


# -- hooks ---------------------------------------------------------------------------------------------------------

# Lightning's template has the same hooks with the same arguments in this order, except that `on_before_optimizer_step`
# comes before the step of the model there, when there are no gradients yet.
BATCH = [
    ("on_train_batch_start", {"batch", "batch_idx"}),
    ("on_before_backward", {"loss"}),
    ("on_after_backward", set()),
    ("on_before_optimizer_step", {"optimizer"}),
    ("on_before_zero_grad", {"optimizer"}),
    ("on_train_batch_end", {"outputs", "batch", "batch_idx"}),
]
ACCUMULATED = [*BATCH[:3], BATCH[-1]]
VALIDATION = [
    ("on_validation_model_eval", set()),
    ("on_validation_epoch_start", set()),
    *2 * [("on_validation_batch_start", {"batch", "batch_idx"}), ("on_validation_batch_end", BATCH[-1][1])],
    ("on_validation_epoch_end", set()),
    ("on_validation_model_train", set()),
]
TEMPLATE = [
    ("on_train_epoch_start", set()), *ACCUMULATED, *BATCH, *BATCH, ("on_train_epoch_end", set()), *VALIDATION
]  # fmt: skip
EVENTS = """on_fit_begin on_epoch_begin on_step_begin on_backward_begin on_backward_end on_step_end on_fit_end
    on_after_setup on_after_optimizer_step""".split()


def test_the_fourteen_hooks(make: Callable[..., Any]) -> None:
    hearing = Hearing()
    hearing.deaf = EVENTS  # type: ignore[attr-defined]
    names = {name for name, _ in TEMPLATE}
    assert len(names) == 14
    of_model: list[Any] = []
    model = Net()
    for name in names:
        setattr(model, name, lambda name=name, **arguments: of_model.append((name, arguments)))
    trainer = make(hearing, max_epochs=1, limit_train_batches=3, limit_val_batches=2, grad_accum_steps=2)
    trainer.fit(model, loader(), loader())

    heard = [(n, a) for n, a in hearing.heard if n in names]
    assert [(n, set(a) - {"learner", "phase"}) for n, a in heard] == TEMPLATE
    assert [(n, a) for n, a in of_model] == heard, "the model hears the same"
    assert all(arguments["learner"] is trainer for _, arguments in heard)
    outputs = [a["outputs"] for n, a in heard if n == "on_train_batch_end"]
    losses = [a["loss"] for n, a in heard if n == "on_before_backward"]
    assert all(loss.requires_grad for loss in losses)
    assert not any(output.requires_grad for output in outputs)
    assert torch.equal(torch.stack(outputs), torch.stack(losses))
    assert [a["batch_idx"] for n, a in heard if n.endswith("batch_start")] == [0, 1, 2, 0, 1]


def test_a_method_takes_what_it_names_and_the_model_may_choose_its_mode(make: Callable[..., Any]) -> None:
    class Mine(Net):
        def on_validation_model_eval(self) -> None:
            self.calls.append("eval")

        def on_validation_model_train(self, learner: Any) -> None:
            self.calls.append(f"train {self.training} {learner.global_step}")

        def on_before_optimizer_step(self, learner: Any, optimizer: Any) -> None:
            norm = learner.fabric.clip_gradients(learner.model, optimizer, max_norm=1e-9)
            self.calls.append(f"clip {bool(norm > 0)}")

    model = Mine()
    model.calls = []
    make(max_epochs=1, limit_train_batches=1).fit(model, loader(), loader())
    assert model.calls == ["clip True", "eval", "train True 1"]
    torch.testing.assert_close(model.state_dict(), Net().state_dict())


def test_callbacks_hear_of_an_exception(make: Callable[..., Any]) -> None:
    class Failing(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("no validation today")

    hearing = Hearing()
    with pytest.raises(RuntimeError, match="no validation today") as caught:
        make(hearing).fit(Failing(), loader(), loader())
    name, arguments = hearing.heard[-1]
    assert name.endswith("exception")
    assert arguments["exception"] is caught.value


# -- callbacks that declare what they touch ------------------------------------------------------------------------


class Keeper(Callback):
    """Writes what `Reader` reads."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def stateaccess(self) -> Any:
        return {"step.loss": Read(), "cbstate.losses": Write()}

    def on_train_batch_end(self, learner: Any) -> None:
        self.log.append("keep")
        learner.cbstate.losses = float(learner.step.loss)


class Reader(Callback):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def stateaccess(self) -> Any:
        return {"cbstate.losses": Read()}

    def on_train_batch_end(self, learner: Any) -> None:
        self.log.append("read" if learner.cbstate.losses > 0 else "nothing")


class First(Reader):
    def on_train_batch_end(self) -> None:
        self.log.append("first")


class Last(Keeper):
    def stateaccess(self) -> Any:
        return {}

    def runafter(self) -> tuple[type, ...]:
        return (Reader,)

    def on_train_batch_end(self) -> None:
        self.log.append("last")


class Nosy(Callback):
    def on_train_batch_end(self, learner: Any) -> None:
        learner.step.loss  # noqa: B018


def test_callbacks_run_in_the_order_of_what_they_declare(make: Callable[..., Any]) -> None:
    log: list[str] = []
    make([Last(log), Reader(log), Keeper(log)], max_steps=1).fit(Net(), loader())
    assert log == ["keep", "read", "last"]


def test_callbacks_are_held_to_what_they_declare(make: Callable[..., Any]) -> None:
    trainer = make(Nosy())
    with pytest.raises(ProtectedException, match=r"Read access to Trainer\.step\.loss disallowed\."):
        trainer.fit(Net(), loader())


class ReturnsPredictions(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "preds": self(batch[0]), "ys": batch[1]}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_step(batch, batch_idx)


def error(preds: Tensor, ys: Tensor) -> Tensor:
    return (preds - ys).abs().mean()


def test_built_in_callbacks(make: Callable[..., Any], tmp_path: Path) -> None:
    """The last epoch is complete and saved, although `EarlyStopping` cancels, and the model hears its end."""
    logger = CSVLogger(tmp_path, name="metrics")
    ended: list[int] = []

    class Model(ReturnsPredictions):
        def on_validation_epoch_end(self, learner: Any) -> None:
            ended.append(learner.current_epoch)

    best = Checkpointer(tmp_path / "best", monitor="error", latest=False)
    stopping = EarlyStopping(2, monitor="error", mode="max")
    callbacks = [stopping, best, Metrics(error), LogMetrics(freq=1), LogHyperParams()]
    trainer = make(callbacks, loggers=logger, max_epochs=9)
    trainer.fit(Model(), loader(), loader())
    assert trainer.current_epoch == 3
    assert ended == [0, 1, 2]
    assert trainer.stop_reason.startswith("early stopping on 'error'")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == "epoch-0003.ckpt"
    assert [path.name for path in (tmp_path / "best").iterdir()] == [Path(best.kept[0].path).name]
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train_loss"]] == [10, 20, 30]
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [10, 20, 30]
    assert [row["validation/error"] for row in rows if row["validation/error"]] != []


def test_a_cancelled_step_is_neither_made_nor_saved(make: Callable[..., Any], tmp_path: Path) -> None:
    class Exploding(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 3 else 1)

    model = Exploding()
    trainer = make(StopOnNaNLoss())
    trainer.fit(model, loader())
    assert (trainer.global_step, trainer.current_epoch) == (3, 0)
    assert trainer.stop_reason.startswith("The training loss is NaN in step 4.")
    assert bool(torch.isfinite(model.layer.weight).all())
    assert not (tmp_path / "checkpoints").exists()


def test_cancelled_at_the_end_of_a_step_it_is_saved_there(make: Callable[..., Any], tmp_path: Path) -> None:
    class Cancels:
        def on_train_batch_end(self, batch_idx: int) -> None:
            if batch_idx == 3:
                raise CancelFittingException("enough")

    trainer = make(Cancels(), grad_accum_steps=3)
    trainer.fit(Net(), loader())
    assert (trainer.batch_idx, trainer.global_step, trainer.stop_reason) == (6, 2, "enough"), "after the whole step"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["unfinished-epoch.ckpt"]


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency, kept", [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_checkpoints(make: Callable[..., Any], tmp_path: Path, frequency: int, kept: list[int]) -> None:
    def configure(optimizer: SGD) -> Any:
        return optimizer, halving(optimizer)

    trainer = make(max_epochs=5, checkpoint_frequency=frequency)
    trainer.fit(Net(configure), loader(), loader())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"epoch-{epoch:04d}.ckpt" for epoch in kept]
    saved = trainer.fabric.load(tmp_path / "checkpoints" / names[-1])
    assert set(saved) == {
        "model", "optimizer", "scheduler", "precision", "callbacks", "callbacks of each rank", "data", "trainer", "rng",
    }  # fmt: skip
    assert (saved["trainer"]["epoch"], saved["trainer"]["step"]) == (5, 50)
    assert set(saved["callbacks"]) == {"Recorder.0"}, "the model is not saved twice"
    assert saved["scheduler"]["last_epoch"] == 5


def test_where_to_go_on_from(make: Callable[..., Any], tmp_path: Path) -> None:
    whole = Net()
    make(max_epochs=4).fit(whole, loader())
    (tmp_path / "checkpoints").rename(tmp_path / "whole")

    model = Net()
    make(max_epochs=1).fit(model, loader(), ckpt_path="latest")  # there is none yet
    trainer = make(max_epochs=4)
    for path in ("latest", tmp_path / "checkpoints", tmp_path / "checkpoints" / "epoch-0001.ckpt"):
        model = Net()
        trainer.fit(model, loader(), ckpt_path=path)
        assert trainer.global_step == 40
        torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        trainer.fit(Net(), loader(), ckpt_path=tmp_path / "absent.ckpt")

    newest = tmp_path / "checkpoints" / "epoch-0004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-99])
    trainer = make(max_epochs=3)
    with pytest.warns(UserWarning, match=r"epoch-0004\.ckpt' is passed over"):
        trainer.fit(Net(), loader(), ckpt_path="latest")
    assert (trainer.current_epoch, trainer.global_step) == (3, 30)


def test_max_steps_then_more_of_them_is_one_run(make: Callable[..., Any]) -> None:
    whole, parts = Net(), Net()
    make(max_steps=17).fit(whole, loader(), loader())
    for steps in (3, 10, 12, 17):
        make(max_steps=steps).fit(parts, loader(), loader(), ckpt_path="latest" if steps > 3 else None)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)


# -- models of lightning -------------------------------------------------------------------------------------------


class Lightning(lightning.pytorch.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(lambda optimizer: (optimizer, plateau(optimizer)))
        self.heard: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.net.training_step(batch, batch_idx)
        self.log("loss", loss, prog_bar=True)
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net.validation_step(batch, batch_idx)["loss"])

    def configure_optimizers(self) -> Any:
        return self.net.configure_optimizers()

    def on_train_epoch_end(self) -> None:
        self.heard.append("on_train_epoch_end")


def test_a_lightning_module(make: Callable[..., Any], tmp_path: Path) -> None:
    ours, theirs = Net(lambda optimizer: (optimizer, plateau(optimizer))), Lightning()
    make(max_epochs=3).fit(ours, loader(), loader())
    logger = CSVLogger(tmp_path, name="metrics")
    trainer = make(loggers=logger, max_epochs=3)
    trainer.fit(theirs, loader(), loader())
    torch.testing.assert_close(theirs.net.state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert theirs.heard == ["on_train_epoch_end"] * 3
    assert set(trainer.metrics) == {"loss", "train_loss", "val_loss"}
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0125
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        assert sum(bool(row["loss"]) for row in csv.DictReader(file)) == 3 * (10 + 1)  # each step, and each epoch


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"grad_accum_steps": 0}, r"`Trainer\(grad_accum_steps=0\)`: pass a whole number from 1 on, or 1\."),
        ({"validation_frequency": 0}, r"`Trainer\(validation_frequency=0\)`: pass a whole number from 1 on, or 1\."),
        ({"checkpoint_frequency": 0.5}, r"`Trainer\(checkpoint_frequency=0\.5\)`: pass a whole number from 1 on"),
        ({"limit_val_batches": 0}, r"`Trainer\(limit_val_batches=0\)`: pass a whole number from 1 on, or inf\."),
        ({"limit_train_batches": 0.5}, r"`Trainer\(limit_train_batches=0\.5\)`: pass a whole number from 1 on, or inf"),
        ({"max_epochs": -1}, r"`Trainer\(max_epochs=-1\)`: pass a whole number from 1 on, or None\."),
        ({"max_steps": 1.5}, r"`Trainer\(max_steps=1\.5\)`: pass a whole number from 1 on, or None\."),
    ],
)
def test_wrong_arguments(make: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    "configure, kind, message",
    [
        (lambda o: None, TypeError, r"`Net\.configure_optimizers` returned nothing\. Return one optimizer, or one"),
        (lambda o: [o, o], TypeError, r"returned SGD, SGD\. Return one optimizer, or one optimizer and one scheduler"),
        (lambda o: ([o], [halving(o), halving(o)]), TypeError, r"returned SGD, StepLR, StepLR\. Return one"),
        (lambda o: halving(o), TypeError, r"returned StepLR\. Return one optimizer"),
        (
            lambda o: (o, {"scheduler": halving(o), "interval": "batch"}), ValueError,
            r"`Net\.configure_optimizers` returned 'interval': 'batch' and 'frequency': 1\. Choose 'epoch' or 'step'",
        ),
        (
            lambda o: (o, {"scheduler": halving(o), "frequency": 0}), ValueError,
            r"returned 'interval': 'epoch' and 'frequency': 0\. Choose .* and a whole number from 1 on\.",
        ),
        (
            lambda o: (o, {"scheduler": plateau(o), "monitor": "val_acc"}), KeyError,
            r"The scheduler monitors 'val_acc'\. Choose one of what the steps return and log: train_loss, val_loss",
        ),
    ],
)  # fmt: skip
def test_wrong_optimizers(
    make: Callable[..., Any], configure: Callable[[SGD], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make().fit(Net(configure), loader(), loader())


def test_a_step_without_a_loss(make: Callable[..., Any]) -> None:
    class Forgetful(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"predictions": 1}

    message = r"`Forgetful\.training_step` returned {'predictions': 1}\. Return the loss, or a mapping with the key"
    with pytest.raises(TypeError, match=message):
        make().fit(Forgetful(), loader())


# -- the file ------------------------------------------------------------------------------------------------------


def test_it_is_short_and_needs_nothing_else() -> None:
    text = FILE.read_text()
    assert len(text.splitlines()) <= 350
    nodes = ast.walk(ast.parse(text))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    tops = {module.partition(".")[0] for module in modules}
    assert tops - set(sys.stdlib_module_names) == {"fabric_lite", "torch"}
