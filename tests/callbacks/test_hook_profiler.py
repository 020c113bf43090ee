from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from fabric_lite import Callback, Fabric, Read, State, ThreadedExecutor, throttle
from fabric_lite.callbacks.hook_profiler import HookProfiler
from fabric_lite.utilities.rank_zero import rank_zero_only


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Callback):
    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def stateaccess(self) -> Any:
        return {"loss": Read()}

    def on_step_end(self, learner: Any) -> None:
        self.clock.now += self.seconds * learner.loss


class Slower(Slow):
    def on_epoch_end(self, learner: Any, **everything: Any) -> None:
        self.clock.now += everything["callback"]


def profiled() -> tuple[HookProfiler, Fabric]:
    clock = Clock()
    profiler = HookProfiler(clock)
    fabric = Fabric(callbacks=[Slow(clock, 1.0), throttle(Slower(clock, 2.0), "on_epoch_end", freq=1), profiler])
    for _ in range(2):
        fabric.call("on_step_end", learner=State(loss=1.0))
    fabric.call("on_epoch_end", learner=State(), callback=0.25, hook=1)
    return profiler, fabric


def test_report() -> None:
    profiler, _ = profiled()
    assert profiler.report().splitlines() == [
        "callback  hook          calls  total [s]  mean [ms]  share",
        "Slower    on_step_end       2      4.000   2000.000  64.0%",
        "Slow      on_step_end       2      2.000   1000.000  32.0%",
        "Slower    on_epoch_end      1      0.250    250.000   4.0%",
    ]
    profiler.reset()
    assert profiler.timings() == []


@pytest.mark.parametrize("rank", [0, 1])
def test_printed_by_the_first_process(capsys: pytest.CaptureFixture[str], rank: int) -> None:
    profiler, fabric = profiled()
    rank_zero_only.rank = rank
    expected = profiler.report() + "\n"
    fabric.call("on_fit_end", learner=State())
    assert capsys.readouterr().out == (expected if rank == 0 else "")


def test_a_file(tmp_path: Path) -> None:
    profiler, _ = profiled()
    profiler.to_csv(tmp_path / "new" / "hooks.csv")
    with open(tmp_path / "new" / "hooks.csv", newline="") as file:
        first, *others = csv.DictReader(file)
    assert (first["callback"], first["hook"], first["calls"]) == ("Slower", "on_step_end", "2")
    assert (float(first["total"]), float(first["mean"]), float(first["share"])) == (4.0, 2.0, 0.64)
    assert len(others) == 2


def test_a_call_that_raises_counts() -> None:
    def fails() -> None:
        raise RuntimeError("lost")

    profiler = HookProfiler()
    fabric = Fabric(callbacks=profiler)
    fabric.callbacks.on("on_step_end", fails)
    with pytest.raises(RuntimeError, match="lost"):
        fabric.call("on_step_end")
    assert [timing.calls for timing in profiler.timings()] == [1]


@pytest.mark.parametrize("guard", ["on", "off", "strict"])
def test_threads(guard: str) -> None:
    executor = ThreadedExecutor(max_workers=2)
    profiler = HookProfiler()
    clock = Clock()
    fabric = Fabric(callbacks=[*(Slow(clock, 0.0) for _ in range(4)), profiler], executor=executor, guard=guard)
    for _ in range(50):
        fabric.call("on_step_end", learner=State(loss=1.0))
    executor.close()
    assert [(timing.callback, timing.calls) for timing in profiler.timings()] == [("Slow", 200)]


def test_it_goes_when_it_is_removed() -> None:
    profiler, fabric = profiled()
    fabric.callbacks.remove(profiler)
    before = profiler.timings()
    fabric.call("on_step_end", learner=State(loss=1.0))
    assert profiler.timings() == before
