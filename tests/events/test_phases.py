"""What a phase is: its name, its equality, and the methods that it leads to."""

from __future__ import annotations

import copy
import pickle

import pytest

from fabric_lite.events import (
    AbstractTrainingPhase,
    AbstractValidationPhase,
    Phase,
    TrainingPhase,
    ValidationPhase,
    method_names,
)


class Finetuning(TrainingPhase):
    name = "finetuning"


class Nameless(Finetuning):
    pass


class Alone(Phase):
    name = "alone"


KINDS = [Phase, AbstractTrainingPhase, TrainingPhase, Finetuning, Nameless, ValidationPhase, Alone]


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_phases_of_one_class_are_equal_and_hash_alike(one: type[Phase], other: type[Phase]) -> None:
    assert (one() == other()) is (one is other)
    assert one is not other or hash(one()) == hash(other())
    assert ({one(): "found"}.get(other()) == "found") is (one is other)


def test_a_phase_is_no_string() -> None:
    assert TrainingPhase() != "train"


def test_a_copy_finds_what_the_original_stored() -> None:
    history = {TrainingPhase(): 1}
    assert history[copy.deepcopy(TrainingPhase())] == history[pickle.loads(pickle.dumps(TrainingPhase()))] == 1


def test_the_names() -> None:
    assert [AbstractTrainingPhase.name, TrainingPhase.name] == ["train", "train"]
    assert [AbstractValidationPhase.name, ValidationPhase.name] == ["validation", "validation"]
    assert Nameless.name == "finetuning"
    assert repr(Finetuning()) == "Finetuning()"


@pytest.mark.parametrize(
    "kind, names",
    [
        (Phase, ["on_step_end"]),
        (TrainingPhase, ["on_train_step_end", "on_step_end"]),
        (ValidationPhase, ["on_validation_step_end", "on_step_end"]),
        (Finetuning, ["on_finetuning_step_end", "on_train_step_end", "on_step_end"]),
        (Nameless, ["on_finetuning_step_end", "on_train_step_end", "on_step_end"]),
        (Alone, ["on_alone_step_end", "on_step_end"]),
    ],
)
def test_the_methods_that_an_event_reaches_the_most_specific_first(kind: type[Phase], names: list[str]) -> None:
    assert list(method_names("on_step_end", kind)) == names


def test_a_name_that_does_not_begin_with_on_stays_as_it_is() -> None:
    assert method_names("before_play_steps", TrainingPhase) == ("before_play_steps",)


def test_a_phase_without_a_step_says_what_to_write() -> None:
    with pytest.raises(NotImplementedError) as caught:
        Alone().step(None, None)
    assert str(caught.value) == ("`Alone` does not say what a step is. Give it a method `step(self, learner, batch)`.")
