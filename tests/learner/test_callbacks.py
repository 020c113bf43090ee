"""Callbacks in a `Learner`: whose they are, what they may touch, and those that are never called."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch

from fabric_lite import (
    Callback,
    CancelFittingException,
    MissingStateError,
    Protected,
    ProtectedException,
    Read,
    TrainingPhase,
    Write,
    WriteConflictError,
    throttle,
)
from fabric_lite.callbacks import Metrics, MetricsPrinter, ProgressPrinter, Recorder, StopOnNaNLoss


class Plain:
    def __init__(self) -> None:
        self.given: list[Any] = []

    def on_step_end(self, learner: Any) -> None:
        self.given.append(learner)


class Guarded(Callback):
    def __init__(self, **access: Any) -> None:
        self.access = {name.replace("__", "."): right for name, right in access.items()}
        self.given: list[Any] = []
        self.met: list[Any] = []

    def stateaccess(self) -> Any:
        return self.access

    def init(self, learner: Any) -> None:
        self.met.append(learner)

    def on_train_step_end(self, learner: Any) -> None:
        self.given.append(learner.step.loss)

    def on_backward_end(self, learner: Any) -> None:
        self.given.append(type(learner))


# -- whose they are --------------------------------------------------------------------------------------------------


def test_they_come_after_those_of_the_fabric_each_once(make: Any, cpu: Any) -> None:
    first, second, third = Plain(), Plain(), Plain()
    given = [second, first, third]
    learner = make(fabric=cpu(callbacks=[first]), callbacks=given)
    assert list(learner.callbacks) == [first, second, third]
    assert given == [second, first, third]
    learner.fit(1)
    assert [len(callback.given) for callback in (first, second, third)] == [3, 3, 3]


@pytest.mark.parametrize("form", [lambda one: one, lambda one: [one], lambda one: (one,)])
def test_one_or_several(make: Any, form: Any) -> None:
    callback = Plain()
    assert list(make(callbacks=form(callback)).callbacks) == [callback]


def test_none_by_default(make: Any) -> None:
    assert list(make(callbacks=()).callbacks) == []


DEFAULT = [Recorder, Metrics, ProgressPrinter, MetricsPrinter, StopOnNaNLoss]


def test_the_default_ones_are_added_unless_they_are_not_wanted(make: Any) -> None:
    assert list(make(usedefaultcallbacks=False).callbacks) == []
    assert {type(callback) for callback in make(usedefaultcallbacks=True).callbacks} == set(DEFAULT)
    assert len(make(usedefaultcallbacks=True).callbacks) == len(DEFAULT)


@pytest.mark.parametrize("kind", DEFAULT)
@pytest.mark.parametrize("where", ["learner", "fabric", "wrapped", "subclass"])
def test_a_default_one_that_is_there_is_not_added_again(make: Any, cpu: Any, kind: type, where: str) -> None:
    own = type("Own", (kind,), {})() if where == "subclass" else kind()
    given = throttle(own, "on_step_end", freq=1) if where == "wrapped" else own
    needed = [Recorder(), Metrics()] if kind in (ProgressPrinter, MetricsPrinter) else []
    options = {"fabric": cpu(callbacks=[given, *needed])} if where == "fabric" else {"callbacks": [given]}
    callbacks = make(usedefaultcallbacks=True, **options).callbacks
    assert callbacks.get(kind) is own
    assert len(callbacks) == len(DEFAULT)


def test_with_the_default_ones_it_trains_to_the_same_weights(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with_them, without = make(usedefaultcallbacks=True), make()
    with_them.fit(2)
    without.fit(2)
    assert all(torch.equal(with_them.params[name], without.params[name]) for name in without.params)
    assert with_them.cbstate.history[TrainingPhase()].steps == 4
    assert "Loss" in capsys.readouterr().out


def test_a_plain_function(make: Any) -> None:
    learner, seen = make(), []
    with learner.callbacks.on("on_train_step_end", lambda phase: seen.append(phase.name)):
        learner.fit(1)
    learner.fit(1)
    assert seen == ["train", "train"]


def test_one_that_comes_in_the_middle_of_a_fit(make: Any) -> None:
    late = Guarded(step__loss=Read())

    class Adding:
        def on_train_epoch_end(self, learner: Any) -> None:
            if late not in learner.callbacks:
                learner.callbacks.add(late)

    make(Adding()).fit(2)
    assert len(late.met) == 1
    assert len(late.given) == 4


# -- what they may touch ---------------------------------------------------------------------------------------------


def test_guarded_ones_get_a_proxy_and_plain_ones_the_learner(make: Any) -> None:
    guarded, plain = Guarded(step__loss=Read()), Plain()
    learner = make(guarded, plain)
    learner.fit(1)
    assert plain.given == [learner] * 3
    assert guarded.given == [Protected, guarded.given[1], Protected, guarded.given[3]]
    assert guarded.given[3] is not guarded.given[1]


def test_init_runs_once_when_the_learner_is_made(make: Any) -> None:
    guarded = Guarded(step__loss=Read())
    learner = make(guarded)
    assert [type(met) for met in guarded.met] == [Protected]
    learner.fit(2)
    assert len(guarded.met) == 1


def test_init_is_held_to_what_is_declared(make: Any) -> None:
    class Nosy(Callback):
        def init(self, learner: Any) -> None:
            learner.cbstate.nosy = 1

    with pytest.raises(ProtectedException, match=r"^Write access to Learner\.cbstate\.nosy disallowed\."):
        make(Nosy())


def test_what_is_not_declared_is_refused_and_the_fit_ends(make: Any, recording: Any) -> None:
    with pytest.raises(ProtectedException, match=r"^Read access to Learner\.step\.loss disallowed\. Guarded read it"):
        make(recording, Guarded()).fit(1)
    assert recording.seen[-1] == "exception"


def test_a_strict_guard_notices_a_tensor_that_changes_in_place(make: Any, cpu: Any) -> None:
    class Clipping(Callback):
        def stateaccess(self) -> Any:
            return {"step": {"grads": Read()}}

        def on_backward_end(self, learner: Any) -> None:
            learner.step.grads["weight"].clamp_(-1, 1)

    make(Clipping()).fit(1)
    with pytest.raises(ProtectedException, match=r"Learner\.step\.grads\.weight"):
        make(Clipping(), fabric=cpu(guard="strict")).fit(1)


def test_callbacks_that_do_not_fit_together_are_found_before_anything_runs(make: Any, recording: Any) -> None:
    class Reads(Callback):
        def stateaccess(self) -> Any:
            return {"cbstate.history": Read()}

    with pytest.raises(MissingStateError, match=r"Recorder"):
        make(recording, Reads())
    with pytest.raises(WriteConflictError, match=r"Guarded"):
        make(recording, Guarded(model=Write()), Guarded(model=Write()))
    assert recording.seen == []


def test_a_throttled_callback(make: Any, data: Any) -> None:
    plain = Plain()
    make(throttle(plain, "on_step_end", freq=2), data=(data(5),)).fit(1)
    assert len(plain.given) in (2, 3)


# -- those that are never called -------------------------------------------------------------------------------------


class Misspelt:
    def on_step_ends(self) -> None: ...

    def on_train_epochend(self) -> None: ...

    def on_step_end(self) -> None: ...


def test_fit_warns_of_misspelt_hooks_at_the_line_that_called_it(make: Any) -> None:
    learner = make(Misspelt())
    with pytest.warns(UserWarning, match="misspelt") as caught:
        learner.fit(1)
    assert [str(warning.message) for warning in caught] == [
        "`Misspelt.on_step_ends` was never called (did you mean `on_step_end`?); `Misspelt.on_train_epochend` was"
        " never called (did you mean `on_train_epoch_end`?). Is a name misspelt?"
    ]
    assert caught[0].filename == __file__


def test_hooks_that_exist_are_not_misspelt_when_this_fit_does_not_reach_them(make: Any, data: Any) -> None:
    class Rare:
        def on_validation_step_end(self) -> None: ...

        def on_exception(self) -> None: ...

        def on_backward_begin(self) -> None: ...

        def on_train_step_begin(self) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(Rare(), data=(data(1),)).fit(1)
        make(Rare(), data=(data(1),)).fit(0)


# -- and nothing stays behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["no callbacks", "callbacks", "cancelled", "exception"])
def test_a_learner_that_goes_out_of_scope_frees_all_it_held(make: Any, raising: Any, case: str) -> None:
    class Sum(Callback):
        total = 0.0

        def stateaccess(self) -> Any:
            return {"step": {"loss": Read()}}

        def on_train_step_end(self, learner: Any) -> None:
            self.total += learner.step.loss.item()

    callbacks = {
        "no callbacks": [],
        "callbacks": [Sum()],
        "cancelled": [raising("train:loss_begin", CancelFittingException())],
        "exception": [raising("train:loss_begin", ValueError("oh"))],
    }[case]
    make().fit(1)  # at its first step, torch imports its compiler, which keeps the frames of that moment alive
    gc.collect()
    gc.disable()
    try:
        learner = make(*callbacks)
        try:
            learner.fit(2)
        except ValueError:
            callbacks.clear()
        held = [learner, learner.fabric, learner.model, learner.optimizer, learner.params["weight"]]
        alive = [weakref.ref(each) for each in held]
        del learner, held
        assert [each() for each in alive] == [None] * 5
    finally:
        gc.enable()
