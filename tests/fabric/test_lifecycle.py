"""A Fabric as an object: copies, pickles, several in one process, gone when it goes out of scope; and seeds."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric, seed_everything
from fabric_lite.loggers import CSVLogger
from fabric_lite.plugins import MixedPrecision
from fabric_lite.wrappers import _FabricModule

PRECISIONS = ["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed with a scaler"]


class Counting:
    def __init__(self) -> None:
        self.steps = 0

    def on_after_optimizer_step(self) -> None:
        self.steps += 1


class Subclass(Fabric):
    def run(self, x: int) -> int:
        return x + 1


def make(precision: Any = "32-true", kind: type[Fabric] = Fabric, **arguments: Any) -> Fabric:
    if precision == PRECISIONS[-1]:
        scaler = torch.amp.GradScaler("cpu")
        return kind(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=scaler), **arguments)
    return kind(accelerator="cpu", precision=precision, **arguments)


def train(fabric: Fabric, steps: int = 2) -> list[float]:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    return [step(fabric, model, optimizer) for _ in range(steps)]


def step(fabric: Fabric, model: Any, optimizer: Any) -> float:
    optimizer.zero_grad()
    loss = (model(torch.ones(4, 3)) ** 2).mean()
    fabric.backward(loss)
    optimizer.step()
    return loss.item()


HOW = {"pickle": lambda obj: pickle.loads(pickle.dumps(obj)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("precision", PRECISIONS)
class TestCopies:
    def test_a_copy_is_a_fabric_of_its_own(self, precision: str, how: str) -> None:
        fabric = make(precision, callbacks=[Counting()])
        fabric.call("on_something")
        copied = HOW[how](fabric)
        assert train(copied) == train(fabric)
        assert copied.strategy is not fabric.strategy
        assert copied._precision is copied.strategy.precision is not fabric._precision
        assert copied._connector.strategy is copied.strategy
        assert [callbacks[0].steps for callbacks in (copied.callbacks, fabric.callbacks)] == [2, 2]

    def test_also_after_training(self, precision: str, how: str) -> None:
        fabric = make(precision)
        net = nn.Linear(3, 2)
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
        step(fabric, model, optimizer)
        assert train(HOW[how](fabric)) == train(fabric)

    def test_together_with_what_it_has_set_up(self, precision: str, how: str) -> None:
        fabric = make(precision)
        net = nn.Linear(3, 2)
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
        step(fabric, model, optimizer)
        copied = HOW[how]((fabric, model, optimizer))
        assert type(copied[1]) is _FabricModule
        losses = [[step(*objects) for _ in range(3)] for objects in (copied, (fabric, model, optimizer))]
        assert losses[0] == losses[1]
        assert losses[0][0] > losses[0][2]  # it is the copy's own parameters that its optimizer changes


def test_a_subclass_with_a_logger_survives_pickling(tmp_path: Path) -> None:
    fabric = make(kind=Subclass, loggers=CSVLogger(tmp_path))
    copied = pickle.loads(pickle.dumps(fabric))
    assert type(copied) is Subclass
    assert copied.run(1) == 2
    assert copied.logger.root_dir == str(tmp_path)


ELSEWHERE = """
import pickle, sys, torch
fabric = pickle.load(open(sys.argv[1], "rb"))
model = fabric.setup(torch.nn.Linear(3, 2))
output = model(torch.ones(1, 3))
fabric.backward(output.sum())
print(fabric._precision.precision, fabric.device, output.dtype, model.weight.grad.dtype)
"""


def test_into_another_process(tmp_path: Path) -> None:
    """As a launcher that spawns its processes sends it."""
    (tmp_path / "fabric").write_bytes(pickle.dumps(make("bf16-mixed")))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "fabric")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["bf16-mixed", "cpu", "torch.float32", "torch.float32"], done.stderr


class TestSeveral:
    def test_they_do_not_share_anything(self) -> None:
        fabrics = [make(precision, callbacks=Counting()) for precision in PRECISIONS]
        alone = [train(make(precision)) for precision in PRECISIONS]
        together: list[list[float]] = [[] for _ in fabrics]
        prepared = []
        for fabric in fabrics:
            torch.manual_seed(0)
            net = nn.Linear(3, 2)
            prepared.append(fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1)))
        for _ in range(2):  # taking turns
            for fabric, (model, optimizer), losses in zip(fabrics, prepared, together, strict=True):
                losses.append(step(fabric, model, optimizer))
        assert together == alone
        assert [fabric.callbacks[0].steps for fabric in fabrics] == [2] * len(fabrics)

    def test_contexts_one_inside_the_other(self) -> None:
        with make("64-true").init_module(), make("bf16-true").init_module():
            inner = nn.Linear(1, 1)
        assert inner.weight.dtype is torch.bfloat16
        assert torch.get_default_dtype() is torch.float32


def test_it_goes_at_once_with_all_that_it_set_up() -> None:
    gc.disable()
    try:
        fabric = make(PRECISIONS[-1], callbacks=Counting())
        net = nn.Linear(3, 2)
        model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
        step(fabric, model, optimizer)
        fabric.call("on_anything", x=1)
        gone = [weakref.ref(obj) for obj in (fabric, net, optimizer.optimizer, fabric.strategy, fabric._precision)]
        del fabric, net, model, optimizer
        assert [ref() for ref in gone] == [None] * 5
    finally:
        gc.enable()


class TestSeeds:
    def test_it_needs_no_fabric_and_seeds_the_workers_too(self) -> None:
        assert Fabric.seed_everything(3, verbose=False) == 3
        assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("3", "1")
        first = torch.rand(1)
        make().seed_everything(3, verbose=False)
        assert torch.equal(first, torch.rand(1))

    @pytest.mark.parametrize(("workers", "variable"), [(None, "1"), (True, "1"), (False, "0")])
    def test_workers(self, workers: bool | None, variable: str) -> None:
        Fabric.seed_everything(1, workers=workers, verbose=False)
        assert os.environ["PL_SEED_WORKERS"] == variable

    def test_the_function_leaves_the_workers_alone(self) -> None:
        seed_everything(1, verbose=False)
        assert os.environ["PL_SEED_WORKERS"] == "0"

    def test_the_seed_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PL_GLOBAL_SEED", "17")
        assert Fabric.seed_everything() == 17

    @pytest.mark.parametrize("seed", [-1, 2**32, "x", 1.5])
    def test_a_wrong_seed(self, seed: Any) -> None:
        with pytest.raises(ValueError, match=str(seed)):
            Fabric.seed_everything(seed)
