"""What the document in which the hook bus has its origin promises: for each sentence, quoted, a test."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import Fabric

MY_CALLBACKS = """
class MyCallback:
    def on_train_batch_end(self, loss, output):
        print(f"MyCallback: loss {loss:.2f}, output {output}")
"""
TRAIN = """
import torch
from fabric_lite import Fabric
from my_callbacks import MyCallback

fabric = Fabric(accelerator="cpu", callbacks=[MyCallback()])
model = torch.nn.Linear(1, 1)
torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.125))
train_dataloader = fabric.setup_dataloaders(torch.utils.data.DataLoader(torch.ones(2, 1), batch_size=1))
for iteration, batch in enumerate(train_dataloader):
    optimizer.zero_grad()
    loss = (model(batch) - 1).square().mean()
    fabric.backward(loss)
    optimizer.step()
    fabric.call("on_train_batch_end", loss=loss, output=iteration)
"""


class Noting:
    """A callback that notes down under its name what it is called with."""

    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name, self.notes = name, notes

    def on_train_batch_end(self, **kwargs: Any) -> None:
        self.notes.append((self.name, kwargs))


def train(fabric: Fabric, iterations: int) -> list[float]:
    """A training loop. None of the tests below changes it."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.125))
    losses = []
    for iteration in range(iterations):
        fabric.call("on_train_batch_start", iteration=iteration)
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 1)) - 1).square().mean()
        fabric.backward(loss)
        fabric.call("on_before_optimizer_step", optimizer=optimizer)
        optimizer.step()
        losses.append(loss.item())
        fabric.call("on_train_batch_end", loss=losses[-1], output=iteration, optimizer=optimizer)
    return losses


def make(*callbacks: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, callbacks=list(callbacks))


def test_new_behaviour_without_a_change_of_the_source() -> None:
    """“Callbacks enable you, or the users of your code, to add new behavior to the training loop without needing to
    modify the source code.”
    """

    class Freeze:
        def on_train_batch_end(self, optimizer: torch.optim.Optimizer) -> None:
            optimizer.param_groups[0]["lr"] = 0.0

    assert train(make(), 3) == [1.0, 0.25, 0.0625]
    assert train(make(Freeze()), 3) == [1.0, 0.25, 0.25]


def test_arbitrary_code_at_the_end_of_an_iteration() -> None:
    """“Suppose we want to enable anyone to run some arbitrary code at the end of a training iteration.”"""
    notes: list[Any] = []
    losses = train(make(Noting("mine", notes)), 2)
    assert [(name, kwargs["loss"]) for name, kwargs in notes] == [("mine", loss) for loss in losses]


def test_the_code_lives_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """“Here is how that gets done in Fabric”

    “The code of a callback can live anywhere, away from the training loop”
    """
    (tmp_path / "my_callbacks.py").write_text(MY_CALLBACKS)
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path(str(tmp_path / "train.py"))
    del sys.modules["my_callbacks"]
    assert capsys.readouterr().out == "MyCallback: loss 1.00, output 0\nMyCallback: loss 0.25, output 1\n"


@pytest.mark.parametrize("wrap", [lambda a, b: a, lambda a, b: [a], lambda a, b: [a, b]], ids=["one", "list", "two"])
def test_one_or_several(wrap: Callable[[Any, Any], Any]) -> None:
    """“Add one or several callbacks”, “You can pass a list to Fabric”"""
    notes: list[Any] = []
    given = wrap(Noting("a", notes), Noting("b", notes))
    Fabric(accelerator="cpu", devices=1, callbacks=given).call("on_train_batch_end")
    assert [name for name, _ in notes] == ["a", "b"][: len(given) if isinstance(given, list) else 1]


def test_processing_at_the_appropriate_place() -> None:
    """“Let a callback add some arbitrary processing at the appropriate place”"""
    seen: list[Any] = []

    class Places:
        def on_train_batch_start(self, iteration: int) -> None:
            seen.append(f"start {iteration}")

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            seen.append(optimizer.param_groups[0]["params"][1].item())

        def on_train_batch_end(self, optimizer: torch.optim.Optimizer) -> None:
            seen.append(optimizer.param_groups[0]["params"][1].item())

    train(make(Places()), 1)
    assert seen == ["start 0", 0.0, 0.25]


def test_access_to_some_variables() -> None:
    """“Give the callback access to some variables”"""
    notes: list[Any] = []
    output = object()
    make(Noting("a", notes)).call("on_train_batch_end", loss=0.5, output=output)
    assert notes == [("a", {"loss": 0.5, "output": output})]
    assert notes[0][1]["output"] is output


def test_decoupled_from_the_trainer() -> None:
    """“As you can see, the code inside the callback method is completely decoupled from the trainer code.”"""
    notes: list[Any] = []

    class Rebinding:
        def on_train_batch_end(self, loss: float, **kwargs: Any) -> str:
            kwargs["output"], kwargs["new"] = None, loss
            return "thrown away"

    assert train(make(Rebinding(), Noting("next", notes)), 1) == [1.0]
    assert notes[0][1]["loss"] == 1.0
    assert notes[0][1]["output"] == 0
    assert "new" not in notes[0][1]


def test_extended_in_arbitrary_ways() -> None:
    """“This enables flexibility in extending the loop in arbitrary ways.”"""

    class StopEarly:
        def on_train_batch_end(self, loss: float) -> None:
            if loss < 0.5:
                raise StopIteration("good enough")

    names: list[str] = []
    fabric = make(StopEarly())
    fabric.callbacks.on("a name that is no identifier", names.append)
    fabric.call("a name that is no identifier", "free")
    with pytest.raises(StopIteration, match="good enough"):
        train(fabric, 100)
    assert names == ["free"]


def test_exercise(capsys: pytest.CaptureFixture[str]) -> None:
    """“Exercise: Implement a callback that computes and prints the time to complete an iteration.”"""

    class IterationTimer:
        def __init__(self, clock: Callable[[], float]) -> None:
            self.clock = clock

        def on_train_batch_start(self) -> None:
            self.start = self.clock()

        def on_train_batch_end(self, output: int) -> None:
            print(f"iteration {output} took {self.clock() - self.start} s")

    train(make(IterationTimer(iter([10.0, 10.25, 20.0, 20.5]).__next__)), 2)
    assert capsys.readouterr().out == "iteration 0 took 0.25 s\niteration 1 took 0.5 s\n"


def test_several_at_the_same_time() -> None:
    """“The callback system is designed to easily run multiple callbacks at the same time.”"""
    notes: list[Any] = []
    train(make(*(Noting(name, notes) for name in "abc")), 2)
    assert "".join(name for name, _ in notes) == "abcabc"


def test_calls_the_implementations_if_they_exist() -> None:
    """“Let Fabric call the implementations (if they exist)”"""
    notes: list[Any] = []
    fabric = make(object(), Noting("a", notes))
    fabric.call("any_callback_method", arg1=1, arg2=2)
    assert notes == []
    fabric.call("on_train_batch_end", arg1=1, arg2=2)
    assert notes == [("a", {"arg1": 1, "arg2": 2})]


def test_the_same_as_calling_each() -> None:
    """“fabric.call is the same as doing this”"""

    class Monitor:
        def __init__(self, notes: list[Any]) -> None:
            self.notes = notes

        def any_callback_method(self, arg1: object, arg2: object) -> None:
            self.notes.append((self, arg1, arg2))

    called: list[Any] = []
    callback1, callback2 = Monitor(called), Monitor(called)
    arg1, arg2 = object(), object()
    make(callback1, callback2).call("any_callback_method", arg1=arg1, arg2=arg2)
    by_fabric = called.copy()
    called.clear()
    callback1.any_callback_method(arg1=arg1, arg2=arg2)
    callback2.any_callback_method(arg1=arg1, arg2=arg2)
    assert by_fabric == called == [(callback1, arg1, arg2), (callback2, arg1, arg2)]


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_in_the_order_in_which_they_were_given(order: str) -> None:
    """“The call calls the callback objects in the order they were given to Fabric.”"""
    notes: list[Any] = []
    make(*(Noting(name, notes) for name in order)).call("on_train_batch_end")
    assert "".join(name for name, _ in notes) == order


def test_not_all_need_the_method() -> None:
    """“Not all objects registered via Fabric(callbacks=...) must implement a method with the given name.”"""
    notes: list[Any] = []
    make(object(), "a string", Noting("a", notes), 1.5, type).call("on_train_batch_end")
    assert [name for name, _ in notes] == ["a"]


def test_those_that_match_are_called() -> None:
    """“The ones that have a matching method name will get called.”"""
    called: list[str] = []

    class Both:
        def on_start(self) -> None:
            called.append("Both.on_start")

        def on_end(self) -> None:
            called.append("Both.on_end")

    class End:
        def on_end(self) -> None:
            called.append("End.on_end")

        def on_ends(self) -> None:
            called.append("End.on_ends")

    make(Both(), End()).call("on_end")
    assert called == ["Both.on_end", "End.on_end"]


def test_different_signatures() -> None:
    """“The different callbacks can have different method signatures.”"""
    called: list[Any] = []

    class None_:
        def on_end(self) -> None:
            called.append(())

    class One:
        def on_end(self, loss: float) -> None:
            called.append(loss)

    class Default:
        def on_end(self, missing: str = "default", *, epoch: int) -> None:
            called.append((missing, epoch))

    class All:
        def on_end(self, **kwargs: Any) -> None:
            called.append(kwargs)

    make(None_(), One(), Default(), All()).call("on_end", epoch=3, loss=0.5)
    assert called == [(), 0.5, ("default", 3), {"epoch": 3, "loss": 0.5}]


class TrainingMetricsCallback:
    def on_train_epoch_end(self, train_loss: float) -> None:
        print(f"Training loss: {train_loss:.4f}")


class ValidationMetricsCallback:
    def on_train_epoch_end(self, val_accuracy: float) -> None:
        print(f"Validation accuracy: {val_accuracy:.4f}")


class ComprehensiveCallback:
    def on_train_epoch_end(self, epoch: int, **kwargs: float) -> None:
        print(f"Epoch {epoch} complete with metrics: {kwargs}")


def test_keyword_arguments_are_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    """“Fabric automatically filters keyword arguments based on each callback's function signature, allowing callbacks
    with different signatures to work together seamlessly.”
    """
    fabric = make(TrainingMetricsCallback(), ValidationMetricsCallback(), ComprehensiveCallback())
    fabric.call("on_train_epoch_end", epoch=5, train_loss=0.1, val_accuracy=0.95, learning_rate=0.001)
    assert capsys.readouterr().out == (
        "Training loss: 0.1000\n"
        "Validation accuracy: 0.9500\n"
        "Epoch 5 complete with metrics: {'train_loss': 0.1, 'val_accuracy': 0.95, 'learning_rate': 0.001}\n"
    )


@pytest.mark.parametrize(
    "callback, received",
    [
        (TrainingMetricsCallback, {"train_loss"}),
        (ValidationMetricsCallback, {"val_accuracy"}),
        (ComprehensiveCallback, {"epoch", "train_loss", "val_accuracy", "learning_rate"}),
    ],
)
def test_only_the_arguments_it_can_handle(
    callback: type, received: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """“Each callback receives only the arguments it can handle”"""
    offered = {"epoch": 5, "train_loss": 0.1, "val_accuracy": 0.95, "learning_rate": 0.001}
    callback().on_train_epoch_end(**{name: value for name, value in offered.items() if name in received})
    expected = capsys.readouterr().out
    make(callback()).call("on_train_epoch_end", **offered)
    assert capsys.readouterr().out == expected
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        make(callback()).call("on_train_epoch_end", learning_rate=0.001)


def test_a_trainer_can_be_built_of_them() -> None:
    """“Callbacks are a powerful tool for building a Trainer.”"""

    class Trainer:
        """Knows nothing but how to go round: what is computed, and when to end, callbacks say."""

        def __init__(self, *callbacks: Any) -> None:
            self.fabric, self.should_stop, self.epoch = make(*callbacks), False, 0

        def fit(self) -> Trainer:
            self.fabric.call("on_fit_start", trainer=self)
            while not self.should_stop:
                self.epoch += 1
                self.fabric.call("on_train_epoch_start", trainer=self, epoch=self.epoch)
                self.fabric.call("on_train_epoch_end", trainer=self, epoch=self.epoch)
            self.fabric.call("on_fit_end", trainer=self)
            return self

    class Train:
        def on_train_epoch_start(self, trainer: Trainer) -> None:
            self.losses = train(trainer.fabric, 2)

    class MaxEpochs:
        def on_train_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            trainer.should_stop = epoch == 3

    notes: list[Any] = []
    trainer = Trainer(Train(), MaxEpochs(), Noting("a", notes)).fit()
    assert (trainer.epoch, len(notes)) == (3, 6)
