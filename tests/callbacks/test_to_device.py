from __future__ import annotations

import pytest
import torch

from fabric_lite import Callback, Fabric, State, Write
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.to_device import ToDevice, ToGPU
from fabric_lite.events import TrainingPhase


def moved(callback, fabric=None, **step):
    learner = State(step=State(**step))
    if fabric is not None:
        learner.fabric = fabric
    Fabric(accelerator="cpu", callbacks=callback, guard="strict").call("on_step_begin", learner=learner)
    return learner.step


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_inputs_and_targets_go_to_a_device(device):
    step = moved(ToDevice(device), xs={"a": torch.zeros(2)}, ys=torch.zeros(2), other=torch.zeros(2))
    assert (step.xs["a"].device.type, step.ys.device.type, step.other.device.type) == ("meta", "meta", "cpu")


def test_by_default_to_that_of_the_fabric():
    step = moved(ToDevice(), fabric=State(device=torch.device("meta")), xs=torch.zeros(2))
    assert step.xs.device.type == "meta"
    assert "ys" not in step


def test_a_function_moves_them():
    step = moved(ToDevice(lambda data: data + 1), xs=torch.zeros(2), ys=torch.ones(2))
    assert (step.xs.tolist(), step.ys.tolist()) == ([1, 1], [2, 2])


def test_without_a_fabric_it_has_to_be_said_where_to():
    with pytest.raises(
        RuntimeError, match=r"moves to the device of `learner\.fabric`, and there is none\. Say where to: `ToD"
    ):
        moved(ToDevice(), xs=torch.zeros(2))


def test_it_comes_before_those_that_read_or_change_them():
    class Mixup(Callback):
        def stateaccess(self):
            return {"step": {"xs": Write(), "ys": Write()}}

    fabric = Fabric(accelerator="cpu", callbacks=[Mixup(), Metrics(), ToDevice()])
    assert next(type(callback).__name__ for callback in fabric.callbacks) == "ToDevice"
    fabric.call("on_step_begin", learner=State(step=State(), fabric=fabric, cbstate=State()), phase=TrainingPhase())


def test_to_gpu_goes_to_the_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("meta"))
    assert moved(ToGPU(), xs=torch.zeros(1)).xs.device.type == "meta"


def test_to_gpu_needs_one(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(
        RuntimeError, match=r"^`ToGPU\(\)` found no accelerator on this machine\. `ToDevice\(\)` goes where"
    ):
        ToGPU()
