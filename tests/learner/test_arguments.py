"""What a `Learner` is made from: models, optimizers, data, callbacks, a Fabric."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric, is_wrapped
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner

SGD = partial(torch.optim.SGD, lr=0.5)


class Training(TrainingPhase):
    pass


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(4, 3), torch.ones(4, 1)), batch_size=2)


def two() -> dict[str, nn.Module]:
    return {"one": nn.Linear(3, 1), "other": nn.Linear(1, 3)}


# -- optimizers ------------------------------------------------------------------------------------------------------


def test_without_an_optimizer_it_is_adam(make: Any) -> None:
    learner = make(optimizer=None)
    assert is_wrapped(learner.model)
    assert is_wrapped(learner.optimizer)
    assert type(learner.optimizer.optimizer) is torch.optim.Adam
    assert learner.optimizer.optimizer.defaults == torch.optim.Adam(nn.Linear(1, 1).parameters()).defaults


@pytest.mark.parametrize("before", ["factory", "optimizer", "set up together", "set up before", "model set up before"])
def test_the_optimizer_steps_the_parameters_of_the_model(make: Any, cpu: Any, before: str) -> None:
    model: Any = nn.Linear(3, 1)
    optimizer: Any = SGD if before in ("factory", "model set up before") else SGD(model.parameters())
    fabric = cpu()
    if before == "set up before":
        model, optimizer = fabric.setup_module(model), fabric.setup_optimizers(optimizer)
    elif before == "set up together":
        model, optimizer = fabric.setup(model, optimizer)
    elif before == "model set up before":
        model = fabric.setup_module(model)
    learner = make(model=model, optimizer=optimizer, fabric=fabric)
    assert learner.optimizer.optimizer.param_groups[0]["params"] == list(learner.model.parameters())
    assert learner.optimizer.optimizer.param_groups[0]["lr"] == 0.5
    assert not is_wrapped(learner.optimizer.optimizer)
    assert list(learner.params) == ["weight", "bias"]
    old = learner.params["weight"].clone()
    learner.fit(1)
    assert not torch.equal(old, learner.params["weight"])


@pytest.mark.parametrize("optimizer", [None, SGD, {"other": SGD, "one": torch.optim.Adam}])
def test_several_models_by_name(make: Any, optimizer: Any) -> None:
    learner = make(model=two(), optimizer=optimizer)
    assert list(learner.model) == list(learner.optimizer) == ["one", "other"]
    assert list(learner.params) == ["one.weight", "one.bias", "other.weight", "other.bias"]
    assert list(learner.models) == [learner.model.one, learner.model["other"]]
    for name in learner.model:
        assert learner.optimizer[name].optimizer.param_groups[0]["params"] == list(learner.model[name].parameters())
    kinds = {None: [torch.optim.Adam] * 2, SGD: [torch.optim.SGD] * 2}
    expected = [torch.optim.Adam, torch.optim.SGD] if isinstance(optimizer, dict) else kinds[optimizer]
    assert [type(each.optimizer) for each in learner.optimizer.values()] == expected


def test_optimizers_that_exist_already_by_name(make: Any) -> None:
    models = two()
    learner = make(model=models, optimizer={name: SGD(model.parameters()) for name, model in models.items()})
    assert [each.optimizer.param_groups[0]["lr"] for each in learner.optimizer.values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"optimizer": 3},
            TypeError,
            "`Learner(optimizer=3)`: pass an optimizer, or a function that makes one from the parameters, such as"
            " `torch.optim.Adam`.",
        ),
        (
            {"optimizer": {"one": SGD}},
            ValueError,
            "`Learner(optimizer=...)` got optimizers for 'one', but one model. Pass one optimizer, or a mapping of"
            " models with these names.",
        ),
        (
            {"model": two(), "optimizer": SGD(nn.Linear(1, 1).parameters())},
            TypeError,
            "`Learner(optimizer=...)` got one optimizer for several models. Pass a mapping of optimizers with the"
            " names 'one', 'other', or a factory.",
        ),
        (
            {"model": two(), "optimizer": {"one": SGD, "another": SGD}},
            ValueError,
            "`Learner(optimizer=...)` has the names 'one', 'another', and the models have 'one', 'other'. Give each"
            " model its optimizer.",
        ),
    ],
)
def test_optimizers_that_do_not_fit(make: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(**options)
    assert str(caught.value) == message


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, names",
    [
        (lambda: (), []),
        (lambda: (loader(),), ["train"]),
        (lambda: (loader(), loader()), ["train", "validation"]),
        (lambda: {"train": loader(), "test": loader()}, ["train", "test"]),
        (lambda: {TrainingPhase(): loader(), ValidationPhase(): loader()}, ["train", "validation"]),
    ],
)
def test_the_forms_of_data(make: Any, form: Any, names: list[str]) -> None:
    learner = make(data=form())
    assert list(learner.data) == names
    assert all(is_wrapped(each) for each in learner.data.values())
    if "train" in names:
        learner.fit(1)


def test_a_dataloader_that_is_set_up_already_and_other_iterables_stay_as_they_are(make: Any, cpu: Any) -> None:
    fabric = cpu()
    training, validation = fabric.setup_dataloaders(loader()), [(torch.ones(1, 3), torch.ones(1, 1))]
    learner = make(data=(training, validation), fabric=fabric)
    assert learner.data["train"] is training
    assert learner.data["validation"] is validation


def test_without_training_data_fit_says_what_to_pass(make: Any) -> None:
    with pytest.raises(ValueError, match="nothing to train on") as caught:
        make(data={"validation": loader()}).fit(2)
    assert str(caught.value) == (
        "`learner.fit(2)` has nothing to train on. Make it `Learner(..., data=(training, validation))`, or go through"
        " your own data with `learner.run_epoch(TrainingPhase(), data)`."
    )


@pytest.mark.parametrize("given, there", [((), "none"), ((loader(),), "'train'")])
def test_an_epoch_without_data_says_for_which_phases_there_is_some(make: Any, given: Any, there: str) -> None:
    with pytest.raises(ValueError, match="no data for the phase") as caught:
        make(data=given).run_epoch(ValidationPhase())
    assert str(caught.value) == (
        f"There is no data for the phase 'validation', only for {there}. Pass it: `learner.run_epoch(phase, data)`."
    )


@pytest.mark.parametrize("given", [loader(), (1, 2, 3), 3])
def test_data_in_another_form_is_refused(make: Any, given: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Pass `\(\)`, `\(training,\)`, `\(training, validation\)`, or a mapping"
    ) as c:
        make(data=given)
    assert str(c.value).startswith(f"`Learner(data=...)` got {given!r}. ")


# -- the Fabric ------------------------------------------------------------------------------------------------------


def test_without_a_fabric_it_makes_one() -> None:
    learner = Learner(nn.Linear(1, 1), nn.functional.mse_loss, usedefaultcallbacks=False)
    assert isinstance(learner.fabric, Fabric)
    assert next(learner.model.parameters()).device == learner.fabric.device


def test_the_precision_is_that_of_the_fabric(make: Any, cpu: Any) -> None:
    learner = make(fabric=cpu(precision="64-true"))
    learner.fit(1)
    assert [parameter.dtype for parameter in learner.params.values()] == [torch.float64] * 2


def test_a_custom_phase_reaches_the_data_that_it_is_given(make: Any, data: Any, recording: Any) -> None:
    learner = make(recording, data={Training(): data(1)})
    learner.run_epoch(Training())
    assert recording.seen[:2] == ["train:epoch_begin", "train:step_begin"]
