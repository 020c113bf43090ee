"""In which order events come: in a normal fit, with each kind of cancellation at each event, and with exceptions."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from fabric_lite import CancelEpochException, CancelFittingException, CancelStepException
from fabric_lite.events import Event, TrainingPhase, ValidationPhase

STEP = ["step_begin", "loss_begin", "backward_begin", "backward_end", "step_end"]
TRAIN_STEP = [f"train:{event}" for event in STEP]
TRAIN = ["train:epoch_begin", *TRAIN_STEP, *TRAIN_STEP, "train:epoch_end"]
VALIDATION_STEP = ["validation:step_begin", "validation:loss_begin", "validation:step_end"]
VALIDATION = ["validation:epoch_begin", *VALIDATION_STEP, "validation:epoch_end"]
EPOCH = [*TRAIN, *VALIDATION]
ALL = ["fit_begin", *EPOCH, "fit_end"]


def rest(event: str, after: int = 0) -> list[str]:
    """The events of a fit from the first of this name, behind the given position."""
    return ALL[ALL.index(event, after) :]


def cut(at: str, then: list[str]) -> list[str]:
    """The events of a fit up to the first of this name, and what comes then."""
    return ALL[: ALL.index(at) + 1] + then


def test_a_normal_fit(make: Any, recording: Any) -> None:
    learner = make(recording)
    learner.fit(1)
    assert recording.seen == ALL
    assert learner.stop_reason is None


def test_each_epoch_of_a_fit_is_followed_by_its_validation(make: Any, recording: Any) -> None:
    make(recording).fit(3)
    assert recording.seen == ["fit_begin", *EPOCH, *EPOCH, *EPOCH, "fit_end"]


def test_without_validation_data_there_is_none(make: Any, data: Any, recording: Any) -> None:
    make(recording, data=(data(2),)).fit(1)
    assert recording.seen == ["fit_begin", *TRAIN, "fit_end"]


def test_no_epochs(make: Any, recording: Any) -> None:
    make(recording).fit(0)
    assert recording.seen == ["fit_begin", "fit_end"]


@pytest.mark.parametrize("at", TRAIN_STEP)
def test_cancelling_a_step_skips_its_end_and_goes_on_with_the_next(
    make: Any, recording: Any, raising: Any, at: str
) -> None:
    learner = make(recording, raising(at, CancelStepException("no more")))
    learner.fit(1)
    assert recording.seen == cut(at, [*TRAIN_STEP, "train:epoch_end", *VALIDATION, "fit_end"])
    assert learner.stop_reason is None


@pytest.mark.parametrize("at", VALIDATION_STEP)
def test_cancelling_a_step_in_validation(make: Any, recording: Any, raising: Any, at: str) -> None:
    make(recording, raising(at, CancelStepException())).fit(1)
    assert recording.seen == cut(at, ["validation:epoch_end", "fit_end"])


@pytest.mark.parametrize("at", ["train:epoch_begin", *TRAIN_STEP])
def test_cancelling_an_epoch_fires_its_end_and_goes_on_with_the_next(
    make: Any, recording: Any, raising: Any, at: str
) -> None:
    make(recording, raising(at, CancelEpochException())).fit(2)
    assert recording.seen == cut(at, ["train:epoch_end", *VALIDATION, *EPOCH, "fit_end"])


@pytest.mark.parametrize("at", ["validation:epoch_begin", *VALIDATION_STEP])
def test_cancelling_an_epoch_of_validation(make: Any, recording: Any, raising: Any, at: str) -> None:
    make(recording, raising(at, CancelEpochException())).fit(1)
    assert recording.seen == cut(at, ["validation:epoch_end", "fit_end"])


@pytest.mark.parametrize("phase", ["train", "validation"])
def test_cancelling_an_epoch_at_its_end_fires_the_end_once(make: Any, recording: Any, raising: Any, phase: str) -> None:
    make(recording, raising(f"{phase}:epoch_end", CancelEpochException())).fit(1)
    assert recording.seen == ALL


@pytest.mark.parametrize("at", list(dict.fromkeys(ALL)))
def test_cancelling_fitting_ends_it_normally(make: Any, recording: Any, raising: Any, at: str) -> None:
    learner = make(recording, raising(at, CancelFittingException("enough")))
    learner.fit(3)
    whole = ["fit_begin", *EPOCH * 3, "fit_end"]
    seen = whole[: whole.index(at) + 1]
    assert recording.seen == seen + (["fit_end"] if at != "fit_end" else [])
    assert learner.stop_reason == "enough"


@pytest.mark.parametrize(
    "error, expected",
    [
        (CancelStepException(), cut("train:loss_begin", [*TRAIN_STEP, "train:epoch_end", *VALIDATION, "fit_end"])),
        (CancelEpochException(), cut("train:loss_begin", ["train:epoch_end", *VALIDATION, "fit_end"])),
        (CancelFittingException(), cut("train:loss_begin", ["fit_end"])),
    ],
)
def test_cancelling_in_the_step_itself(make: Any, recording: Any, error: Exception, expected: list[str]) -> None:
    learner = make(recording)
    compute, left = learner.lossfn, [error]

    def lossfn(preds: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
        if left:
            raise left.pop()
        return compute(preds, ys)

    learner.lossfn = lossfn
    learner.fit(1)
    assert recording.seen == expected


@pytest.mark.parametrize("at, steps", [("train:step_begin", 1), ("train:backward_end", 1), ("train:step_end", 2)])
def test_a_cancelled_step_does_not_reach_the_optimizer(make: Any, raising: Any, at: str, steps: int) -> None:
    learner, made = make(raising(at, CancelStepException())), []
    take = learner.optimizer.optimizer.step
    learner.optimizer.optimizer.step = lambda *args, **kwargs: made.append(take(*args, **kwargs))
    learner.fit(1)
    assert len(made) == steps


def test_why_fitting_stopped_is_logged_and_kept_until_the_next_fit(
    make: Any, raising: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class TooGood(CancelFittingException):
        pass

    learner = make(raising("train:step_end", CancelFittingException("the loss is 0")))
    with caplog.at_level(logging.INFO, logger="fabric_lite"):
        learner.fit(1)
    assert [record.getMessage() for record in caplog.records] == ["fitting was cancelled: the loss is 0"]
    assert learner.stop_reason == "the loss is 0"
    learner.fit(1)
    assert learner.stop_reason is None
    learner = make(raising("train:step_end", TooGood()))
    learner.fit(1)
    assert learner.stop_reason == "TooGood"


@pytest.mark.parametrize(
    "error", [ValueError("oh"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("at", [event for event in dict.fromkeys(ALL) if event != "fit_end"])
def test_an_exception_is_shown_to_callbacks_and_raised_again(
    make: Any, recording: Any, raising: Any, at: str, error: BaseException
) -> None:
    shown: list[BaseException] = []

    class Looking:
        def on_exception(self, learner: Any, event: str, exception: BaseException) -> None:
            assert (learner is at_work, event, learner.phase) == (True, Event.EXCEPTION, None)
            shown.append(exception)

    at_work = make(recording, Looking(), raising(at, error))
    with pytest.raises(type(error)) as caught:
        at_work.fit(1)
    assert caught.value is error is shown[0]
    assert recording.seen == cut(at, ["exception"])
    recording.seen.clear()
    at_work.fit(1)
    assert recording.seen == ALL


def test_an_exception_in_the_model_is_shown_too(make: Any, recording: Any, data: Any) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make(recording, model=torch.nn.Linear(5, 1)).fit(1)
    assert recording.seen == ["fit_begin", "train:epoch_begin", "train:step_begin", "exception"]


def test_an_exception_in_the_data_is_shown_too(make: Any, recording: Any, data: Any) -> None:
    class Torn:
        def __iter__(self) -> Any:
            yield from data(1)
            raise OSError("the disk has gone")

    with pytest.raises(OSError, match="the disk has gone"):
        make(recording, data=(Torn(),)).fit(1)
    assert recording.seen == ["fit_begin", "train:epoch_begin", *TRAIN_STEP, "exception"]


def test_run_epoch_and_run_step_alone(make: Any, data: Any, recording: Any) -> None:
    learner = make(recording)
    learner.run_epoch(ValidationPhase())
    learner.run_epoch(TrainingPhase(), data(1))
    learner.run_step(TrainingPhase(), data(1)[0])
    assert recording.seen == [*VALIDATION, "train:epoch_begin", *TRAIN_STEP, "train:epoch_end", *TRAIN_STEP]
    assert learner.phase is None


@pytest.mark.parametrize("at", ["epoch_begin", *STEP, "epoch_end"])
def test_run_epoch_swallows_the_cancelling_of_its_epoch_and_nothing_else(make: Any, raising: Any, at: str) -> None:
    learner = make(raising(f"train:{at}", CancelEpochException()))
    learner.run_epoch(TrainingPhase())
    learner.callbacks.add(raising(f"train:{at}", CancelFittingException("all of it")))
    with pytest.raises(CancelFittingException, match="all of it"):
        learner.run_epoch(TrainingPhase())
    assert learner.phase is None
