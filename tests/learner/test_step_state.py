"""What is in `learner.step` when, in which mode the models are, and where events find their phase."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fabric_lite.events import Event, Phase, TrainingPhase, ValidationPhase

ENTRIES = {
    "train:step_begin": ["xs", "ys"],
    "train:loss_begin": ["xs", "ys", "preds"],
    "train:backward_begin": ["xs", "ys", "preds", "loss"],
    "train:backward_end": ["xs", "ys", "preds", "loss", "grads"],
    "train:step_end": ["xs", "ys", "preds", "loss", "grads"],
    "validation:step_begin": ["xs", "ys"],
    "validation:loss_begin": ["xs", "ys", "preds"],
    "validation:step_end": ["xs", "ys", "preds", "loss"],
}


class Watch:
    """Calls a function at each event of a step."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def on_step_begin(self, learner: Any, phase: Phase, event: str) -> None:
        self.look(learner, f"{phase.name}:{event.removeprefix('on_')}")

    on_loss_begin = on_backward_begin = on_backward_end = on_step_end = on_step_begin


def test_which_state_exists_from_which_event_on(make: Any) -> None:
    found: dict[str, list[str]] = {}
    make(Watch(lambda learner, event: found.update({event: list(learner.step)}))).fit(1)
    assert found == ENTRIES


def test_the_values_are_those_of_the_step(make: Any, data: Any) -> None:
    xs, ys = data(1)[0]
    found: dict[str, Any] = {}

    def look(learner: Any, event: str) -> None:
        if event == "train:backward_end":
            found.update(learner.step)
            found["grads"] = {name: gradient.clone() for name, gradient in learner.step.grads.items()}

    learner = make(Watch(look), data=(data(1),))
    model = torch.nn.Linear(3, 1)
    model.load_state_dict(learner.model.state_dict())
    learner.fit(1)
    loss = torch.nn.functional.mse_loss(model(xs), ys)
    loss.backward()
    assert torch.equal(found["xs"], xs)
    assert torch.equal(found["ys"], ys)
    assert torch.equal(found["preds"], model(xs))
    assert torch.equal(found["loss"], loss)
    assert list(found["grads"]) == ["weight", "bias"] == list(learner.params)
    for name, parameter in model.named_parameters():
        assert torch.equal(found["grads"][name], parameter.grad)


def test_gradients_are_those_that_there_are(make: Any, data: Any) -> None:
    learner = make(data=(data(1),))
    learner.params["bias"].requires_grad_(False)
    learner.fit(1)
    grads = learner.step.grads
    assert ("weight" in grads, "bias" in grads, list(grads), len(grads)) == (True, False, ["weight"], 1)
    with pytest.raises(KeyError, match="bias"):
        grads["bias"]


def test_each_step_has_a_state_of_its_own(make: Any) -> None:
    states: list[Any] = []

    def look(learner: Any, event: str) -> None:
        if not states or states[-1] is not learner.step:
            states.append(learner.step)

    make(Watch(look)).fit(1)
    assert len(states) == 3
    assert [torch.is_tensor(state.loss) for state in states] == [True] * 3


def test_training_trains_and_validation_looks(make: Any) -> None:
    found: dict[str, Any] = {}

    def look(learner: Any, event: str) -> None:
        found[event] = (learner.model.training, learner.step.get("preds", torch.tensor(0)).requires_grad)

    make(Watch(look)).fit(2)
    assert {found[event] for event in ENTRIES if event.startswith("train:") and "preds" in ENTRIES[event]} == {
        (True, True)
    }
    assert {found[event] for event in ENTRIES if event.startswith("validation:")} == {(False, False)}
    assert torch.is_grad_enabled()


def test_validation_leaves_weights_and_gradients_alone(make: Any) -> None:
    learner = make()
    before = [parameter.clone() for parameter in learner.params.values()]
    learner.run_epoch(ValidationPhase())
    assert all(torch.equal(old, new) for old, new in zip(before, learner.params.values(), strict=True))
    assert [parameter.grad for parameter in learner.params.values()] == [None, None]


def test_handlers_take_any_of_learner_phase_and_event(make: Any) -> None:
    found: list[Any] = []

    class Taking:
        def on_fit_begin(self, **kwargs: Any) -> None:
            found.append(kwargs)

        def on_train_epoch_begin(self, **kwargs: Any) -> None:
            found.append(kwargs)

        def on_validation_epoch_begin(self, phase: Phase) -> None:
            found.append(phase)

        def on_fit_end(self) -> None:
            found.append(None)

    learner = make(Taking())
    learner.fit(1)
    assert found == [
        {"learner": learner, "event": Event.FIT_BEGIN},
        {"learner": learner, "event": Event.EPOCH_BEGIN, "phase": TrainingPhase()},
        ValidationPhase(),
        None,
    ]


def test_no_phase_is_passed_where_there_is_none(make: Any, raising: Any) -> None:
    found: list[str] = []

    class Taking:
        def on_fit_begin(self, **kwargs: Any) -> None:
            found.extend(kwargs)

        on_fit_end = on_exception = on_fit_begin

    learner = make(Taking(), raising("fit_begin", ValueError("oh")))
    with pytest.raises(ValueError, match="oh"):
        learner.fit(1)
    learner.fit(1)
    assert "phase" not in found
    assert found.count("exception") == 1


def test_a_batch_moves_to_the_device(make: Any, data: Any) -> None:
    class Elsewhere:
        """Inputs that are not on the device yet."""

        def __init__(self, xs: torch.Tensor) -> None:
            self.xs = xs

        def to(self, device: torch.device, **_: Any) -> torch.Tensor:
            places.append(device)
            return self.xs

    places: list[torch.device] = []
    ((xs, ys),) = data(1)
    make(data=([(Elsewhere(xs), ys)],)).fit(1)
    assert places == [torch.device("cpu")]
