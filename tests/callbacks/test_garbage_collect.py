from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.callbacks.garbage_collect import GarbageCollect
from fabric_lite.events import TrainingPhase
from fabric_lite.learner import Learner

TRAIN = TrainingPhase()


@pytest.fixture(autouse=True)
def automatic() -> Iterator[None]:
    """The automatic collection is on before and after."""
    assert gc.isenabled()
    yield
    assert gc.isenabled()
    gc.enable()


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """The generation of each collection that has begun."""
    found: list[int] = []

    def note(event: str, info: dict[str, Any]) -> None:
        if event == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_it_collects_when_it_is_time_and_at_no_other_moment(collections: list[int]) -> None:
    fabric = Fabric(accelerator="cpu", callbacks=GarbageCollect(every_n_steps=3), guard="strict")
    learner = object()
    fabric.call("on_fit_begin", learner=learner)
    collections.clear()
    for step in range(1, 8):
        _ = [[i] for i in range(10_000)]  # more than the automatic one would let pass
        fabric.call("on_step_end", learner=learner, phase=TRAIN)
        assert collections == [1] * (step // 3)
    fabric.call("on_epoch_end", learner=learner, phase=TRAIN)
    assert collections == [1, 1, 2]
    assert not gc.isenabled()
    fabric.call("on_fit_end", learner=learner)


def fitting(callback: Any, fails: bool = False) -> None:
    class Look:
        def on_step_end(self) -> None:
            assert not gc.isenabled()
            if fails:
                raise RuntimeError("no")

    data = [(torch.ones(2, 1), torch.zeros(2, 1))]
    fabric = Fabric(accelerator="cpu")
    loss = torch.nn.functional.mse_loss
    Learner(
        torch.nn.Linear(1, 1),
        loss,
        data=(data,),
        callbacks=[callback, Look()],
        fabric=fabric,
        usedefaultcallbacks=False,
    ).fit(1)


def test_afterwards_it_is_as_it_was() -> None:
    fitting(GarbageCollect())
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="no"):
        fitting(GarbageCollect(), fails=True)
    assert gc.isenabled()
    gc.disable()
    fitting(GarbageCollect())
    assert not gc.isenabled()
    gc.enable()


def test_a_loop_without_a_beginning_keeps_the_automatic_one() -> None:
    fabric = Fabric(accelerator="cpu", callbacks=GarbageCollect(1))
    fabric.call("on_step_end", learner=object(), phase=TRAIN)
    assert gc.isenabled()


def test_state(collections: list[int]) -> None:
    callback, resumed = GarbageCollect(3), GarbageCollect(3)
    callback.on_step_end()
    callback.on_step_end()
    resumed.load_state_dict(callback.state_dict())
    gc.disable()
    collections.clear()
    resumed.on_step_end()
    gc.enable()
    assert collections == [1]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"`GarbageCollect\(every_n_steps=0\)`: it collects every so many steps"):
        GarbageCollect(0)
