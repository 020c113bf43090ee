from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from fabric_lite import Callback, CancelStepException, CyclicDependencyError, Fabric, Read, State, Write
from fabric_lite.callbacks.metrics import Metrics
from fabric_lite.callbacks.recorder import History, Recorder
from fabric_lite.events import AbstractTrainingPhase, Phase, TrainingPhase, ValidationPhase
from fabric_lite.learner import Learner


class Reader(Callback):
    """Notes what there is to read at each event."""

    def __init__(self):
        self.seen = []

    def stateaccess(self):
        return {"cbstate.history": Read()}

    def _note(self, learner, phase, event):
        history = learner.cbstate.history[phase]
        self.seen.append((str(event), history.epochs, history.steps, history.stepsepoch))

    on_epoch_begin = on_step_begin = on_step_end = on_epoch_end = _note


class Own(AbstractTrainingPhase):
    def step(self, learner, batch):
        with learner.step_context(self):
            pass


def learner_with(*callbacks):
    fabric = Fabric(accelerator="cpu", callbacks=list(callbacks), guard="strict")
    return Learner(nn.Linear(1, 1), nn.MSELoss(), fabric=fabric, usedefaultcallbacks=False)


def test_counts_of_two_epochs_as_a_reader_sees_them():
    reader = Reader()
    learner = learner_with(reader, Recorder())
    for _ in range(2):
        learner.run_epoch(Own(), [None, None])
    assert reader.seen == [
        ("on_epoch_begin", 0, 0, 0),
        ("on_step_begin", 0, 0, 0),
        ("on_step_end", 0, 1, 1),
        ("on_step_begin", 0, 1, 1),
        ("on_step_end", 0, 2, 2),
        ("on_epoch_end", 1, 2, 2),
        ("on_epoch_begin", 1, 2, 0),
        ("on_step_begin", 1, 2, 0),
        ("on_step_end", 1, 3, 1),
        ("on_step_begin", 1, 3, 1),
        ("on_step_end", 1, 4, 2),
        ("on_epoch_end", 2, 4, 2),
    ]


def test_a_cancelled_step_does_not_count():
    class Skip(Own):
        def step(self, learner, batch):
            with learner.step_context(self):
                if batch:
                    raise CancelStepException

    learner = learner_with(Recorder())
    learner.run_epoch(Skip(), [0, 1, 0])
    assert learner.cbstate.history[Skip()] == History(epochs=1, steps=2, stepsepoch=2)


def test_a_phase_that_was_never_there_reads_as_zeros_and_is_not_kept():
    learner = learner_with(Recorder())
    assert learner.cbstate.history[ValidationPhase()] == History(0, 0, 0)
    assert ValidationPhase() not in learner.cbstate.history
    assert len(learner.cbstate.history) == 0


def test_a_class_as_the_key_is_an_error():
    with pytest.raises(
        TypeError, match=r"^TrainingPhase is the class of a phase; write \[TrainingPhase\(\)\] instead\.$"
    ):
        learner_with(Recorder()).cbstate.history[TrainingPhase]


def test_works_in_a_hand_written_loop_with_step_events_alone():
    fabric = Fabric(accelerator="cpu", callbacks=Recorder())
    learner = State(cbstate=State())
    for _ in range(3):
        fabric.call("on_step_end", learner=learner, phase=TrainingPhase())
    assert learner.cbstate.history[TrainingPhase()] == History(0, 3, 3)


def test_state_goes_through_a_file_into_a_new_run():
    recorder = Recorder()
    learner = learner_with(recorder)
    learner.run_epoch(Own(), [None] * 3)
    learner.run_epoch(ValidationPhase(), [])
    file = io.BytesIO()
    torch.save(recorder.state_dict(), file)
    file.seek(0)
    for load_first in (True, False):
        again = Recorder()
        if load_first:
            again.load_state_dict(torch.load(file, weights_only=True))
        second = learner_with(again)
        if not load_first:
            second.run_epoch(Own(), [None])
            file.seek(0)
            again.load_state_dict(torch.load(file, weights_only=True))
        assert second.cbstate.history[Own()] == History(1, 3, 3)
        assert again.state_dict() == recorder.state_dict()
        second.run_epoch(Own(), [None])
        assert second.cbstate.history[Own()] == History(2, 4, 1)


def test_state_is_kept_by_the_name_of_the_phase():
    recorder = Recorder()
    learner = learner_with(recorder)
    learner.run_epoch(ValidationPhase(), [])
    assert recorder.state_dict() == {"validation": {"epochs": 1, "steps": 0, "stepsepoch": 0}}


def test_meeting_a_learner_again_keeps_the_counts_and_a_second_learner_begins_anew():
    recorder = Recorder()
    learner = learner_with(recorder)
    learner.run_epoch(Own(), [None])
    recorder.init(learner)
    assert learner.cbstate.history[Own()].steps == 1
    other = Learner(nn.Linear(1, 1), nn.MSELoss(), fabric=learner.fabric, usedefaultcallbacks=False)
    assert other.cbstate.history[Own()].steps == 0
    other.run_epoch(Own(), [None] * 5)
    assert (learner.cbstate.history[Own()].steps, other.cbstate.history[Own()].steps) == (1, 5)


def test_runs_after_metrics_without_a_circle_also_if_they_read_the_history():
    class Reading(Metrics):
        def stateaccess(self):
            return {**super().stateaccess(), "cbstate.history": Read()}

    for metrics in (Metrics(), Reading()):
        fabric = Fabric(accelerator="cpu", callbacks=[Recorder(), metrics])
        assert [type(callback) for callback in fabric.callbacks] == [type(metrics), Recorder]


def test_what_changes_metrics_by_the_history_is_a_circle_that_is_reported():
    class Curriculum(Callback):
        def stateaccess(self):
            return {"cbstate.history": Read(), "step.ys": Write()}

    with pytest.raises(CyclicDependencyError, match=r"Recorder\.runafter\(\) names Metrics"):
        Fabric(accelerator="cpu", callbacks=[Recorder(), Metrics(), Curriculum()])


def test_plot_without_metrics_says_what_to_add():
    history = learner_with(Recorder()).cbstate.history
    with pytest.raises(
        RuntimeError, match=r"^`history\.plot\(\)` knows of no metrics\. Add `Metrics\(\)` to the callbacks"
    ):
        history.plot()


def test_phases_of_one_name_are_kept_apart():
    class Other(Phase):
        name = "train"

    recorder = Recorder()
    learner = State(cbstate=State())
    for phase in (TrainingPhase(), Other(), Other()):
        recorder.on_step_end(learner, phase)
    again, learner = Recorder(), State(cbstate=State())
    again.load_state_dict(recorder.state_dict())
    again.init(learner)
    assert learner.cbstate.history[Other()].steps == 2
    assert learner.cbstate.history[TrainingPhase()].steps == 1
