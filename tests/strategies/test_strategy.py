"""The seam: what `Fabric` asks a strategy, and what a subclass can change."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fabric_lite import Fabric
from fabric_lite.accelerators import CPUAccelerator
from fabric_lite.plugins import CheckpointIO, Precision, TorchCheckpointIO
from fabric_lite.strategies import STRATEGY_REGISTRY, ParallelStrategy, SingleDeviceStrategy, Strategy
from fabric_lite.strategies.registry import _StrategyRegistry
from fabric_lite.strategies.strategy import _BackwardSyncControl

META = torch.device("meta")


class Parallel(nn.Module):
    """Does around a module what DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.synchronizes = True
        self.synchronized: list[bool] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.synchronized.append(self.synchronizes)
        return self.module(*args, **kwargs)


class Sync(_BackwardSyncControl):
    @contextmanager
    def no_backward_sync(self, module: Any, enabled: bool) -> Any:
        before, module.synchronizes = module.synchronizes, not enabled
        try:
            yield
        finally:
            module.synchronizes = before


class Recording(Strategy):
    """Implements the least that it has to, and takes note of all that it is asked."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asked: list[Any] = []
        self._backward_sync_control = Sync()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def requires_launch(self) -> bool:
        return False

    @property
    def is_global_zero(self) -> bool:
        return True

    def connect(self, *args: Any) -> None:
        self.asked.append("connect")

    def setup_environment(self) -> None:
        super().setup_environment()
        self.asked.append("setup_environment")

    def module_to_device(self, module: nn.Module) -> None:
        self.asked.append(("module_to_device", module))

    def setup_module(self, module: nn.Module) -> nn.Module:
        self.asked.append(("setup_module", module))
        return Parallel(module)

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        self.asked.append(("setup_optimizer", optimizer))
        return optimizer

    def process_dataloader(self, dataloader: Any) -> Any:
        self.asked.append(("process_dataloader", dataloader))
        return Doubled(dataloader)

    def backward(self, tensor: Tensor, module: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        self.asked.append(("backward", module, args, kwargs))
        super().backward(tensor, module, *args, **kwargs)

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        self.asked.append(("optimizer_step", optimizer))
        return super().optimizer_step(optimizer, **kwargs)

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        return torch.stack([tensor, tensor])

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        return (tensor, reduce_op)

    def barrier(self, name: str | None = None) -> None:
        self.asked.append(("barrier", name))

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return (obj, src)


class Doubled:
    """What a strategy may put around a loader."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return 2 * len(self.loader)

    def __iter__(self) -> Any:
        return (x for x in self.loader for _ in range(2))


def fabric(strategy: Any, **kwargs: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, strategy=strategy, **kwargs)


def test_the_order_in_which_a_strategy_is_asked() -> None:
    strategy, net = Recording(), nn.Linear(1, 1)
    bare = torch.optim.SGD(net.parameters(), lr=1.0)
    setting = fabric(strategy)
    setting.launch()
    model, optimizer = setting.setup(net, bare)
    loss = model(torch.ones(1, 1)).sum()
    setting.backward(loss, retain_graph=True)
    setting.backward(loss, torch.ones(()), model=model)
    optimizer.step()
    setting.barrier("here")
    assert strategy.asked == [
        "connect",
        "setup_environment",
        ("module_to_device", net),
        ("setup_module", net),
        ("setup_optimizer", bare),
        ("backward", None, (), {"retain_graph": True}),
        ("backward", model._forward_module, (torch.ones(()),), {}),
        ("optimizer_step", bare),
        ("barrier", "here"),
    ]
    assert isinstance(model._forward_module, Parallel)
    assert model._forward_module.module is model.module is net


def test_module_and_optimizers_may_be_wrapped_together() -> None:
    class Together(SingleDeviceStrategy):
        def setup_module_and_optimizers(self, module: Any, optimizers: Any, scheduler: Any = None) -> Any:
            return Parallel(module), [torch.optim.Adam(module.parameters()) for _ in optimizers], scheduler

    net = nn.Linear(1, 1)
    model, first, second = fabric(Together()).setup(net, *[torch.optim.SGD(net.parameters(), lr=1.0)] * 2)
    assert isinstance(model._forward_module, Parallel)
    assert isinstance(first, torch.optim.Adam)
    assert isinstance(second, torch.optim.Adam)


def test_what_processes_a_loader_is_iterated_over() -> None:
    strategy, own = Recording(), DataLoader([1, 2], batch_size=None)
    loader = fabric(strategy).setup_dataloaders(own)
    assert strategy.asked[-1] == ("process_dataloader", own)
    assert list(loader) == [1, 1, 2, 2]
    assert len(loader) == 4


def test_the_strategy_speaks_to_the_others() -> None:
    setting = fabric(Recording())
    assert setting.all_gather({"a": 1.5})["a"].tolist() == [1.5, 1.5]
    assert setting.all_reduce(torch.ones(1), reduce_op="sum") == (torch.ones(1), "sum")
    assert setting.broadcast("text", src=3) == ("text", 3)


def test_its_backward_is_the_one_to_call() -> None:
    assert Recording().requires_fabric_backward
    assert not SingleDeviceStrategy().requires_fabric_backward
    model = fabric(Recording()).setup(nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match=r"`loss.backward\(\)` was called .* `fabric.backward\(loss\)`"):
        model(torch.ones(1, 1)).sum().backward()


def test_the_precision_is_asked_around_the_backward() -> None:
    class Noting(Precision):
        def pre_backward(self, tensor: Tensor, module: Any) -> None:
            noted.append(("before", float(tensor.detach()), module))

        def post_backward(self, tensor: Tensor, module: Any) -> None:
            noted.append(("after", float(tensor.detach()), module))

        def backward(self, tensor: Tensor, model: Any, *args: Any, **kwargs: Any) -> None:
            noted.append("backward")
            super().backward(tensor, model, *args, **kwargs)

    noted: list[Any] = []
    setting = fabric(SingleDeviceStrategy(), plugins=Noting())
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    model = setting.setup(net)
    setting.backward(model(torch.ones(1, 1)).sum(), model=model)
    assert noted == [("before", 1.0, net), "backward", ("after", 1.0, net)]


def test_a_strategy_may_bring_its_precision_along() -> None:
    class Halving(Precision):
        def convert_output(self, data: Any) -> Any:
            return data / 2

    class Bound(SingleDeviceStrategy):
        @property
        def precision(self) -> Precision:
            return Halving()

        @precision.setter
        def precision(self, precision: Precision | None) -> None: ...

    model = fabric(Bound()).setup(net := nn.Linear(1, 1))
    assert torch.equal(model(torch.ones(1, 1)), net(torch.ones(1, 1)) / 2)


@pytest.mark.parametrize("method", ["convert_input", "convert_output"])
def test_a_precision_that_changes_one_thing(method: str) -> None:
    own = type(
        "Own", (Precision,), {method: lambda self, data: ((data[0][0] * 3,), {}) if type(data) is tuple else data}
    )
    setting = fabric(SingleDeviceStrategy(), plugins=own())
    model = setting.setup(nn.Identity())
    assert model(torch.ones(1)) == (3 if method == "convert_input" else 1)


# -- leaving synchronization out -------------------------------------------------------------------------------------


def test_synchronization_is_left_out_for_one_module_or_several() -> None:
    setting = fabric(Recording())
    first, second = setting.setup(nn.Linear(1, 1)), setting.setup(nn.Linear(1, 1))
    x = torch.ones(1, 1)
    with setting.no_backward_sync(first):
        first(x), second(x)
    with setting.no_backward_sync([first, second]):
        first(x), second(x)
    with setting.no_backward_sync((first, second), enabled=False):
        first(x), second(x)
    first(x), second(x)
    assert first._forward_module.synchronized == [False, False, True, True]
    assert second._forward_module.synchronized == [True, False, True, True]


def test_synchronization_comes_back_after_an_exception() -> None:
    setting = fabric(Recording())
    models = [setting.setup(nn.Linear(1, 1)) for _ in range(2)]
    with pytest.raises(ValueError, match="in the block"), setting.no_backward_sync(models):
        raise ValueError("in the block")
    assert [model._forward_module.synchronizes for model in models] == [True, True]


def test_a_strategy_that_cannot_leave_it_out_says_so() -> None:
    class Always(Recording):
        def __init__(self) -> None:
            super().__init__()
            self._backward_sync_control = None

    setting = fabric(Always())
    model = setting.setup(nn.Linear(1, 1))
    with pytest.warns(
        UserWarning, match=r"`Always` always synchronizes .* `fabric.no_backward_sync\(\)` saves nothing"
    ):
        context = setting.no_backward_sync(model)
    with context:
        model(torch.ones(1, 1))


# -- its parts -------------------------------------------------------------------------------------------------------


def test_its_parts_are_those_of_fabric() -> None:
    strategy = SingleDeviceStrategy()
    setting = fabric(strategy, precision="64-true")
    assert setting.strategy is strategy
    assert strategy.precision is setting._precision
    assert strategy.accelerator is setting.accelerator
    assert isinstance(strategy.checkpoint_io, TorchCheckpointIO)


def test_parts_that_it_was_made_with_stay() -> None:
    precision, hardware, io = Precision(), CPUAccelerator(), TorchCheckpointIO()
    strategy = SingleDeviceStrategy(accelerator=hardware, precision=precision, checkpoint_io=io)
    setting = Fabric(strategy=strategy)
    assert setting.accelerator is strategy.accelerator is hardware
    assert setting._precision is strategy.precision is precision
    assert strategy.checkpoint_io is io


@pytest.mark.parametrize(
    "made_with, given, message",
    [
        ({"precision": Precision()}, {"plugins": Precision()}, r"was made with <.*Precision.*plugins=...\)` has <"),
        ({"checkpoint_io": TorchCheckpointIO()}, {"plugins": TorchCheckpointIO()}, "Keep one of them"),
        ({"accelerator": CPUAccelerator()}, {"accelerator": "cpu"}, "`Fabric` got `accelerator='cpu'`. Keep one"),
    ],
)
def test_a_part_cannot_be_given_twice(made_with: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fabric(strategy=SingleDeviceStrategy(**made_with), **given)


def test_teardown_reaches_the_parts() -> None:
    class Down(Precision):
        def teardown(self) -> None:
            down.append("precision")

    class Away(TorchCheckpointIO):
        def teardown(self) -> None:
            down.append("io")

    class Off(CPUAccelerator):
        def teardown(self) -> None:
            down.append("accelerator")

    down: list[str] = []
    SingleDeviceStrategy(accelerator=Off(), precision=Down(), checkpoint_io=Away()).teardown()
    assert sorted(down) == ["accelerator", "io", "precision"]


def test_contexts_for_new_tensors_and_modules() -> None:
    class Elsewhere(SingleDeviceStrategy):
        def module_sharded_context(self) -> AbstractContextManager[Any]:
            return torch.device("meta")

    setting = fabric(Elsewhere("meta"), precision="64-true")
    with setting.init_tensor():
        assert (torch.ones(1).device, torch.ones(1).dtype) == (META, torch.float64)
    with setting.init_module():
        layer = nn.Linear(1, 1)
    assert (layer.weight.device, layer.weight.dtype) == (META, torch.float64)
    assert setting.strategy.batch_to_device([torch.ones(1)])[0].device == META
    assert setting.strategy.batch_to_device({"x": torch.ones(1)}, torch.device("cpu"))["x"].device.type == "cpu"
    assert setting.to_device(torch.ones(1)).is_meta


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_strategy_can_be_registered_under_a_name() -> None:
    class Named(SingleDeviceStrategy):
        @classmethod
        def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
            strategy_registry.register("named", cls, description="a name", device="cpu")

    registry = _StrategyRegistry()
    Named.register_strategies(registry)
    assert registry.available_strategies() == ["named"]
    assert isinstance(registry.get("named"), Named)
    assert "named" not in STRATEGY_REGISTRY


@pytest.mark.parametrize("kind", [Strategy, ParallelStrategy, CheckpointIO])
def test_the_seams_cannot_be_used_as_they_are(kind: Any) -> None:
    with pytest.raises(TypeError, match=f"abstract class {kind.__name__}"):
        kind()
