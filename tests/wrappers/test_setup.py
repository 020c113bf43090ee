"""Setting up: several models, tied and meta parameters, and misuse, which leaves nothing behind on what was passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fabric_lite import Fabric, is_wrapped
from fabric_lite.strategies import ParallelStrategy, SingleDeviceStrategy

DTYPES = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "16-true": torch.float16,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.float32,
}


class Tied(nn.Module):
    """A language model in small: input and output share their weights, and a layer appears twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.first = nn.Linear(2, 2)
        self.second = self.first
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.norm(self.embedding(x)))))


class Unknown(nn.Module):
    """Nobody knows how its parameter begins."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def fabric(precision: str = "32-true", **kwargs: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=precision, **kwargs)  # type: ignore[arg-type]


# -- what comes back -------------------------------------------------------------------------------------------------


def test_what_comes_back() -> None:
    setting, net = fabric(), nn.Linear(1, 1)
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in net.parameters()]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizers[0], 1)
    assert is_wrapped(setting.setup(net))
    model, *rest = setting.setup(net, *optimizers)
    assert model.module is net
    assert [each.optimizer for each in rest] == optimizers
    model, first, second, given = setting.setup(net, *optimizers, scheduler=scheduler)
    assert given is scheduler
    assert (first.optimizer, second.optimizer) == tuple(optimizers)
    assert setting.setup_optimizers(optimizers[0]).optimizer is optimizers[0]
    assert [each.optimizer for each in setting.setup_optimizers(*optimizers)] == optimizers


def test_two_models_and_three_optimizers() -> None:
    setting = fabric("bf16-mixed")
    nets = [nn.Linear(2, 2), nn.Linear(2, 1)]
    first, a, b = setting.setup(nets[0], *[torch.optim.SGD([p], lr=0.1) for p in nets[0].parameters()])
    second, c = setting.setup(nets[1], torch.optim.Adam(nets[1].parameters()))
    before = [p.detach().clone() for net in nets for p in net.parameters()]

    def changed() -> list[bool]:
        now = [p for net in nets for p in net.parameters()]
        return [not torch.equal(p, q) for p, q in zip(before, now, strict=True)]

    setting.backward(second(first(torch.ones(3, 2))).sum())
    a.step()
    assert changed() == [True, False, False, False]
    b.step()
    c.step()
    assert changed() == [True] * 4


def test_a_module_may_be_set_up_twice_if_it_is_the_bare_one() -> None:
    net = nn.Linear(2, 2)
    first, second = fabric().setup(net), fabric().setup(net)
    assert first is not second
    assert torch.equal(first(torch.ones(1, 2)), second(torch.ones(1, 2)))


@pytest.mark.parametrize("method", ["setup", "setup_module"])
def test_callbacks_hear_of_it(method: str) -> None:
    class Recorder:
        def on_after_setup(self, module: Any) -> None:
            seen.append(module)

    class All:
        def on_after_setup(self, **kwargs: Any) -> None:
            seen.append(kwargs)

    seen: list[Any] = []
    setting = fabric(callbacks=[Recorder(), All()])
    model = getattr(setting, method)(nn.Linear(1, 1))
    assert seen[0] is model
    assert seen[1] == {"fabric": setting, "module": model}
    assert len(seen) == 2


def test_a_module_that_wants_to_know_gets_to_know_who_runs_it() -> None:
    net: Any = nn.Linear(1, 1)
    net._fabric, net._fabric_optimizers = None, []
    setting = fabric()
    _, optimizer = setting.setup(net, torch.optim.SGD(net.parameters(), lr=1.0))
    assert net._fabric is setting
    assert net._fabric_optimizers == [optimizer]


# -- tied and meta parameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["cpu", "meta", "init_module", "empty"])
@pytest.mark.parametrize("precision", DTYPES)
def test_tied_parameters_stay_tied(precision: str, origin: str) -> None:
    setting = fabric(precision)
    if origin in ("init_module", "empty"):
        with setting.init_module(empty_init=origin == "empty"):
            net = Tied()
    else:
        with torch.device(origin):
            net = Tied()
    model = setting.setup(net)
    assert net.head.weight is net.embedding.weight
    assert model.head.weight is model.embedding.weight
    assert net.first is net.second
    assert len(list(model.parameters())) == len(list(net.parameters())) == 5
    assert {p.device.type for p in net.parameters()} == {b.device.type for b in net.buffers()} == {"cpu"}
    assert {p.dtype for p in net.parameters()} == {DTYPES[precision]}
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("precision", DTYPES)
def test_a_model_from_meta_begins_as_any_other_and_trains(precision: str) -> None:
    setting = fabric(precision)
    with torch.device("meta"):
        net = Tied()
    model = setting.setup_module(net)
    assert bool((net.norm.running_var == 1).all())
    assert bool((net.norm.weight == 1).all())
    assert 0 < float(net.first.weight.detach().abs().max()) < 1
    optimizer = setting.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    before = net.embedding.weight.detach().clone()
    setting.backward(model(torch.tensor([0, 1, 2])).square().sum())
    optimizer.step()
    assert not torch.equal(net.embedding.weight, before)
    assert torch.equal(net.embedding.weight, net.head.weight)


@pytest.mark.filterwarnings("ignore:The module that is set up has parameters on several devices")
def test_what_is_on_the_device_already_keeps_its_values() -> None:
    net = Tied()
    with torch.device("meta"):
        net.first = nn.Linear(2, 2)
    before = net.embedding.weight.detach().clone()
    fabric().setup(net)
    assert torch.equal(net.embedding.weight, before)
    assert not net.first.weight.is_meta


def test_a_meta_module_stays_where_it_is_if_it_is_not_to_move() -> None:
    with torch.device("meta"):
        net = nn.Linear(1, 1)
    model = fabric().setup(net, move_to_device=False)
    assert net.weight.is_meta
    assert model.device == torch.device("meta")


@pytest.mark.parametrize("place", ["alone", "last"])
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_meta_module_that_cannot_begin(precision: str, place: str, snapshot: Callable[[nn.Module], Any]) -> None:
    with torch.device("meta"):
        net = Unknown() if place == "alone" else nn.Sequential(nn.Linear(2, 2), Unknown())
    before = snapshot(net)
    with pytest.raises(TypeError, match=r"Unknown has parameters .* Write a method `reset_parameters\(self\)`"):
        fabric(precision).setup(net)
    assert all(p.is_meta for p in net.parameters())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert snapshot(net) == before


# -- misuse ----------------------------------------------------------------------------------------------------------


class Waiting(ParallelStrategy):
    """Has to be launched."""

    root_device = torch.device("cpu")  # type: ignore[assignment]
    module_to_device = all_reduce = barrier = broadcast = SingleDeviceStrategy.broadcast  # type: ignore[assignment]


Parts = tuple[Any, Any, Any]
MISUSE: dict[str, tuple[Callable[[Fabric, Parts], Any], type[Exception], str]] = {
    "module twice": (lambda f, p: f.setup(f.setup(p[0])), ValueError, r"`fabric.setup\(...\)` got a module .* before"),
    "module twice, alone": (
        lambda f, p: f.setup_module(f.setup_module(p[0])),
        ValueError,
        r"`fabric.setup_module\(...\)` got a module that was set up before. Pass each module once",
    ),
    "no module": (lambda f, p: f.setup(p[1], p[1]), TypeError, r"takes a `torch.nn.Module` first, but got SGD"),
    "a function": (lambda f, p: f.setup_module(len), TypeError, "takes a `torch.nn.Module` first, but got <built-in"),
    "nothing": (lambda f, p: f.setup(None), TypeError, "takes a `torch.nn.Module` first, but got None"),
    "an optimizer twice": (
        lambda f, p: f.setup(p[0], f.setup_optimizers(p[1])),
        ValueError,
        r"`fabric.setup\(...\)` got an optimizer that was set up before. Pass each optimizer once",
    ),
    "no optimizer": (lambda f, p: f.setup(p[0], "sgd"), TypeError, "takes `torch.optim.Optimizer`s, but got 'sgd'"),
    "one of several": (lambda f, p: f.setup(p[0], p[1], p[2]), TypeError, "takes `torch.optim.Optimizer`s, but got <"),
    "a list": (lambda f, p: f.setup(p[0], [p[1]]), TypeError, r"takes `torch.optim.Optimizer`s, but got \[SGD"),
    "optimizers alone, none": (lambda f, p: f.setup_optimizers(), ValueError, "got no optimizer. Pass at least one"),
    "optimizers alone, twice": (
        lambda f, p: f.setup_optimizers(f.setup_optimizers(p[1])),
        ValueError,
        r"`fabric.setup_optimizers\(...\)` got an optimizer that was set up before",
    ),
    "optimizers alone, a module": (lambda f, p: f.setup_optimizers(p[0]), TypeError, "`s, but got Sequential"),
    "no loader": (lambda f, p: f.setup_dataloaders(), ValueError, "got no dataloader. Pass at least one"),
    "a loader twice": (
        lambda f, p: f.setup_dataloaders(p[2], f.setup_dataloaders(p[2])),
        ValueError,
        "got a dataloader that it returned before. Pass each once",
    ),
    "a list of batches": (
        lambda f, p: f.setup_dataloaders(p[2], [1, 2]),
        TypeError,
        r"got \[1, 2\]. It takes `torch.utils.data.DataLoader`s; move the data .* `fabric.to_device\(batch\)`",
    ),
    "not synchronizing a bare module": (
        lambda f, p: f.no_backward_sync(p[0]),
        TypeError,
        r"got a `Sequential` that was not set up. Write `model = fabric.setup\(model\)` first",
    ),
    "not synchronizing one of two": (
        lambda f, p: f.no_backward_sync([f.setup(nn.Linear(1, 1)), p[0]]),
        TypeError,
        "got a `Sequential` that was not set up",
    ),
}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("what", [name for name in MISUSE if "module twice" not in name])
def test_misuse_leaves_nothing_behind(what: str, precision: str, snapshot: Callable[[nn.Module], Any]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer, loader = torch.optim.SGD(net.parameters(), lr=1.0), DataLoader([1])
    before = snapshot(net), dict(vars(optimizer)), dict(vars(loader))
    misuse, error, message = MISUSE[what]
    with pytest.raises(error, match=message):
        misuse(fabric(precision), (net, optimizer, loader))
    assert (snapshot(net), vars(optimizer), vars(loader)) == before


@pytest.mark.parametrize("what", [name for name in MISUSE if "module twice" in name])
def test_a_module_that_was_set_up(what: str, snapshot: Callable[[nn.Module], Any]) -> None:
    net = nn.Linear(2, 2)
    before = snapshot(net)
    misuse, error, message = MISUSE[what]
    with pytest.raises(error, match=message):
        misuse(fabric(), (net, None, None))
    assert snapshot(net) == before


def test_an_optimizer_of_meta_parameters(snapshot: Callable[[nn.Module], Any]) -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    before = snapshot(net)
    for misuse in (lambda: fabric().setup(net, optimizer), lambda: fabric().setup_optimizers(optimizer)):
        with pytest.raises(RuntimeError, match=r"`Adam` holds parameters on the meta .* `fabric.setup_optimizers\("):
            misuse()
        assert snapshot(net) == before


@pytest.mark.parametrize("method", ["setup", "setup_module", "setup_optimizers", "setup_dataloaders"])
def test_before_the_processes_are_there(method: str, snapshot: Callable[[nn.Module], Any]) -> None:
    net = nn.Linear(2, 2)
    parts = {"setup_optimizers": torch.optim.SGD(net.parameters(), lr=1.0), "setup_dataloaders": DataLoader([1])}
    before = snapshot(net)
    with pytest.raises(RuntimeError, match=r"`Waiting` runs in several processes, .* Call `fabric.launch\(\)`"):
        getattr(fabric(strategy=Waiting()), method)(parts.get(method, net))
    assert snapshot(net) == before
