"""What a training step goes through: backward, clipping, devices, gradients that are not synchronized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fabric_lite import Fabric
from fabric_lite.strategies import SingleDeviceStrategy, Strategy
from fabric_lite.strategies.strategy import _BackwardSyncControl
from fabric_lite.utilities.warnings import PossibleUserWarning


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


def set_up(fabric: Fabric) -> tuple[Any, Any]:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    return fabric.setup(net, torch.optim.SGD(net.parameters(), lr=1.0))


class TestBackward:
    def test_arguments_are_passed_on(self, fabric: Fabric) -> None:
        model, _ = set_up(fabric)
        output = model(torch.ones(1, 3))
        fabric.backward(output, torch.tensor([[1.0, 0.0]]), retain_graph=True)
        assert model.bias.grad.tolist() == [1.0, 0.0]
        fabric.backward(output, gradient=torch.tensor([[0.0, 2.0]]), inputs=[model.bias])
        assert model.bias.grad.tolist() == [1.0, 2.0]

    @pytest.mark.parametrize("named", [True, False])
    def test_the_strategy_is_told_the_module(self, named: bool) -> None:
        class Telling(SingleDeviceStrategy):
            def backward(self, tensor: Tensor, module: nn.Module | None, *args: Any, **kwargs: Any) -> None:
                told.append(module)
                super().backward(tensor, module, *args, **kwargs)

        told: list[nn.Module | None] = []
        fabric = Fabric(accelerator="cpu", strategy=Telling())
        model, _ = set_up(fabric)
        fabric.backward(model(torch.ones(1, 3)).sum(), model=model if named else None)
        assert told == [model.module if named else None]
        with pytest.raises(RuntimeError, match=r"`loss.backward\(\)`.*needs `fabric.backward\(loss\)`"):
            model(torch.ones(1, 3)).sum().backward()

    def test_an_exception_closes_the_gate_again(self) -> None:
        class Failing(SingleDeviceStrategy):
            def backward(self, tensor: Tensor, module: nn.Module | None, *args: Any, **kwargs: Any) -> None:
                raise KeyError

        fabric = Fabric(accelerator="cpu", strategy=Failing())
        model, _ = set_up(fabric)
        loss = model(torch.ones(1, 3)).sum()
        with pytest.raises(KeyError):
            fabric.backward(loss)
        with pytest.raises(RuntimeError, match="Call that instead"):
            loss.backward()


class TestClipping:
    def gradients(self, model: Any) -> Tensor:
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def test_by_value(self, fabric: Fabric) -> None:
        model, optimizer = set_up(fabric)
        fabric.backward(model(torch.ones(1, 3)).sum() * 10)
        assert fabric.clip_gradients(model, optimizer, clip_val=0.5) is None
        assert self.gradients(model).tolist() == [0.5] * 8

    @pytest.mark.parametrize(("norm_type", "norm"), [(2.0, 20.0), (1, 80.0), (float("inf"), 10.0)])
    def test_by_norm(self, fabric: Fabric, norm_type: float, norm: float) -> None:
        model, optimizer = set_up(fabric)
        fabric.backward(model(torch.ones(1, 3)).sum() * 10)
        before = fabric.clip_gradients(model, optimizer, max_norm=1, norm_type=norm_type)
        expected = 10 * 8**0.5 if norm_type == 2 else norm
        assert before == pytest.approx(expected)
        assert self.gradients(model).norm(norm_type) == pytest.approx(1.0, rel=1e-4)

    def test_with_the_bare_objects(self, fabric: Fabric) -> None:
        model, optimizer = set_up(fabric)
        fabric.backward(model(torch.ones(1, 3)).sum())
        fabric.clip_gradients(model.module, optimizer.optimizer, clip_val=0.25)
        assert self.gradients(model).max() == 0.25

    def test_only_the_parameters_of_the_optimizer(self, fabric: Fabric) -> None:
        net = nn.Linear(3, 2)
        model, optimizer = fabric.setup(net, torch.optim.SGD([net.bias], lr=1.0))
        fabric.backward(model(torch.ones(1, 3)).sum())
        fabric.clip_gradients(model, optimizer, clip_val=0.5)
        assert (model.bias.grad.max(), model.weight.grad.max()) == (0.5, 1.0)

    def test_a_limit_of_zero_is_a_limit(self, fabric: Fabric) -> None:
        model, optimizer = set_up(fabric)
        for limit in ({"clip_val": 0}, {"max_norm": 0.0}):
            fabric.backward(model(torch.ones(1, 3)).sum())
            fabric.clip_gradients(model, optimizer, **limit)
            assert not self.gradients(model).any()

    def test_a_norm_that_is_not_finite(self, fabric: Fabric) -> None:
        model, optimizer = set_up(fabric)
        fabric.backward(model(torch.ones(1, 3)).sum() * float("inf"))
        with pytest.raises(RuntimeError, match="non-finite"):
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
        norm = fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
        assert norm is not None
        assert not torch.isfinite(norm)

    @pytest.mark.parametrize(
        ("limits", "shown"),
        [({}, "clip_val=None, max_norm=None"), ({"clip_val": 1, "max_norm": 2.0}, "clip_val=1, max_norm=2.0")],
    )
    def test_one_limit_and_not_two(self, fabric: Fabric, limits: dict[str, float], shown: str) -> None:
        model, optimizer = set_up(fabric)
        with pytest.raises(ValueError, match=rf"`fabric.clip_gradients\(..., {shown}\)`: pass one of them"):
            fabric.clip_gradients(model, optimizer, **limits)


class Moving:
    """Has its own way to move."""

    def __init__(self) -> None:
        self.device: Any = None

    def to(self, device: Any) -> Moving:
        moved = Moving()
        moved.device = torch.device(device)
        return moved


@dataclass
class Batch:
    x: Tensor
    other: Moving


class TestToDevice:
    @pytest.fixture
    def meta(self) -> Fabric:
        """A run on the one device beside the CPU that every machine has."""
        fabric = Fabric(accelerator="cpu", strategy=SingleDeviceStrategy("meta"))
        fabric.accelerator.setup_device = lambda device: None  # type: ignore[method-assign]
        return fabric

    def test_a_module_moves_in_place(self, meta: Fabric) -> None:
        net = nn.Linear(2, 1)
        assert meta.to_device(net) is net
        assert net.weight.device.type == "meta"

    def test_a_wrapped_module_too(self, meta: Fabric) -> None:
        model = meta.setup(nn.Linear(2, 1), move_to_device=False)
        assert meta.to_device(model) is model
        assert model.device.type == model.weight.device.type == "meta"

    def test_tensors_in_any_nesting(self, meta: Fabric) -> None:
        x = torch.ones(2)
        given = {"a": [x, (x, "text")], "b": Batch(x, Moving()), "c": 3}
        moved = meta.to_device(given)
        assert moved["a"][0].device.type == moved["a"][1][0].device.type == moved["b"].x.device.type == "meta"
        assert moved["b"].other.device.type == "meta"
        assert (moved["a"][1][1], moved["c"]) == ("text", 3)
        assert x.device.type == given["b"].x.device.type == "cpu"  # type: ignore[attr-defined]

    def test_parameters_without_memory_get_some(self, fabric: Fabric) -> None:
        assert fabric.to_device(nn.Linear(2, 1, device="meta")).weight.device.type == "cpu"


class Recording(_BackwardSyncControl):
    """Writes down for which modules nothing is synchronized."""

    def __init__(self) -> None:
        self.active: list[tuple[nn.Module, bool]] = []

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        return self.enter(module, enabled)

    @contextmanager
    def enter(self, module: nn.Module, enabled: bool) -> Iterator[None]:
        if isinstance(module, nn.Bilinear):
            raise KeyError
        self.active.append((module, enabled))
        try:
            yield
        finally:
            self.active.remove((module, enabled))


class TestNoBackwardSync:
    @pytest.fixture
    def control(self) -> Recording:
        return Recording()

    @pytest.fixture
    def fabric(self, control: Recording) -> Fabric:
        class Synchronizing(SingleDeviceStrategy):
            no_backward_sync = Strategy.no_backward_sync

        strategy = Synchronizing()
        strategy._backward_sync_control = control
        return Fabric(accelerator="cpu", strategy=strategy)

    @pytest.mark.parametrize("enabled", [True, False])
    def test_one_module(self, fabric: Fabric, control: Recording, enabled: bool) -> None:
        model, _ = set_up(fabric)
        with fabric.no_backward_sync(model, enabled=enabled):
            assert control.active == [(model.module, enabled)]
        assert control.active == []

    @pytest.mark.parametrize("kind", [list, tuple, set, iter])
    def test_several(self, fabric: Fabric, control: Recording, kind: Any) -> None:
        models = [set_up(fabric)[0] for _ in range(3)]
        with fabric.no_backward_sync(kind(models)):
            assert {id(module) for module, _ in control.active} == {id(model.module) for model in models}
        assert control.active == []

    def test_after_an_exception(self, fabric: Fabric, control: Recording) -> None:
        models = [set_up(fabric)[0] for _ in range(2)]
        with pytest.raises(KeyError), fabric.no_backward_sync(models):
            raise KeyError
        assert control.active == []

    def test_if_one_of_several_cannot_be_entered(self, fabric: Fabric, control: Recording) -> None:
        models = [fabric.setup(nn.Linear(1, 1)), fabric.setup(nn.Bilinear(1, 1, 1))]
        with pytest.raises(KeyError), fabric.no_backward_sync(models):
            pass
        assert control.active == []

    def test_asking_for_the_context_does_not_enter_it(self, fabric: Fabric, control: Recording) -> None:
        context = fabric.no_backward_sync(set_up(fabric)[0])
        try:
            assert control.active == []
        finally:
            with context:
                pass

    @pytest.mark.parametrize("thing", [nn.Linear(1, 1), [nn.Linear(1, 1)]])
    def test_a_module_that_was_not_set_up(self, fabric: Fabric, thing: Any) -> None:
        message = r"`fabric.no_backward_sync\(...\)` got a `Linear` that was not set up.*`model = fabric.setup"
        with pytest.raises(TypeError, match=message):
            fabric.no_backward_sync(thing)

    def test_one_of_several_that_was_not_set_up(self, fabric: Fabric, control: Recording) -> None:
        with pytest.raises(TypeError, match=r"got a `Linear` that was not set up"):
            fabric.no_backward_sync([set_up(fabric)[0], nn.Linear(1, 1)])
        assert control.active == []

    @pytest.mark.parametrize("thing", [None, 3, "optimizer"])
    def test_something_else(self, fabric: Fabric, thing: Any) -> None:
        optimizer = set_up(fabric)[1]
        with pytest.raises(TypeError, match=r"`fabric.no_backward_sync\(...\)` got"):
            fabric.no_backward_sync(optimizer if thing == "optimizer" else thing)

    def test_a_strategy_that_cannot_says_so(self) -> None:
        class Always(SingleDeviceStrategy):
            no_backward_sync = Strategy.no_backward_sync

        fabric = Fabric(accelerator="cpu", strategy=Always())
        model, _ = set_up(fabric)
        with (
            pytest.warns(PossibleUserWarning, match="`Always` always synchronizes gradients.*Remove it, or choose"),
            fabric.no_backward_sync(model),
        ):
            pass

    def test_on_one_device_there_is_nothing_to_leave_out(self) -> None:
        fabric = Fabric(accelerator="cpu")
        model, _ = set_up(fabric)
        with fabric.no_backward_sync(model), fabric.no_backward_sync([model], enabled=False):
            fabric.backward(model(torch.ones(1, 3)).sum())
        assert model.weight.grad is not None


def test_sharded_model_is_deprecated(fabric: Fabric) -> None:
    with pytest.warns(
        DeprecationWarning, match=r"`fabric.sharded_model\(\)` is deprecated. Write `fabric.init_module"
    ) as w:
        context = fabric.sharded_model()
    assert w[0].filename == __file__
    with context:
        assert nn.Linear(1, 1).weight.device.type == "cpu"
