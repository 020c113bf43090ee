"""Guarded callbacks in a Fabric as objects: copied, sent to another process, gone at once, not imported for nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from fabric_lite import Callback, Fabric, Protected, ProtectedException, Read, State, ThreadedExecutor, Write, throttle

HOOK = "on_step_end"


class Learner:
    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


class Reader(Callback):
    def __init__(self, path: str = "loss") -> None:
        self.path = path
        self.seen: list[Any] = []

    def stateaccess(self) -> Any:
        return {self.path: Read()}

    def init(self, learner: Any) -> None:
        self.proxy = weakref.ref(learner)

    def on_step_end(self, learner: Any) -> None:
        self.seen.append(getattr(learner, self.path))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "proxy"}


class Writer(Callback):
    def stateaccess(self) -> Any:
        return {"loss": Write()}

    def on_step_end(self, learner: Any) -> None:
        learner.loss += 1


class Keeping(Reader):
    """Keeps the Fabric that it is given."""

    fabric: Any = None

    def on_after_setup(self, fabric: Any) -> None:
        self.fabric = fabric


def make(callbacks: Any, **arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", callbacks=callbacks, **arguments)


def through_a_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_a_pickle])
@pytest.mark.parametrize("guard", ["on", "off", "strict"])
@pytest.mark.parametrize("threads", [False, True])
def test_a_fabric_is_copied_with_its_guarded_callbacks(duplicate: Any, guard: Any, threads: bool) -> None:
    executor = ThreadedExecutor() if threads else None
    fabric, learner = (
        make([throttle(Reader(), HOOK, freq=1), Writer()], guard=guard, executor=executor),
        Learner(loss=1),
    )
    fabric.call(HOOK, learner=learner)
    again = duplicate(fabric)
    again.call(HOOK, learner=learner)
    again.call(HOOK, learner=Learner(loss=7))
    assert [type(callback).__name__ for callback in again.callbacks] == ["Writer", "ConditionalCallback"]
    assert again.callbacks.graph.order == tuple(again.callbacks)
    assert again.callbacks.get(Reader) is not fabric.callbacks.get(Reader)
    assert fabric.callbacks.get(Reader).seen == [2]
    assert again.callbacks.get(Reader).seen == [2, 3, 8]
    again.callbacks.remove(Writer)
    assert len(fabric.callbacks) == 2
    if guard != "off":
        again.callbacks.get(Reader).path = "other"
        with pytest.raises(ProtectedException, match=r"^Read access to Learner\.other disallowed\."):
            again.call(HOOK, learner=Learner(other=1))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_a_pickle])
def test_a_callback_that_keeps_its_fabric(duplicate: Any) -> None:
    callback = Keeping()
    callback.fabric = make(callback)
    fabric = duplicate(callback.fabric)
    assert fabric.callbacks.get(Keeping).fabric is fabric
    again = duplicate(callback)
    assert again.fabric.callbacks.get(Keeping) is again
    again.fabric.call(HOOK, learner=Learner(loss=4))
    assert again.seen == [4]
    assert callback.seen == []


@pytest.mark.parametrize("guard", ["on", "off", "strict"])
@pytest.mark.parametrize("kind", [Learner, State])
def test_nothing_is_kept_alive(guard: Any, kind: Any) -> None:
    """Not the learner by the Fabric, and not the Fabric by itself, also where the learner holds it."""
    executor = ThreadedExecutor()
    gone = []
    gc.disable()
    try:
        for arguments in ({}, {"executor": executor}):
            fabric = make([Reader(), throttle(Reader(), HOOK, freq=1), Writer()], guard=guard, **arguments)
            passing, learner = kind(loss=1), kind(loss=1, fabric=fabric)
            for _ in range(2):
                fabric.call(HOOK, learner=passing)
                fabric.call(HOOK, learner=learner)
            with pytest.raises(AttributeError):
                fabric.call(HOOK, learner=kind())
            graph = fabric.callbacks.graph
            gone.append(weakref.ref(passing))
            del passing
            assert gone[-1]() is None
            gone += [weakref.ref(thing) for thing in (fabric, learner, graph, fabric.callbacks, *fabric.callbacks)]
            del fabric, learner, graph
            assert [reference() for reference in gone] == [None] * len(gone)
    finally:
        gc.enable()
        executor.close()


def test_a_proxy_does_not_outlive_its_learner() -> None:
    class Hoarding(Writer):
        def on_step_end(self, learner: Any) -> None:
            self.kept = learner

    callback = Hoarding()
    make(callback).call(HOOK, learner=Learner(loss=1))
    assert type(callback.kept) is Protected
    with pytest.raises(ReferenceError, match=r"^Hoarding kept a proxy of a Learner that no longer exists"):
        callback.kept.loss  # noqa: B018


def test_plain_callbacks_do_not_import_the_permission_layer() -> None:
    script = """
import sys
import torch
from fabric_lite import Fabric

class Plain:
    def on_step_end(self, learner): self.learner = learner
    def state_dict(self): return {"seen": True}
    def load_state_dict(self, state): pass

fabric = Fabric(accelerator="cpu", callbacks=[Plain()], guard="strict")
fabric.setup(torch.nn.Linear(1, 1))
fabric.call("on_step_end", learner=fabric)
with fabric.callbacks.on("on_step_end", print): pass
fabric.callbacks.load_state_dict(fabric.callbacks.state_dict())
fabric.callbacks.replace(Plain()), fabric.callbacks.get(Plain), fabric.callbacks.uncalled()
assert not [name for name in sys.modules if name.startswith("fabric_lite.permissions")]
assert not {"graphlib", "concurrent.futures.thread"} & (set(sys.modules) - before), "by another way"
from fabric_lite import Read
assert "fabric_lite.permissions" in sys.modules
""".replace("from fabric_lite import Fabric\n", "before = set(sys.modules)\nfrom fabric_lite import Fabric\n", 1)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
