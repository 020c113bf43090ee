"""Setting up: what comes back, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from fabric_lite import Fabric, is_wrapped
from fabric_lite.fabric.setup import _warn_of_several_devices
from fabric_lite.strategies import SingleDeviceStrategy
from fabric_lite.utilities.warnings import PossibleUserWarning
from fabric_lite.wrappers import _FabricDataLoader, _FabricModule, _FabricOptimizer


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1)


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


class TestSetup:
    def test_a_module_alone(self, fabric: Fabric) -> None:
        net = nn.Linear(2, 1)
        model = fabric.setup(net)
        assert type(model) is _FabricModule
        assert model.module is net
        assert is_wrapped(model)
        assert not is_wrapped(net)

    def test_with_optimizers(self, fabric: Fabric) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        bare = [torch.optim.Adam(net[0].parameters()), sgd(net[1])]
        model, *optimizers = fabric.setup(net, *bare)
        assert [o.optimizer for o in optimizers] == bare
        assert [type(o) for o in optimizers] == [_FabricOptimizer] * 2
        assert isinstance(optimizers[0], torch.optim.Adam)
        assert model.module is net

    def test_with_a_scheduler_which_comes_back_as_it_is(self, fabric: Fabric) -> None:
        net = nn.Linear(2, 1)
        optimizer = sgd(net)
        scheduler = StepLR(optimizer, 1)
        results = fabric.setup(net, optimizer, scheduler=scheduler)
        assert len(results) == 3
        assert results[2] is scheduler
        results[1].step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)

    def test_the_strategy_may_wrap_each_of_them(self) -> None:
        class Wrapping(SingleDeviceStrategy):
            def setup_module(self, module: nn.Module) -> nn.Module:
                return nn.Sequential(module)

            def setup_optimizer(self, optimizer: Any) -> Any:
                return torch.optim.SGD(optimizer.param_groups[0]["params"], lr=5.0)

            def process_dataloader(self, dataloader: Any) -> Any:
                return DataLoader(dataloader.dataset, batch_size=3)

        fabric = Fabric(accelerator="cpu", strategy=Wrapping())
        net = nn.Linear(2, 1)
        model, optimizer = fabric.setup(net, sgd(net))
        assert isinstance(model._forward_module, nn.Sequential)
        assert model.module is net
        assert optimizer.param_groups[0]["lr"] == 5.0
        assert fabric.setup_optimizers(sgd(net)).param_groups[0]["lr"] == 5.0
        assert fabric.setup_dataloaders(DataLoader(range(3))).batch_size == 3

    def test_left_where_it_is(self, fabric: Fabric) -> None:
        net = nn.Linear(2, 1, device="meta")
        model = fabric.setup(net, move_to_device=False)
        assert model.weight.device.type == model.device.type == "meta"

    def test_a_module_without_parameters(self, fabric: Fabric) -> None:
        assert fabric.setup(nn.Identity()).device == torch.device("cpu")

    def test_parameters_without_memory_get_some(self, fabric: Fabric) -> None:
        model = fabric.setup(nn.Linear(2, 1, device="meta"))
        assert model.weight.device.type == "cpu"
        assert model(torch.ones(1, 2)).shape == (1, 1)

    def test_parameters_on_several_devices(self) -> None:
        fabric = Fabric(accelerator="cpu", strategy=SingleDeviceStrategy("meta"))
        net = nn.Sequential(nn.Linear(2, 1, device="meta"), nn.Linear(1, 1, device="cpu"))
        message = r"several devices: '0.weight' on meta, '1.weight' on cpu, 2 of 4 elsewhere.*`move_to_device=False`"
        with pytest.warns(PossibleUserWarning, match=message):
            _warn_of_several_devices(net)
        model = fabric.setup(net, move_to_device=False)
        assert model.module[1].weight.device.type == "cpu"

    def test_module_and_optimizers_apart(self, fabric: Fabric) -> None:
        model = fabric.setup_module(nn.Linear(2, 1))
        first, second = fabric.setup_optimizers(sgd(model), sgd(model))
        assert type(fabric.setup_optimizers(sgd(model))) is type(first) is type(second) is _FabricOptimizer
        before = model.weight.detach().clone()
        fabric.backward(model(torch.ones(1, 2)).sum())
        first.step()
        assert not torch.equal(before, model.weight)

    def test_dataloaders(self, fabric: Fabric) -> None:
        loaders = [DataLoader(range(3)), DataLoader(range(4))]
        one = fabric.setup_dataloaders(loaders[0])
        several = fabric.setup_dataloaders(*loaders, move_to_device=False)
        assert type(one) is _FabricDataLoader
        assert isinstance(several, list)
        assert [len(loader) for loader in several] == [3, 4]
        assert (one.device, several[0].device) == (torch.device("cpu"), None)


class TestLightningModules:
    """A module that asks for it is told who runs it."""

    class Module(nn.Linear):
        _fabric: Any = None
        _fabric_optimizers: Any = ()

    def test_it_gets_the_fabric_and_the_optimizers(self, fabric: Fabric) -> None:
        net = self.Module(2, 1)
        _, optimizer = fabric.setup(net, sgd(net))
        assert net._fabric is fabric
        assert net._fabric_optimizers == [optimizer]

    def test_from_setup_module_without_optimizers(self, fabric: Fabric) -> None:
        net = self.Module(2, 1)
        fabric.setup_module(net)
        assert net._fabric is fabric
        assert net._fabric_optimizers == ()

    def test_a_module_that_does_not_is_left_alone(self, fabric: Fabric) -> None:
        net = nn.Linear(2, 1)
        before = set(vars(net))
        fabric.setup(net, sgd(net))
        assert set(vars(net)) == before

    def test_a_real_one(self, fabric: Fabric, tmp_path: Any) -> None:
        from lightning.pytorch import LightningModule

        class Real(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 1)

            def training_step(self, batch: Tensor) -> Tensor:
                loss = self.layer(batch).sum()
                self.log("loss", loss)
                return loss

        class Memory:
            def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
                logged.append(metrics)

        logged: list[dict[str, Any]] = []
        fabric = Fabric(accelerator="cpu", loggers=Memory())
        module = Real()
        model, optimizer = fabric.setup(module, sgd(module))
        loss = model.training_step(torch.ones(1, 2))
        fabric.backward(loss)
        optimizer.step()
        assert logged == [{"loss": pytest.approx(loss.item())}]
        assert module.optimizers() is optimizer
        assert module.logger is fabric.logger


class TestRefusals:
    @pytest.mark.parametrize("method", ["setup", "setup_module"])
    def test_a_module_twice(self, fabric: Fabric, method: str) -> None:
        model = fabric.setup(nn.Linear(2, 1))
        with pytest.raises(ValueError, match=rf"`fabric.{method}\(...\)` got a module that was set up before"):
            getattr(fabric, method)(model)

    @pytest.mark.parametrize("method", ["setup", "setup_module"])
    @pytest.mark.parametrize("thing", [None, 3, "model", nn.Linear, [nn.Linear(1, 1)]])
    def test_something_that_is_no_module(self, fabric: Fabric, method: str, thing: Any) -> None:
        with pytest.raises(TypeError) as error:
            getattr(fabric, method)(thing)
        assert f"`fabric.{method}(...)` takes a `torch.nn.Module` first, but got {thing!r}" in str(error.value)

    def test_the_optimizer_before_the_module(self, fabric: Fabric) -> None:
        net = nn.Linear(2, 1)
        with pytest.raises(TypeError, match=r"takes a `torch.nn.Module` first, but got SGD"):
            fabric.setup(sgd(net), net)  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", ["setup", "setup_optimizers"])
    def test_an_optimizer_twice(self, fabric: Fabric, method: str) -> None:
        net = nn.Linear(2, 1)
        optimizer = fabric.setup_optimizers(sgd(net))
        arguments = (net, optimizer) if method == "setup" else (optimizer,)
        with pytest.raises(ValueError, match=rf"`fabric.{method}\(...\)` got an optimizer that was set up before"):
            getattr(fabric, method)(*arguments)

    @pytest.mark.parametrize("method", ["setup", "setup_optimizers"])
    @pytest.mark.parametrize("thing", [None, "adam", torch.optim.SGD, nn.Linear(1, 1)])
    def test_something_that_is_no_optimizer(self, fabric: Fabric, method: str, thing: Any) -> None:
        arguments = (nn.Linear(2, 1), thing) if method == "setup" else (thing,)
        with pytest.raises(TypeError) as error:
            getattr(fabric, method)(*arguments)
        assert f"`fabric.{method}(...)` takes `torch.optim.Optimizer`s, but got {thing!r}" in str(error.value)

    @pytest.mark.parametrize("method", ["setup", "setup_optimizers"])
    def test_an_optimizer_whose_parameters_have_no_memory(self, fabric: Fabric, method: str) -> None:
        net = nn.Linear(2, 1, device="meta")
        arguments = (net, sgd(net)) if method == "setup" else (sgd(net),)
        with pytest.raises(RuntimeError, match=r"`SGD` holds parameters on the meta device.*fabric.setup_module"):
            getattr(fabric, method)(*arguments)
        assert net.weight.is_meta

    def test_none_of_them(self, fabric: Fabric) -> None:
        with pytest.raises(ValueError, match=r"`fabric.setup_optimizers\(\)` got no optimizer. Pass at least one"):
            fabric.setup_optimizers()
        with pytest.raises(ValueError, match=r"`fabric.setup_dataloaders\(\)` got no dataloader. Pass at least one"):
            fabric.setup_dataloaders()

    def test_a_dataloader_twice(self, fabric: Fabric) -> None:
        loader = fabric.setup_dataloaders(DataLoader(range(2)))
        with pytest.raises(ValueError, match=r"`fabric.setup_dataloaders\(...\)` got a dataloader that it returned"):
            fabric.setup_dataloaders(loader)

    @pytest.mark.parametrize("thing", [None, [1, 2], range(3)])
    def test_something_that_is_no_dataloader(self, fabric: Fabric, thing: Any) -> None:
        with pytest.raises(TypeError) as error:
            fabric.setup_dataloaders(thing)
        assert f"`fabric.setup_dataloaders(...)` got {thing!r}" in str(error.value)
        assert "`fabric.to_device(batch)`" in str(error.value)

    def test_nothing_is_left_behind(self, fabric: Fabric) -> None:
        net = TestLightningModules.Module(2, 1)
        before = vars(net).copy()
        for arguments in ((net, None), (net, sgd(net), "x"), (net, fabric.setup_optimizers(sgd(net)))):
            with pytest.raises((TypeError, ValueError), match=r"fabric.setup"):
                fabric.setup(*arguments)
        assert vars(net) == before
        assert not net._forward_hooks
        double = Fabric(accelerator="cpu", precision="64-true")
        with pytest.raises(TypeError, match=r"takes `torch.optim.Optimizer`s"):
            double.setup(net, "x")  # type: ignore[arg-type]
        assert net.weight.dtype is torch.float32
        assert fabric.setup(net)(torch.ones(1, 2)).shape == (1, 1)
