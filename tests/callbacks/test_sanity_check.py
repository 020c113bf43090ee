from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Callback, Fabric, Read, State, Write
from fabric_lite.callbacks.sanity_check import SanityCheck, SanityCheckException
from fabric_lite.callbacks.to_device import ToDevice
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

XS, YS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def data(xs=XS, ys=YS, **kwargs):
    return DataLoader(TensorDataset(xs, ys), batch_size=4, **kwargs)


def learner_with(model=None, lossfn=None, training=None, more=(), **kwargs):
    fabric = Fabric(accelerator="cpu", callbacks=[SanityCheck(), *more], guard="strict")
    model, lossfn = model or nn.Linear(3, 2), lossfn or nn.CrossEntropyLoss()
    loaders = {"train": data() if training is None else training}
    return Learner(model, lossfn, data=loaders, fabric=fabric, usedefaultcallbacks=False, **kwargs)


class Returns(nn.Module):
    """Gives what a function makes of the output of a layer."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, xs):
        return self.function(self.layer(xs))


def problems(learner):
    with pytest.raises(SanityCheckException) as caught:
        learner.fit(1)
    first, *rest = str(caught.value).splitlines()
    assert first == "This training cannot work as it is. SanityCheck found:"
    assert isinstance(caught.value, ValueError)
    return rest


def change(tensor):
    made = tensor.sigmoid()
    made.zero_()
    return made


@pytest.mark.parametrize(
    "kwargs, found",
    [
        (
            {"training": []},
            "The training data is empty: it has no batches. Write `Learner(model, lossfn, data=(training, ",
        ),
        (
            {"training": DataLoader(TensorDataset(XS))},
            "A batch of the training data is a list of 1, not a pair. Return `(x, y)` from the dataset's `__getitem__`,"
            " or write a phase whose `step(self, learner, batch)` takes such a batch.",
        ),
        (
            {"training": [{"x": XS, "y": YS}]},
            "A batch of the training data is a dict with the keys 'x', 'y', not a pair.",
        ),
        ({"training": [XS]}, "A batch of the training data is one Tensor, not a pair."),
        (
            {"model": nn.Linear(5, 2)},
            "The model fails on a batch of inputs, a tensor of shape (4, 3) and dtype float32: RuntimeError: mat1",
        ),
        ({"model": Returns(lambda out: None)}, "The model returns None. Its `forward` needs a `return`."),
        (
            {"model": Returns(lambda out: out * float("nan"))},
            "The output of the model has NaN in it before any training. The inputs have none: look at how the model is",
        ),
        (
            {"training": data(XS * float("nan"))},
            "The output of the model has NaN in it before any training. So have the inputs: clean the data,"
            " `torch.isnan(xs)` finds where.",
        ),
        (
            {"lossfn": nn.CrossEntropyLoss(), "training": data(ys=torch.zeros(8, 5, 5))},
            "The loss function `CrossEntropyLoss` fails on predictions, a tensor of shape (4, 2) and dtype float32, and"
            " targets, a tensor of shape (4, 5, 5) and dtype float32: ",
        ),
        (
            {"lossfn": lambda preds, ys: 0.5},
            "The loss function `<lambda>` returns a value of type float, not a tensor. Return the tensor",
        ),
        (
            {"lossfn": nn.CrossEntropyLoss(reduction="none")},
            "The loss function `CrossEntropyLoss` returns a tensor of shape (4,) and dtype float32, and it has to be"
            ' one number. Reduce it, for example with `.mean()` or `reduction="mean"`.',
        ),
        (
            {"model": Returns(torch.Tensor.detach)},
            "The loss that `CrossEntropyLoss` returns has no gradient. Somewhere on the way from the model it is cut"
            " off, by `.detach()`, `.argmax()`, `.item()`, `torch.no_grad()` or a `torch.tensor(...)`.",
        ),
        ({"model": Returns(change)}, "The backward fails: RuntimeError: "),
        (
            {"lossfn": lambda preds, ys: torch.ones((), requires_grad=True) * 2},
            "No gradient reaches the parameters of the model: the loss depends on something else.",
        ),
        (
            {"optimizer": lambda params: torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)},
            "The optimizer has none of the model's parameters, so it trains something else. Make it from this model:"
            " `torch.optim.SGD(model.parameters(), ...)`.",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:25],
)
def test_a_problem_is_reported_with_what_to_write(kwargs, found):
    listed = problems(learner_with(**kwargs))
    assert len(listed) == 1
    assert listed[0].startswith(f"1. {found}")


def test_a_frozen_model_has_nothing_to_train():
    model = nn.Linear(3, 2).requires_grad_(False)
    [problem] = problems(learner_with(model))
    assert problem.startswith("1. The model has no parameter that requires a gradient, so there is nothing to train.")


def test_all_problems_come_in_one_report():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    listed = problems(learner_with(nn.Linear(5, 2), optimizer=lambda params: optimizer))
    assert [line[:25] for line in listed] == ["1. The model fails on a b", "2. The optimizer has none"]


def test_data_that_cannot_be_read():
    class Broken:
        def __iter__(self):
            raise KeyError("image")

    [problem] = problems(learner_with(training=Broken()))
    assert problem.startswith(
        "1. The training data cannot be read: KeyError: 'image'. Try `next(iter(data))` on its own."
    )


@pytest.mark.parametrize(
    "kwargs, warning",
    [
        (
            {"model": nn.Linear(3, 1), "lossfn": nn.MSELoss(), "training": data(ys=YS.float())},
            r"SanityCheck: predictions have the shape \(4, 1\) and targets \(4,\)\. A loss such as `mse_loss` compares"
            r" them as \(4, 4\), each with many others, and trains to something meaningless\.",
        ),
        (
            {"model": Returns(lambda out: out), "optimizer": lambda params: torch.optim.SGD(list(params)[:1], lr=0.1)},
            r"SanityCheck: the optimizer has not got 'layer\.bias', which stay as they are\.",
        ),
    ],
)
def test_what_may_be_meant_is_a_warning(kwargs, warning):
    learner = learner_with(**kwargs)
    with pytest.warns(UserWarning, match=warning):
        learner.callbacks.call("on_fit_begin", learner=learner)


def test_parameters_without_a_gradient_are_a_warning():
    model = Returns(lambda out: out)
    model.spare = nn.Linear(1, 1)
    with pytest.warns(
        UserWarning, match=r"SanityCheck: no gradient reaches 'spare\.weight', 'spare\.bias': the output does"
    ):
        learner_with(model).fit(1)


def state_of(learner):
    model = learner.model
    return {
        "rng": torch.get_rng_state().tolist(),
        "buffers": [buffer.clone().tolist() for buffer in model.buffers()],
        "params": [parameter.detach().clone().tolist() for parameter in model.parameters()],
        "grads": [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
    }


def test_everything_is_as_before():
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    learner = learner_with(model, training=data(shuffle=True, generator=generator))
    model[1].eval()
    for parameter in model[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    before, drawn = state_of(learner), generator.get_state().tolist()
    learner.callbacks.call("on_fit_begin", learner=learner)
    assert state_of(learner) == before
    assert generator.get_state().tolist() == drawn


def test_a_training_ends_with_the_same_weights_as_without_it():
    results = []
    for with_check in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        learner = learner_with(model, training=data(shuffle=True))
        if not with_check:
            learner.callbacks.remove(SanityCheck)
        learner.fit(2)
        results.append(state_of(learner))
    assert results[0] == results[1]


def test_it_looks_once():
    runs = []
    model = Returns(lambda out: runs.append(1) or out)
    learner = learner_with(model, training=[(XS, YS)])
    learner.fit(1)
    assert len(runs) == 2
    learner.fit(1)
    assert len(runs) == 3


def test_in_a_hand_written_loop_the_first_training_step_is_tried():
    fabric = Fabric(accelerator="cpu", callbacks=SanityCheck(), guard="strict")
    learner = State(model=nn.Linear(5, 2), lossfn=nn.CrossEntropyLoss(), step=State(xs=XS, ys=YS))
    fabric.call("on_step_begin", learner=learner, phase=ValidationPhase())
    with pytest.raises(SanityCheckException, match=r"1\. The model fails on a batch of inputs"):
        fabric.call("on_step_begin", learner=learner, phase=TrainingPhase())
    learner.model = nn.Linear(3, 2)
    fabric.call("on_step_begin", learner=learner, phase=TrainingPhase())
    assert learner.model.weight.grad is None


def test_a_generator_loses_no_batch():
    seen = []
    model = Returns(lambda out: seen.append(len(out)) or out)
    learner = learner_with(model, training=((XS[:n], YS[:n]) for n in (2, 3)))
    learner.fit(1)
    assert seen == [2, 2, 3]


def test_fitting_without_any_data_in_a_loop_of_ones_own():
    fabric = Fabric(accelerator="cpu", callbacks=SanityCheck())
    with pytest.raises(
        SanityCheckException, match=r"1\. There is no training data\. Write `Learner\(model, lossfn, data="
    ):
        fabric.call("on_fit_begin", learner=State(data={"validation": [1]}))


def test_several_models_are_left_to_their_phase():
    fabric = Fabric(accelerator="cpu", callbacks=SanityCheck(), guard="strict")
    models = {"one": nn.Linear(1, 1), "two": nn.Linear(1, 1)}
    learner = Learner(models, nn.MSELoss(), data=([(XS, YS)],), fabric=fabric, usedefaultcallbacks=False)
    learner.callbacks.call("on_fit_begin", learner=learner)


def test_processes_report_together():
    class Strategy:
        def reduce_boolean_decision(self, decision, all):
            return True  # the other one has a problem

    learner = State(
        model=nn.Linear(3, 2),
        lossfn=nn.CrossEntropyLoss(),
        data=([(XS, YS)],),
        fabric=State(world_size=2, strategy=Strategy(), to_device=lambda batch: batch),
    )
    bus = Fabric(accelerator="cpu", callbacks=SanityCheck())
    with pytest.raises(SanityCheckException, match=r"Another process found them: see its report\."):
        bus.call("on_fit_begin", learner=learner)


def test_it_runs_before_others_that_touch_the_model_and_after_what_moves_the_batch():
    class Touches(Callback):
        def stateaccess(self):
            return {"model": Write(), "optimizer": Write(), "step.xs": Read()}

    fabric = Fabric(accelerator="cpu", callbacks=[Touches(), SanityCheck(), ToDevice()])
    assert [type(callback).__name__ for callback in fabric.callbacks] == ["ToDevice", "SanityCheck", "Touches"]


def test_warnings_of_the_loss_are_left_to_the_training():
    learner = learner_with(nn.Linear(3, 1), nn.MSELoss(), data(ys=YS.float().unsqueeze(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.fit(1)


def test_batches_in_a_list_reach_the_model_as_they_are():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, xs):
            if type(xs) is not dict:
                raise TypeError(type(xs))
            return self.layer(xs["x"])

    learner_with(Takes(), training=[({"x": XS}, YS)]).fit(1)
    bus = Fabric(accelerator="cpu", callbacks=SanityCheck(), guard="strict")
    bus.call("on_step_begin", learner=State(model=Takes(), step=State(xs={"x": XS}, ys=YS)), phase=TrainingPhase())
