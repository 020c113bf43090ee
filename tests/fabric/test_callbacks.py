"""The callbacks of a Fabric: how they are given, and the hooks that it calls by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.hooks import Call, Callbacks


class Recorder:
    """Writes down every hook with what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def make(callbacks: Any = None, **arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", callbacks=callbacks, **arguments)


def net_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.Linear(2, 1)
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


class TestGiving:
    @pytest.mark.parametrize("form", ["object", "list", "tuple", "collection"])
    def test_every_form(self, form: str) -> None:
        recorder = Recorder()
        given = {
            "object": recorder,
            "list": [recorder],
            "tuple": (recorder,),
            "collection": Callbacks(recorder),
        }[form]
        fabric = make(given)
        fabric.call("on_it", 1, a=2)
        assert list(fabric.callbacks) == [recorder]
        assert recorder.calls == [("on_it", (1,), {"a": 2})]

    @pytest.mark.parametrize("given", [None, [], ()])
    def test_none(self, given: Any) -> None:
        fabric = make(given)
        assert len(fabric.callbacks) == 0
        assert fabric.call("on_anything", 1, x=2) is None

    def test_the_list_is_copied_both_ways(self) -> None:
        given = [Recorder()]
        fabric = make(given)
        given.append(Recorder())
        assert len(fabric.callbacks) == 1
        fabric.callbacks.add(Recorder())
        fabric.setup(nn.Linear(1, 1))
        assert len(given) == 2

    def test_two_fabrics_with_one_list_have_a_collection_each(self) -> None:
        given = Callbacks([Recorder()])
        first, second = make(given), make(given)
        first.callbacks.add(Recorder())
        assert (len(first.callbacks), len(second.callbacks), len(given)) == (2, 1, 1)

    def test_what_was_set_up_does_not_become_a_callback(self) -> None:
        class Net(nn.Linear):
            def on_after_setup(self, **kwargs: Any) -> None:
                raise AssertionError

            on_it = on_after_setup

        fabric = make()
        fabric.setup(Net(1, 1))
        fabric.call("on_it")
        assert len(fabric.callbacks) == 0


class TestLive:
    def test_adding_and_removing(self) -> None:
        fabric, recorder = make(), Recorder()
        with fabric.callbacks.add(recorder):
            fabric.call("on_it")
        fabric.call("on_it")
        assert len(recorder.calls) == 1
        assert fabric.callbacks is fabric._callbacks

    def test_the_underscore_name_can_be_assigned(self) -> None:
        fabric, first, second = make(Recorder()), Recorder(), Recorder()
        collection = fabric.callbacks
        given = [first, second]
        fabric._callbacks = given
        fabric.call("on_it")
        assert fabric.callbacks is collection
        assert [len(first.calls), len(second.calls)] == [1, 1]
        given.clear()
        assert len(fabric.callbacks) == 2
        fabric._callbacks = None
        assert len(fabric.callbacks) == 0

    def test_assigning_reaches_what_was_set_up_before(self) -> None:
        fabric, recorder = make(), Recorder()
        _, optimizer = fabric.setup(*net_and_optimizer())
        fabric._callbacks = [recorder]
        optimizer.step()
        assert [name for name, *_ in recorder.calls] == ["on_after_optimizer_step"]

    def test_the_underscore_name_can_be_appended_to(self) -> None:
        fabric, recorder = make(), Recorder()
        fabric._callbacks.append(recorder)
        fabric.call("on_it")
        assert len(recorder.calls) == 1


class TestAfterSetup:
    @pytest.mark.parametrize("method", ["setup", "setup_module"])
    def test_it_gets_the_fabric_and_the_wrapped_module(self, method: str) -> None:
        recorder = Recorder()
        fabric = make(recorder)
        model = getattr(fabric, method)(nn.Linear(1, 1))
        assert recorder.calls == [("on_after_setup", (), {"fabric": fabric, "module": model})]

    def test_arguments_are_filtered(self) -> None:
        class ModuleOnly:
            def on_after_setup(self, module: Any) -> None:
                seen.append(module)

        class Neither:
            def on_after_setup(self) -> None:
                seen.append(None)

        seen: list[Any] = []
        fabric = make([ModuleOnly(), Neither()])
        model, _ = fabric.setup(*net_and_optimizer())
        assert seen == [model, None]

    def test_optimizers_and_dataloaders_alone_are_no_reason(self) -> None:
        recorder = Recorder()
        fabric = make(recorder)
        fabric.setup_optimizers(net_and_optimizer()[1])
        fabric.setup_dataloaders(torch.utils.data.DataLoader(range(2)))
        assert recorder.calls == []


class TestAfterOptimizerStep:
    @pytest.mark.parametrize("together", [True, False])
    def test_it_gets_the_strategy_and_the_bare_optimizer(self, together: bool) -> None:
        recorder = Recorder()
        fabric = make(recorder)
        net, bare = net_and_optimizer()
        optimizer = fabric.setup(net, bare)[1] if together else fabric.setup_optimizers(bare)
        recorder.calls.clear()
        optimizer.step()
        ((name, args, kwargs),) = recorder.calls
        assert (name, args) == ("on_after_optimizer_step", ())
        assert kwargs == {"strategy": fabric.strategy, "optimizer": bare}
        assert type(kwargs["optimizer"]) is torch.optim.SGD

    def test_arguments_are_filtered(self) -> None:
        class OptimizerOnly:
            def on_after_optimizer_step(self, optimizer: Any) -> None:
                seen.append(optimizer)

        class StrategyOnly:
            def on_after_optimizer_step(self, *, strategy: Any) -> None:
                seen.append(strategy)

        class Neither:
            def on_after_optimizer_step(self, something: str = "default") -> None:
                seen.append(something)

        seen: list[Any] = []
        fabric = make([OptimizerOnly(), StrategyOnly(), Neither()])
        _, bare = net_and_optimizer()
        fabric.setup_optimizers(bare).step()
        assert seen == [bare, fabric.strategy, "default"]

    def test_it_comes_after_the_step_which_returns_what_it_returned(self) -> None:
        class Looking:
            def on_after_optimizer_step(self, optimizer: Any) -> None:
                seen.append(optimizer.param_groups[0]["params"][0].item())

        seen: list[float] = []
        fabric = make(Looking())
        parameter = nn.Parameter(torch.tensor(1.0))
        optimizer = fabric.setup_optimizers(torch.optim.SGD([parameter], lr=1.0))

        def closure() -> float:
            parameter.grad = torch.tensor(0.25)
            return 0.5

        assert optimizer.step(closure) == 0.5
        assert seen == [0.75]

    def test_an_exception_has_a_note(self) -> None:
        class Failing:
            def on_after_optimizer_step(self) -> None:
                raise KeyError("mine")

        optimizer = make(Failing()).setup_optimizers(net_and_optimizer()[1])
        with pytest.raises(KeyError, match="mine") as error:
            optimizer.step()
        if hasattr(error.value, "__notes__"):
            assert "`Failing` in its hook `on_after_optimizer_step`" in error.value.__notes__[0]


class Reversed:
    """An executor that runs the last callback first."""

    def __init__(self) -> None:
        self.hooks: list[str] = []

    def run(self, calls: Sequence[Call], graph: object) -> None:
        self.hooks += [call.hook for call in calls[:1]]
        for call in reversed(calls):
            call()


def test_every_hook_goes_through_the_executor() -> None:
    class Naming:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_it(self, x: int) -> None:
            order.append((self.name, x))

        def on_after_setup(self, module: Any) -> None:
            order.append((self.name, "setup"))

        def on_after_optimizer_step(self) -> None:
            order.append((self.name, "step"))

    order: list[Any] = []
    executor = Reversed()
    fabric = make([Naming("a"), Naming("b")], executor=executor)
    fabric.call("on_it", x=1, y=2)
    fabric.setup(*net_and_optimizer())[1].step()
    assert order == [("b", 1), ("a", 1), ("b", "setup"), ("a", "setup"), ("b", "step"), ("a", "step")]
    assert executor.hooks == ["on_it", "on_after_setup", "on_after_optimizer_step"]


def test_a_callback_may_take_any_name_as_an_argument() -> None:
    recorder = Recorder()
    make(recorder).call("on_it", hook_name=1, self=2)
    assert recorder.calls == [("on_it", (), {"hook_name": 1, "self": 2})]


def test_call_needs_a_name() -> None:
    with pytest.raises(TypeError, match="hook_name"):
        make().call()  # type: ignore[call-arg]
