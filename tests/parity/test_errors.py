"""The same misuse raises the same type of error."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader


class Misuse(NamedTuple):
    """A few lines, the type of the error that they raise, and what our message says."""

    run: Callable[[Any], Any]
    error: str
    says: str


def sgd(module: nn.Module | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD((module or nn.Linear(1, 1)).parameters(), lr=0.1)


def meta_sgd() -> torch.optim.Optimizer:
    with torch.device("meta"):
        return sgd()


def output(case: Any, **arguments: Any) -> torch.Tensor:
    fabric = case.fabric(accelerator="cpu", devices=1, **arguments)
    return fabric.setup(nn.Linear(1, 1))(torch.ones(1, 1)).sum()  # type: ignore[no-any-return]


def step_of_lbfgs(case: Any) -> Any:
    fabric = case.fabric(plugins=case.half)
    model = nn.Linear(1, 1)
    _, optimizer = fabric.setup(model, torch.optim.LBFGS(model.parameters()))
    optimizer.step(lambda: 0.0)


def clip_fused(case: Any) -> Any:
    fabric = case.fabric(plugins=case.half)
    model = nn.Linear(1, 1)
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), fused=True))
    fabric.backward(model(torch.ones(1, 1)).sum())
    fabric.clip_gradients(model, optimizer, max_norm=1)


def clip_infinite(case: Any, **kind: Any) -> Any:
    model = nn.Linear(1, 1)
    model.weight.grad = torch.full((1, 1), float("inf"))
    case.cpu.clip_gradients(model, sgd(model), max_norm=1, **kind)


def backward_twice(case: Any) -> Any:
    loss = output(case)
    for _ in range(2):
        case.cpu.backward(loss)


def strategy_with(case: Any, **parts: Any) -> Any:
    return case.strategies.SingleDeviceStrategy(device="cpu", **parts)


MISUSES: dict[str, Misuse] = {
    # the constructor
    "positional arguments": Misuse(lambda c: c.library.Fabric("cpu"), "TypeError", "positional argument"),
    "an unknown argument": Misuse(lambda c: c.fabric(device=1), "TypeError", "unexpected keyword argument 'device'"),
    "no devices": Misuse(lambda c: c.fabric(accelerator="cpu", devices=0), "ValueError", r"devices=0"),
    "no devices, text": Misuse(lambda c: c.fabric(accelerator="cpu", devices="0"), "ValueError", r"devices='0'"),
    "an empty list": Misuse(lambda c: c.fabric(accelerator="cpu", devices=[]), "ValueError", r"devices=\[\]"),
    "devices foo": Misuse(lambda c: c.fabric(accelerator="cpu", devices="foo"), "TypeError", "devices='foo'"),
    "devices -5": Misuse(lambda c: c.fabric(accelerator="cpu", devices=-5), "TypeError", "devices=-5"),
    "devices '-5'": Misuse(lambda c: c.fabric(accelerator="cpu", devices="-5"), "TypeError", "devices='-5'"),
    "devices 1.5": Misuse(lambda c: c.fabric(accelerator="cpu", devices=1.5), "TypeError", "devices=1.5"),
    "devices None": Misuse(lambda c: c.fabric(accelerator="cpu", devices=None), "TypeError", "devices=None"),
    "a list on the CPU": Misuse(lambda c: c.fabric(accelerator="cpu", devices=[0]), "TypeError", r"devices=\[0\]"),
    "precision foo": Misuse(lambda c: c.fabric(precision="foo"), "ValueError", "precision='foo'"),
    "precision 8": Misuse(lambda c: c.fabric(precision=8), "ValueError", "precision=8"),
    "precision 16.5": Misuse(lambda c: c.fabric(precision=16.5), "ValueError", "precision=16.5"),
    "precision 32-mixed": Misuse(lambda c: c.fabric(precision="32-mixed"), "ValueError", "precision='32-mixed'"),
    "transformer engine": Misuse(
        lambda c: c.fabric(precision="transformer-engine"), "ModuleNotFoundError", "pip install .transformer_engine"
    ),
    "accelerator foo": Misuse(lambda c: c.fabric(accelerator="foo"), "ValueError", "accelerator='foo'"),
    "accelerator None": Misuse(lambda c: c.fabric(accelerator=None), "ValueError", "accelerator=None"),
    "accelerator in capitals": Misuse(lambda c: c.fabric(accelerator="CPU"), "ValueError", "accelerator='CPU'"),
    "accelerator 1": Misuse(lambda c: c.fabric(accelerator=1), "ValueError", "accelerator=1"),
    "no CUDA": Misuse(lambda c: c.fabric(accelerator="cuda"), "RuntimeError", "CUDAAccelerator.*no such device"),
    "no MPS": Misuse(lambda c: c.fabric(accelerator="mps"), "RuntimeError", "MPSAccelerator.*no such device"),
    "no GPU": Misuse(lambda c: c.fabric(accelerator="gpu"), "RuntimeError", "accelerator='gpu'"),
    "no CUDA, an instance": Misuse(
        lambda c: c.fabric(accelerator=c.accelerators.CUDAAccelerator()), "RuntimeError", "CUDAAccelerator"
    ),
    "strategy foo": Misuse(lambda c: c.fabric(strategy="foo"), "ValueError", "strategy='foo'"),
    "strategy None": Misuse(lambda c: c.fabric(strategy=None), "ValueError", "strategy=None"),
    "a strategy class": Misuse(
        lambda c: c.fabric(strategy=c.strategies.SingleDeviceStrategy), "ValueError", "SingleDeviceStrategy"
    ),
    "no machines": Misuse(lambda c: c.fabric(num_nodes=0), "ValueError", "num_nodes=0"),
    "machines foo": Misuse(lambda c: c.fabric(num_nodes="foo"), "ValueError", "foo"),
    "a plugin of another kind": Misuse(lambda c: c.fabric(plugins=[nn.ReLU()]), "TypeError", r"ReLU\(\)"),
    "a plugin's class": Misuse(lambda c: c.fabric(plugins=[c.plugins.Precision]), "TypeError", "Precision"),
    "a number as a plugin": Misuse(lambda c: c.fabric(plugins=3), "TypeError", "3"),
    "a name as a plugin": Misuse(lambda c: c.fabric(plugins="foo"), "TypeError", "f"),
    "two precisions": Misuse(
        lambda c: c.fabric(plugins=[c.plugins.Precision(), c.plugins.HalfPrecision()]), "ValueError", "one Precision"
    ),
    "two ways to keep checkpoints": Misuse(
        lambda c: c.fabric(plugins=[c.plugins.TorchCheckpointIO(), c.plugins.TorchCheckpointIO()]),
        "ValueError",
        "one CheckpointIO",
    ),
    "two environments": Misuse(
        lambda c: c.fabric(plugins=[c.environments.LightningEnvironment(), c.environments.LightningEnvironment()]),
        "ValueError",
        "one ClusterEnvironment",
    ),
    "a precision and its name": Misuse(
        lambda c: c.fabric(precision="64-true", plugins=c.plugins.Precision()), "ValueError", "precision='64-true'"
    ),
    "a precision and the default's name": Misuse(
        lambda c: c.fabric(precision="32-true", plugins=c.plugins.Precision()), "ValueError", "precision='32-true'"
    ),
    "a precision in strategy and plugins": Misuse(
        lambda c: c.fabric(
            strategy=strategy_with(c, precision=c.plugins.Precision()), plugins=c.plugins.DoublePrecision()
        ),
        "ValueError",
        "DoublePrecision",
    ),
    "checkpoints in strategy and plugins": Misuse(
        lambda c: c.fabric(
            strategy=strategy_with(c, checkpoint_io=c.plugins.TorchCheckpointIO()),
            plugins=c.plugins.TorchCheckpointIO(),
        ),
        "ValueError",
        "TorchCheckpointIO",
    ),
    "an accelerator in strategy and argument": Misuse(
        lambda c: c.fabric(
            strategy=strategy_with(c, accelerator=c.accelerators.CPUAccelerator()), accelerator="cpu"
        ),
        "ValueError",
        "accelerator='cpu'",
    ),
    # the parts
    "half precision foo": Misuse(
        lambda c: c.plugins.MixedPrecision("foo", device="cpu"), "ValueError", r"precision='foo'"
    ),
    "a scaler without need": Misuse(
        lambda c: c.plugins.MixedPrecision("bf16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu")),
        "ValueError",
        "bf16-mixed.*scaler",
    ),
    "the device of another kind": Misuse(
        lambda c: c.accelerators.CPUAccelerator().setup_device(torch.device("cuda")), "ValueError", "cuda"
    ),
    "the CPU for CUDA": Misuse(
        lambda c: c.accelerators.CUDAAccelerator().setup_device(torch.device("cpu")), "ValueError", "cpu"
    ),
    "the CPU for MPS": Misuse(
        lambda c: c.accelerators.MPSAccelerator().setup_device(torch.device("cpu")), "ValueError", "cpu"
    ),
    "a device that is not there": Misuse(
        lambda c: c.accelerators.CUDAAccelerator.parse_devices(7), "MisconfigurationException", "devices=7"
    ),
    "a list of devices that are not there": Misuse(
        lambda c: c.accelerators.CUDAAccelerator.parse_devices([0, 1]), "MisconfigurationException", r"\[0, 1\]"
    ),
    "a device twice": Misuse(
        lambda c: c.accelerators.CUDAAccelerator.parse_devices([0, 0]), "MisconfigurationException", r"\[0, 0\]"
    ),
    "no number of devices": Misuse(
        lambda c: c.accelerators.CUDAAccelerator.parse_devices(None), "TypeError", "devices=None"
    ),
    "a truth value as number of devices": Misuse(
        lambda c: c.accelerators.CUDAAccelerator.parse_devices(True), "TypeError", "devices=True"
    ),
    "truth values as devices": Misuse(
        lambda c: c.accelerators.CUDAAccelerator.parse_devices([True]), "TypeError", r"devices=\[True\]"
    ),
    "half a device": Misuse(lambda c: c.accelerators.CUDAAccelerator.parse_devices(1.5), "TypeError", "devices=1.5"),
    "a strategy without its methods": Misuse(lambda c: c.strategies.Strategy(), "TypeError", "abstract"),
    "an accelerator without its methods": Misuse(lambda c: c.accelerators.Accelerator(), "TypeError", "abstract"),
    "an environment without its methods": Misuse(
        lambda c: c.environments.ClusterEnvironment(), "TypeError", "abstract"
    ),
    "checkpoints without methods": Misuse(lambda c: c.plugins.CheckpointIO(), "TypeError", "abstract"),
    "storage options": Misuse(
        lambda c: c.plugins.TorchCheckpointIO().save_checkpoint({}, c.folder / "x", storage_options={"a": 1}),
        "TypeError",
        "storage options.*'a': 1",
    ),
    "a device of no kind": Misuse(
        lambda c: c.strategies.SingleDeviceStrategy(device="foo"), "RuntimeError", "foo"
    ),
    # setting up
    "a module twice": Misuse(lambda c: c.cpu.setup(c.wrapped), "ValueError", "set up before.*once"),
    "a module twice, alone": Misuse(lambda c: c.cpu.setup_module(c.wrapped), "ValueError", "set up before.*once"),
    "an optimizer twice": Misuse(
        lambda c: c.cpu.setup_optimizers(c.cpu.setup_optimizers(sgd())), "ValueError", "set up before.*once"
    ),
    "an optimizer twice, with a module": Misuse(
        lambda c: c.cpu.setup(nn.Linear(1, 1), c.cpu.setup_optimizers(sgd())), "ValueError", "set up before.*once"
    ),
    "no optimizer": Misuse(lambda c: c.cpu.setup_optimizers(), "ValueError", "no optimizer"),
    "an optimizer of meta parameters": Misuse(
        lambda c: c.cpu.setup_optimizers(meta_sgd()), "RuntimeError", "SGD.*meta device"
    ),
    "a name as an optimizer": Misuse(lambda c: c.cpu.setup_optimizers("adam"), "TypeError", "'adam'"),
    "a name as an optimizer, with a module": Misuse(
        lambda c: c.cpu.setup(nn.Linear(1, 1), "adam"), "TypeError", "'adam'"
    ),
    "no module": Misuse(lambda c: c.cpu.setup(), "TypeError", "missing 1 required positional argument: 'module'"),
    "a dataloader twice": Misuse(
        lambda c: c.cpu.setup_dataloaders(c.cpu.setup_dataloaders(DataLoader([1]))), "ValueError", "returned before"
    ),
    "no dataloader": Misuse(lambda c: c.cpu.setup_dataloaders(), "ValueError", "no dataloader"),
    "a list as a dataloader": Misuse(lambda c: c.cpu.setup_dataloaders([1, 2]), "TypeError", r"\[1, 2\].*DataLoader"),
    "a dataset as a dataloader": Misuse(
        lambda c: c.cpu.setup_dataloaders(DataLoader([1]), range(3)), "TypeError", r"range\(0, 3\)"
    ),
    # training
    "loss.backward() in mixed precision": Misuse(
        lambda c: output(c, precision="bf16-mixed").backward(), "RuntimeError", r"fabric.backward\(loss\)"
    ),
    "loss.backward() with a scaler": Misuse(
        lambda c: output(c, plugins=c.half).backward(), "RuntimeError", r"fabric.backward\(loss\)"
    ),
    "backward of no tensor": Misuse(lambda c: c.cpu.backward(1.0), "AttributeError", "backward"),
    "backward without a graph": Misuse(lambda c: c.cpu.backward(torch.ones(())), "RuntimeError", "grad"),
    "backward twice": Misuse(backward_twice, "RuntimeError", "second time"),
    "clipping by both": Misuse(
        lambda c: c.cpu.clip_gradients(c.wrapped, sgd(), clip_val=1, max_norm=2),
        "ValueError",
        "clip_val=1, max_norm=2",
    ),
    "clipping by none": Misuse(
        lambda c: c.cpu.clip_gradients(c.wrapped, sgd()), "ValueError", "clip_val=None, max_norm=None"
    ),
    "clipping infinite gradients": Misuse(clip_infinite, "RuntimeError", "non-finite"),
    "clipping with a fused optimizer": Misuse(clip_fused, "NotImplementedError", "AdamW.*fused"),
    "LBFGS with a scaler": Misuse(step_of_lbfgs, "TypeError", "LBFGS"),
    "synchronization of a bare module": Misuse(
        lambda c: c.cpu.no_backward_sync(nn.Linear(1, 1)), "TypeError", "Linear.*not set up"
    ),
    "marking the forward": Misuse(lambda c: c.wrapped.mark_forward_method("forward"), "ValueError", "forward"),
    "marking what is not there": Misuse(
        lambda c: c.wrapped.mark_forward_method("nothing"), "AttributeError", "Linear.*no method"
    ),
    "marking an attribute": Misuse(
        lambda c: c.wrapped.mark_forward_method("in_features"), "AttributeError", "'in_features'.*no method"
    ),
    "marking a number": Misuse(lambda c: c.wrapped.mark_forward_method(3), "TypeError", "3"),
    "marking a function": Misuse(lambda c: c.wrapped.mark_forward_method(len), "TypeError", "len"),
    "an attribute that is not there": Misuse(lambda c: c.wrapped.nothing, "AttributeError", "nothing"),
    "an attribute of an optimizer": Misuse(
        lambda c: c.cpu.setup_optimizers(sgd()).nothing, "AttributeError", "nothing"
    ),
    # launching
    "launching a result": Misuse(lambda c: c.cpu.launch(3), "TypeError", r"launch\(3\)"),
    "launching a name": Misuse(lambda c: c.cpu.launch("train"), "TypeError", "'train'"),
    "launching what takes nothing": Misuse(lambda c: c.cpu.launch(lambda: None), "TypeError", "fabric"),
    "launching what takes less": Misuse(lambda c: c.cpu.launch(lambda fabric: None, 1), "TypeError", "argument"),
    # seeds
    "a seed below 0": Misuse(lambda c: c.cpu.seed_everything(-1), "ValueError", "-1"),
    "a seed too large": Misuse(lambda c: c.library.seed_everything(2**32), "ValueError", str(2**32)),
    "a seed that is a word": Misuse(lambda c: c.library.seed_everything("abc"), "ValueError", "abc"),
    # loggers
    "no logger": Misuse(lambda c: c.cpu.logger, "IndexError", "out of range"),
    "a metric of many elements": Misuse(
        lambda c: c.fabric(loggers=c.library.loggers.CSVLogger(c.folder)).log("a", torch.ones(2)), "ValueError", "2"
    ),
    "a logger without log_metrics": Misuse(
        lambda c: c.fabric(loggers=object()).log("a", 1), "AttributeError", "log_metrics"
    ),
    # checkpoints
    "a filter that is a list": Misuse(
        lambda c: c.cpu.save(c.folder / "x", {"a": 1}, filter=["a"]), "TypeError", r"\['a'\]"
    ),
    "a filter that is a function": Misuse(
        lambda c: c.cpu.save(c.folder / "x", {"a": 1}, filter=len), "TypeError", "len"
    ),
    "a filter for another name": Misuse(
        lambda c: c.cpu.save(c.folder / "x", {"a": 1}, filter={"b": len}), "ValueError", "'b'.*'a'"
    ),
    "a filter that does not filter": Misuse(
        lambda c: c.cpu.save(c.folder / "x", {"a": 1}, filter={"a": 3}), "TypeError", "'a': 3"
    ),
    "what does not pickle": Misuse(
        lambda c: c.cpu.save(c.folder / "x", {"a": lambda: None}), "PicklingError|AttributeError", "lambda"
    ),
    "a missing file": Misuse(lambda c: c.cpu.load(c.folder / "nothing"), "FileNotFoundError", "nothing"),
    "a missing file, raw": Misuse(
        lambda c: c.cpu.load_raw(c.folder / "nothing", nn.Linear(1, 1)), "FileNotFoundError", "nothing"
    ),
    "a module as a state": Misuse(lambda c: c.cpu.load(c.saved(), nn.ReLU()), "AttributeError", "items"),
    "a missing name": Misuse(lambda c: c.cpu.load(c.saved(a=1), {"b": 0}), "KeyError", "'b'.*'a'"),
    "other keys in a module": Misuse(
        lambda c: c.cpu.load(c.saved(model=nn.ReLU()), {"model": nn.Linear(1, 1)}), "RuntimeError", "weight"
    ),
    "other shapes in a module": Misuse(
        lambda c: c.cpu.load(c.saved(model=nn.Linear(2, 1)), {"model": nn.Linear(1, 1)}),
        "RuntimeError",
        "size mismatch",
    ),
    "another number of parameter groups": Misuse(
        lambda c: c.cpu.load(c.saved(o=torch.optim.SGD([torch.ones(1), torch.ones(1)])), {"o": sgd(nn.PReLU())}),
        "ValueError",
        "group",
    ),
    "a raw file with other keys": Misuse(
        lambda c: c.cpu.load_raw(c.saved(a=1), nn.Linear(1, 1)), "RuntimeError", "weight"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSES)
def test_the_same_misuse_raises_the_same_error(name: str, cases: Any) -> None:
    misuse = MISUSES[name]
    raised = []
    for case in cases:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its type and message are looked at below
            misuse.run(case)
        raised.append(caught.value)
    their, our = (type(error).__name__ for error in raised)
    assert our == their
    assert re.fullmatch(misuse.error, our)
    assert re.search(misuse.says, str(raised[1]))


def test_an_object_in_a_file_raises_one_that_is_caught_as_theirs(cases: Any) -> None:
    for case in cases:
        with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
            case.cpu.load(case.saved(a=UUID(int=1)))


def test_a_file_cut_off_raises_the_same(cases: Any) -> None:
    raised = []
    for case in cases:
        path: Path = case.saved(a=torch.ones(50))
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(Exception) as caught:  # noqa: PT011 - compared with the other
            case.cpu.load(path)
        raised.append(caught.value)
    assert isinstance(raised[1], type(raised[0]))
