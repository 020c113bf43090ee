"""The contexts and `handle`, for those who write the loop themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fabric_lite import CancelEpochException, CancelFittingException, CancelStepException
from fabric_lite.events import Event, TrainingPhase, ValidationPhase

TRAIN, VALIDATION = TrainingPhase(), ValidationPhase()


def own_loop(learner: Any, batches: Any, seen: list[str]) -> None:
    with learner.epoch_context(TRAIN):
        for xs, ys in batches:
            with learner.step_context(TRAIN, xs=xs, ys=ys) as step:
                seen.append("body")
                learner.optimizer.zero_grad()
                step.preds = learner.model(step.xs)
                learner.handle(Event.LOSS_BEGIN)
                step.loss = learner.lossfn(step.preds, step.ys)
                learner.handle("on_loss_end")
                learner.backward(step.loss)
                learner.optimizer.step()
            seen.append("after the step")
    seen.append("after the epoch")


STEP = ["train:step_begin", "body", "train:loss_begin", "train:loss_end"]
STEP += ["train:backward_begin", "train:backward_end", "train:step_end", "after the step"]
WHOLE = ["train:epoch_begin", *STEP, *STEP, "train:epoch_end", "after the epoch"]


@pytest.fixture
def noting(recording: Any) -> Any:
    """Also notes down an event that `Event` does not have."""

    def on_loss_end(event: str, phase: Any) -> None:
        recording.note(event, phase)

    recording.on_loss_end = on_loss_end
    return recording


def test_the_contexts_fire_begin_and_end(make: Any, data: Any, noting: Any) -> None:
    own_loop(make(noting), data(2), noting.seen)
    assert noting.seen == WHOLE


def test_such_a_loop_trains_as_fit_does(make: Any, data: Any) -> None:
    one, other = make(), make()
    one.fit(1)
    own_loop(other, data(2), [])
    for name, parameter in one.params.items():
        assert torch.equal(parameter, other.params[name])


def test_the_state_is_what_was_passed_and_is_the_learners(make: Any) -> None:
    learner = make()
    with learner.step_context(TRAIN, xs=1, extra="more") as step:
        assert step is learner.step
        assert dict(step) == {"xs": 1, "extra": "more"}
        step.preds = 2
    assert learner.step.preds == 2


@pytest.mark.parametrize("at", ["loss_begin", "loss_end", "backward_begin", "backward_end"])
def test_a_cancelled_step_ends_the_block_and_there_is_no_end(
    make: Any, data: Any, noting: Any, raising: Any, at: str
) -> None:
    own_loop(make(noting, raising(f"train:{at}", CancelStepException())), data(2), noting.seen)
    cut = STEP[: STEP.index(f"train:{at}") + 1]
    assert noting.seen == ["train:epoch_begin", *cut, "after the step", *STEP, "train:epoch_end", "after the epoch"]


@pytest.mark.parametrize("at", ["step_begin", "loss_begin", "step_end"])
def test_a_cancelled_epoch_ends_the_block_with_its_end(
    make: Any, data: Any, noting: Any, raising: Any, at: str
) -> None:
    own_loop(make(noting, raising(f"train:{at}", CancelEpochException())), data(2), noting.seen)
    cut = STEP[: STEP.index(f"train:{at}") + 1]
    assert noting.seen == ["train:epoch_begin", *cut, "train:epoch_end", "after the epoch"]


def test_the_body_may_cancel(make: Any, recording: Any) -> None:
    learner = make(recording)
    with learner.epoch_context(TRAIN):
        with learner.step_context(TRAIN, xs=0):
            raise CancelStepException("not this one")
        with learner.step_context(TRAIN, xs=1):
            raise CancelEpochException("no more of them")
        recording.seen.append("not reached")
    assert recording.seen == ["train:epoch_begin", "train:step_begin", "train:step_begin", "train:epoch_end"]


@pytest.mark.parametrize(
    "at, error, seen",
    [
        ("train:step_begin", CancelStepException, ["train:epoch_begin", "train:step_begin"]),
        ("train:epoch_begin", CancelEpochException, ["train:epoch_begin", "train:epoch_end"]),
    ],
)
def test_a_cancel_out_of_a_begin_handler_leaves_the_statement(
    make: Any, data: Any, noting: Any, raising: Any, at: str, error: type[Exception], seen: list[str]
) -> None:
    """A `with` statement cannot skip its body, so who writes the loop sees the exception."""
    learner = make(noting, raising(at, error("not now")))
    with pytest.raises(error, match="not now"):
        own_loop(learner, data(2), noting.seen)
    assert noting.seen == seen
    assert learner.phase is None


@pytest.mark.parametrize("error", [CancelFittingException("all"), ValueError("oh"), KeyboardInterrupt()])
def test_other_exceptions_pass(make: Any, recording: Any, error: BaseException) -> None:
    learner = make(recording)
    with pytest.raises(type(error)) as caught, learner.epoch_context(TRAIN), learner.step_context(TRAIN, xs=0):
        raise error
    assert caught.value is error
    assert recording.seen == ["train:epoch_begin", "train:step_begin"]
    assert learner.phase is None


def test_any_name_is_an_event_in_the_phase_of_the_surrounding_context(make: Any) -> None:
    found: list[Any] = []

    class Own:
        def on_train_sampled(self, temperature: float, event: str) -> None:
            found.append(("train", event, temperature))

        def on_sampled(self, event: str) -> None:
            found.append(("any", event))

        def coffee(self, **kwargs: Any) -> None:
            found.append(sorted(kwargs))

    learner = make(Own())
    learner.handle("on_sampled", temperature=0.0)
    with learner.epoch_context(TRAIN):
        learner.handle("on_sampled", temperature=0.5)
        with learner.epoch_context(VALIDATION):
            learner.handle("on_sampled", temperature=1.0)
            learner.handle("coffee")
        learner.handle("on_sampled", temperature=2.0)
    learner.handle("coffee")
    assert found == [
        ("any", "on_sampled"),
        ("train", "on_sampled", 0.5),
        ("any", "on_sampled"),
        ["event", "learner", "phase"],
        ("train", "on_sampled", 2.0),
        ["event", "learner"],
    ]


def test_validation_in_the_middle_of_an_epoch(make: Any, data: Any, recording: Any) -> None:
    learner = make(recording)
    modes = []
    with learner.epoch_context(TRAIN):
        assert learner.phase == TRAIN
        learner.run_epoch(VALIDATION)
        assert learner.phase == TRAIN
        TRAIN.prepare(learner)
        modes.append(learner.model.training)
    assert modes == [True]
    assert learner.phase is None
    assert recording.seen == [
        "train:epoch_begin",
        "validation:epoch_begin",
        "validation:step_begin",
        "validation:loss_begin",
        "validation:step_end",
        "validation:epoch_end",
        "train:epoch_end",
    ]


def test_the_bus_of_the_fabric_is_that_of_the_learner(make: Any, recording: Any) -> None:
    learner = make(recording)
    learner.fabric.call("on_step_end", learner=learner, phase=TRAIN, event="on_step_end")
    assert recording.seen == ["train:step_end"]
    assert learner.callbacks is learner.fabric.callbacks
