from __future__ import annotations

import pytest

from fabric_lite.permissions import Callback, Guard, State


class Learner:
    """Stands for any object that is passed as ``learner``."""

    def __init__(self, **state):
        self.__dict__.update(state)


class Printer(Callback):
    def __init__(self, access=None, after=(), resolution=NotImplemented):
        self.access = access or {}
        self.after = after
        self.resolution = resolution

    def stateaccess(self):
        return self.access

    def runafter(self):
        return self.after

    def resolveconflict(self, other):
        return self.resolution

    def on_step_end(self, learner):
        return learner


@pytest.fixture
def learner():
    return Learner(step=State(loss=0.5, xs=[1, [2, 3]]), cbstate=State(), model=object(), epoch=3)


@pytest.fixture
def protected():
    """A function that gives the proxy of a learner for a declaration, by the way that a hook takes it."""

    def make(learner, access, mode="on", mutation_check=None):
        callback = Printer(access)
        guard = Guard(mode, mutation_check=mutation_check)
        guard.arrange([callback])
        make.kept = guard
        return guard.adapt(callback, "on_step_end", "learner")(learner)

    return make


@pytest.fixture
def learner_class():
    return Learner


@pytest.fixture
def printer():
    return Printer
