from __future__ import annotations

import pickle

import pytest

from fabric_lite.permissions import (
    CallbackGraphError,
    CancelEpochException,
    CancelFittingException,
    CancelStepException,
    CyclicDependencyError,
    FitException,
    MissingStateError,
    ProtectedException,
    WriteConflictError,
)


def test_a_denied_access_is_no_attribute_error():
    assert not issubclass(ProtectedException, (AttributeError, KeyError))


@pytest.mark.parametrize("kind", [WriteConflictError, MissingStateError, CyclicDependencyError])
def test_graph_errors_have_one_base(kind):
    assert issubclass(kind, CallbackGraphError)


@pytest.mark.parametrize("kind", [CancelStepException, CancelEpochException, CancelFittingException])
def test_control_flow_has_one_base(kind):
    assert issubclass(kind, FitException)
    assert not issubclass(kind, CallbackGraphError)


def test_graph_errors_survive_pickling():
    error = MissingStateError("two problems", [MissingStateError("one"), WriteConflictError("other")])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (MissingStateError, "two problems")
    assert [(type(problem), str(problem)) for problem in again.problems] == [
        (MissingStateError, "one"),
        (WriteConflictError, "other"),
    ]
