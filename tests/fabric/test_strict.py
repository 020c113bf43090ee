"""``guard="strict"`` in a Fabric: a tensor that was readable only, and that a callback changed in place, is noticed."""

from __future__ import annotations

import re
from collections.abc import Callable as Function
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fabric_lite import Callback, Fabric, ProtectedException, Read, State, Write

Act = Function[[Any], object]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


class Learner:
    """Has been trained for a step."""

    def __init__(self, fabric: Fabric) -> None:
        net = Net()
        self.model, self.optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=0.1))
        self.params = dict(net.named_parameters())
        self.step = State(xs=torch.ones(4, 2), parts=[{"mean": (torch.zeros(1),)}], loss=self.model(torch.ones(4, 2)))
        self.step.loss.square().sum().backward()
        self.optimizer.step()


class Acting(Callback):
    def __init__(self, access: Any, act: Act) -> None:
        self.access, self.act = access, act

    def stateaccess(self) -> Any:
        return self.access

    def on_step_end(self, learner: Any) -> None:
        with torch.no_grad():
            self.act(learner)


def run(access: Any, act: Act, guard: Any = "strict") -> None:
    fabric = Fabric(accelerator="cpu", callbacks=Acting(access, act), guard=guard)
    fabric.call("on_step_end", learner=Learner(fabric))


def optimizer_parameter(learner: Any) -> Tensor:
    return learner.optimizer.param_groups[0]["params"][0]


CHANGES: list[tuple[Any, Act, str]] = [
    ({"step.xs": Read()}, lambda p: p.step.xs.add_(1), "step.xs"),
    ({"step": Read()}, lambda p: p.step.xs[0].zero_(), "step.xs"),
    ({"step": Read()}, lambda p: p.step.xs.view(-1).t().detach().mul_(2), "step.xs"),
    ({"step": Read()}, lambda p: p.step.xs.__setitem__((0, 0), 7), "step.xs"),
    ({"step.parts": Read()}, lambda p: p.step.parts[0]["mean"][0].add_(1), "step.parts[0].mean[0]"),
    ({"step.xs": Read()}, lambda p: torch.add(p.step.xs, 1, out=p.step.xs), "step.xs"),
    ({"model": Read()}, lambda p: p.model.layer.weight.add_(1), "model.layer.weight"),
    ({"model": Read()}, lambda p: nn.init.zeros_(p.model.layer.bias), "model.layer.bias"),
    ({"model": Read()}, lambda p: p.model.norm.running_mean.zero_(), "model.norm.running_mean"),
    ({"model": Read()}, lambda p: p.model.load_state_dict(p.model.state_dict()), "model.layer.weight"),
    ({"params": Read()}, lambda p: p.params["layer.weight"].clamp_(0, 1), "params.layer.weight"),
    ({"optimizer": Read()}, lambda p: p.optimizer.step(), "optimizer.param_groups"),
    (
        {"optimizer": Read(), "model.layer.bias": Write()},
        lambda p: p.optimizer.step(),
        "optimizer.param_groups",
    ),
]


@pytest.mark.parametrize(("access", "act", "path"), CHANGES)
def test_a_change_in_place_is_noticed(access: Any, act: Act, path: str) -> None:
    with pytest.raises(ProtectedException) as caught:
        run(access, act)
    message = str(caught.value)
    assert message.startswith(f"Write access to Learner.{path} disallowed. Acting changed it ")
    assert "in place in on_step_end; to allow it, " in message
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["raised by the callback `Acting` in its hook `on_step_end`"]


@pytest.mark.parametrize(("access", "act", "path"), CHANGES)
def test_the_line_of_the_message_mends_it(access: Any, act: Act, path: str) -> None:
    for _ in range(8):  # one line for each parameter
        try:
            return run(access, act)
        except ProtectedException as error:
            _, _, line = str(error).partition("\n")
            pasted = eval(f"{{{line}}}", {"Write": Write})
            assert pasted.items() - access.items(), f"{line} is there already, and changes nothing"
            access = {**access, **pasted}
    pytest.fail(f"{access} does not allow it")


@pytest.mark.parametrize("guard", ["on", "off"])
def test_without_strict_it_is_not(guard: Any) -> None:
    for access, act, _ in CHANGES:
        run(access, act, guard)


@pytest.mark.parametrize(
    ("access", "act"),
    [
        ({"step": Read(), "step.xs": Write()}, lambda p: p.step.xs.add_(1)),
        ({"model": Read(), "model.layer.weight": Write()}, lambda p: p.model.layer.weight.add_(1)),
        ({"model": Write()}, lambda p: p.model.load_state_dict(p.model.state_dict())),
        ({"params": Write(), "model": Read(), "optimizer": Read()}, lambda p: p.optimizer.step()),
        ({"params": Read(), "model": Read(), "optimizer": Write()}, lambda p: p.optimizer.step()),
        ({"params": Read(), "model": Write(), "optimizer": Read()}, lambda p: p.params["layer.weight"].zero_()),
        ({"step": Write(), "model": Read()}, lambda p: setattr(p, "step", State())),
        ({"step.xs": Write(), "step.loss": Read()}, lambda p: setattr(p.step, "xs", p.step.loss.clone().zero_())),
    ],
)
def test_what_is_writable_by_any_path_may_be_changed(access: Any, act: Act) -> None:
    run(access, act)


EVERYTHING = {"model": Read(), "optimizer": Read(), "params": Read(), "step": Read(), "absent": Read()}


@pytest.mark.parametrize(
    "act",
    [
        lambda p: p.model.layer.weight.add(1).norm().item(),
        lambda p: {name: value.clone() for name, value in p.model.state_dict().items()},
        lambda p: p.optimizer.state_dict(),
        lambda p: p.model.eval()(p.step.xs),
        lambda p: p.model.train().layer(p.step.xs),
        lambda p: torch.enable_grad()(lambda: p.model.layer(p.step.xs).sum().backward())(),
        lambda p: p.optimizer.zero_grad(),
        lambda p: p.step.xs.numpy().sum(),
        lambda p: p.step.loss.grad_fn,
    ],
)
def test_reading_is_no_change(act: Act) -> None:
    run(EVERYTHING, act)


def test_a_forward_pass_that_moves_the_statistics_is_a_change() -> None:
    """Batch normalisation in training mode writes to its buffers."""
    with pytest.raises(
        ProtectedException, match=r"^Write access to Learner\.model\.norm\.\w+ disallowed\. Acting changed it"
    ):
        run({"model": Read()}, lambda p: p.model.train()(torch.ones(4, 2)))
    run({"model": Read(), "model.norm": Write()}, lambda p: p.model.train()(torch.ones(4, 2)))


def test_changes_between_the_hooks_are_those_of_the_loop() -> None:
    fabric = Fabric(accelerator="cpu", callbacks=Acting(EVERYTHING, lambda p: None), guard="strict")
    learner = Learner(fabric)
    for _ in range(3):
        fabric.call("on_step_end", learner=learner)
        learner.model(learner.step.xs).sum().backward()
        learner.optimizer.step()
        with torch.no_grad():
            learner.step.xs.zero_()


def test_changes_of_other_callbacks_are_theirs() -> None:
    reader = Acting(EVERYTHING, lambda p: None)
    writer = Acting({"step.xs": Write()}, lambda p: p.step.xs.add_(1))
    fabric = Fabric(accelerator="cpu", callbacks=[reader, writer], guard="strict")
    fabric.callbacks.on("on_step_end", lambda learner: learner.optimizer.step())
    learner = Learner(fabric)
    for _ in range(2):
        fabric.call("on_step_end", learner=learner)
    assert learner.step.xs.tolist() == [[3, 3]] * 4


def test_inference_mode() -> None:
    """A tensor made there has no version, and others still count."""
    with torch.inference_mode():
        fabric = Fabric(accelerator="cpu", guard="strict")
        learner = State(made=torch.zeros(1))
    learner.other = torch.zeros(1)
    fabric.callbacks.add(Acting({"made": Read(), "other": Read()}, lambda p: p.other.add_(1)))
    with torch.inference_mode(), pytest.raises(ProtectedException, match=re.escape("State.other disallowed")):
        fabric.call("on_step_end", learner=learner)


class TestTensorsThatShareMemory:
    """But not the version counter: ``tensor.data``, or parameters that were put into one flat tensor."""

    def watch(self, access: Any, act: Act, learner: Any) -> None:
        fabric = Fabric(accelerator="cpu", callbacks=Acting(access, act), guard="strict")
        fabric.call("on_step_end", learner=learner)

    def test_views_are_one_tensor(self) -> None:
        xs = torch.zeros(4)
        learner = State(xs=xs, head=xs[:2], rest=xs[2:])
        with pytest.raises(ProtectedException, match=re.escape("State.xs disallowed")):
            self.watch({"xs": Read(), "head": Read()}, lambda p: p.head.add_(1), learner)
        self.watch({"xs": Read(), "head": Write()}, lambda p: p.head.add_(1), learner)

    def test_data_is_no_change(self) -> None:
        xs = torch.zeros(2).add_(1)
        self.watch({"xs": Read(), "data": Read()}, lambda p: p.xs.sum() + p.data.sum(), State(xs=xs, data=xs.data))

    def test_flat_parameters_are_no_change(self) -> None:
        net = nn.Linear(2, 2)
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()), net.parameters())
        nn.init.zeros_(net.bias)
        self.watch({"model": Read()}, lambda p: p.model(torch.ones(1, 2)), State(model=net))

    @pytest.mark.parametrize("earlier_changes", [0, 1, 2])
    def test_a_change_of_one_of_them_is_noticed(self, earlier_changes: int) -> None:
        net = nn.Linear(2, 2)
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()), net.parameters())
        for _ in range(earlier_changes):
            nn.init.zeros_(net.bias)
        with pytest.raises(ProtectedException, match=re.escape("State.model.weight disallowed. Acting changed it in")):
            self.watch({"model": Read()}, lambda p: p.model.weight.zero_(), State(model=net))


def test_init_is_watched() -> None:
    class Meddling(Acting):
        def init(self, learner: Any) -> None:
            learner.step.xs.zero_()

    fabric = Fabric(accelerator="cpu", callbacks=Meddling({"step": Read()}, lambda p: None), guard="strict")
    with pytest.raises(
        ProtectedException, match=re.escape("Learner.step.xs disallowed. Meddling changed it in place in init;")
    ):
        fabric.call("on_step_end", learner=Learner(fabric))


def test_a_hook_of_a_fabric_is_watched() -> None:
    """Those that it calls by itself pass no learner: what is looked at is the one that the callback met."""

    class Meddling(Callback):
        def stateaccess(self) -> Any:
            return {"step": Read()}

        def init(self, learner: Any) -> None:
            self.learner = learner

        def on_begin(self, learner: Any) -> None: ...

        def on_after_optimizer_step(self) -> None:
            self.learner.step.xs.zero_()

    fabric = Fabric(accelerator="cpu", guard="strict")
    learner = Learner(fabric)
    fabric.callbacks.add(Meddling())
    fabric.call("on_begin", learner=learner)
    with pytest.raises(ProtectedException, match="Meddling changed it in place in on_after_optimizer_step;"):
        learner.optimizer.step()
