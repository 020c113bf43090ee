from __future__ import annotations

import pytest
import torch
from torch import nn

from fabric_lite import CancelFittingException, Fabric, State
from fabric_lite.callbacks.stop_on_nan import StopOnNaNLoss
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

NAN = float("nan")


def steps(losses, phase=None, fabric=None, callback=None):
    """A hand-written loop with step ends alone."""
    bus = Fabric(accelerator="cpu", callbacks=callback or StopOnNaNLoss(), guard="strict")
    more = {} if phase is None else {"phase": phase}
    learner = State() if fabric is None else State(fabric=fabric)
    for loss in losses:
        learner.step = State(loss=loss)
        bus.call("on_step_end", learner=learner, **more)
    bus.call("on_epoch_end", learner=learner, **more)


def test_fitting_ends_before_the_parameters_are_spoilt():
    model = nn.Linear(1, 1)
    batches = [(torch.ones(2, 1), torch.ones(2, 1)), (torch.full((2, 1), NAN), torch.ones(2, 1))] * 2
    fabric = Fabric(accelerator="cpu", callbacks=[StopOnNaNLoss()], guard="strict")
    learner = Learner(model, nn.MSELoss(), data=(batches,), fabric=fabric, usedefaultcallbacks=False)
    learner.fit(3)
    assert learner.stop_reason.startswith("The training loss is NaN in step 2. A lower learning rate,")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_end_of_a_step_will_do():
    with pytest.raises(CancelFittingException, match=r"^The training loss is NaN in step 3\."):
        steps([torch.tensor(1.0), torch.tensor(float("inf")), torch.tensor(NAN, requires_grad=True)])
    with pytest.raises(CancelFittingException, match="in step 1"):
        steps([NAN], TrainingPhase())


def test_the_loss_of_a_validation_is_none_of_its_business():
    steps([torch.tensor(NAN)], ValidationPhase())


def test_a_step_without_a_loss_is_none_either():
    bus = Fabric(accelerator="cpu", callbacks=StopOnNaNLoss())
    bus.call("on_backward_begin", learner=State(step=State()))
    bus.call("on_step_end", learner=State(step=State()))


def test_each_step_is_looked_at_once():
    class Loss(torch.Tensor):
        looks = 0

        def detach(self):
            Loss.looks += 1
            return super().detach()

    bus = Fabric(accelerator="cpu", callbacks=StopOnNaNLoss())
    learner = State(step=State(loss=torch.tensor(1.0).as_subclass(Loss)))
    for _ in range(3):
        bus.call("on_backward_begin", learner=learner)
        bus.call("on_step_end", learner=learner)
    assert Loss.looks == 3


def test_processes_stop_together():
    class Processes:
        world_size = 2
        asked = 0

        def all_reduce(self, data, reduce_op):
            assert reduce_op == "max"
            self.asked += 1
            return torch.tensor(float(self.asked == 2))

    with pytest.raises(CancelFittingException, match="in step 2"):
        steps([torch.tensor(1.0)] * 3, fabric=Processes())


def test_on_another_device_the_step_before_is_read(monkeypatch):
    callback = StopOnNaNLoss()
    read = []
    settle = StopOnNaNLoss._settle

    def noting(self):
        waiting, self._waiting = self._waiting, None
        read.append(waiting and waiting[0])
        if waiting and waiting[0] == 2:  # what is on the meta device cannot be read
            self._waiting = 2, torch.tensor(1.0)
        settle(self)

    monkeypatch.setattr(StopOnNaNLoss, "_settle", noting)
    with pytest.raises(CancelFittingException, match="in step 2"):
        steps([torch.empty((), device="meta")] * 4, callback=callback)
    assert read == [None, 1, 2]


def test_steps_are_counted_on_after_loading():
    first, second = StopOnNaNLoss(), StopOnNaNLoss()
    steps([torch.tensor(1.0)] * 4, callback=first)
    assert first.state_dict() == {"steps": 4}
    second.load_state_dict(first.state_dict())
    with pytest.raises(CancelFittingException, match="in step 5"):
        steps([torch.tensor(NAN)], callback=second)
