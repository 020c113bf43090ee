"""Calling one hook on a few callbacks."""

from __future__ import annotations

import sys
from collections import Counter
from timeit import Timer
from typing import Any

import pluggy
from lightning.fabric import Fabric as LightningFabric
from timing import Bar, Row, Times, compare, in_turns

from fabric_lite import Fabric

HOOK = "on_train_batch_end"
ARGUMENTS = {"loss": 0.5, "output": [1.0], "batch": (1, 2)}
SIGNATURES = {
    "all three": "self, loss, output, batch",
    "one": "self, loss",
    "two": "self, loss, output",
    "kwargs": "self, **kwargs",
}
TAKES = {"one": ("loss",), "two": ("loss", "output")}
UNIFORM = ("all three",)
MIXED = ("one", "two", "kwargs")
BARS = {"Lightning Fabric": Bar("≤ 1/20", 1 / 20), "pluggy": Bar("< 1", 1.0), "direct calls": Bar("≤ 4", 4.0)}


def measure(quick: bool) -> list[Row]:
    """Compare `fabric.call` with Lightning's, a pluggy hook, and calls written by hand."""
    rows = []
    for label, signatures in (("same signatures", UNIFORM), ("mixed signatures", MIXED)):
        for number in (3, 10):
            sides = make_sides([signatures[i % len(signatures)] for i in range(number)])
            for name, timer in sides.items():
                called = count_calls(timer)
                assert called == number, f"{name} called {called} of {number} callbacks"
            times = in_turns(sides, rounds=20 if quick else 400, seconds=0.001)
            ours = Times.of(times.pop("fabric_lite"))
            figure = f"hook call, {number} callbacks, {label}"
            rows += [compare(figure, ours, peer, Times.of(theirs), BARS[peer]) for peer, theirs in times.items()]
    return rows


def make_sides(kinds: list[str]) -> dict[str, Timer]:
    """The same call of the same callbacks by each side. Each side has its own objects, of classes of their own."""
    passed = ", ".join(f"{name}={name}" for name in ARGUMENTS)
    ours, lightning = Fabric(callbacks=make_callbacks(kinds)), LightningFabric(callbacks=make_callbacks(kinds))
    return {
        "fabric_lite": Timer(f"call({HOOK!r}, {passed})", globals={"call": ours.call, **ARGUMENTS}),
        "Lightning Fabric": Timer(f"call({HOOK!r}, {passed})", globals={"call": lightning.call, **ARGUMENTS}),
        "pluggy": Timer(f"hook.{HOOK}({passed})", globals={"hook": make_manager(kinds).hook, **ARGUMENTS}),
        "direct calls": make_direct(kinds),
    }


def make_callbacks(kinds: list[str], mark: Any = lambda function: function) -> list[Any]:
    """One callback for each kind of signature; `mark` is applied to its method."""
    callbacks = []
    for kind in kinds:
        namespace: dict[str, Any] = {}
        exec(f"def {HOOK}({SIGNATURES[kind]}): pass", namespace)
        callbacks.append(type("Callback", (), {HOOK: mark(namespace[HOOK])})())
    return callbacks


def make_manager(kinds: list[str]) -> pluggy.PluginManager:
    """A plugin manager with these callbacks. A plugin cannot take ``**kwargs``, so it names all three arguments."""
    namespace: dict[str, Any] = {}
    exec(f"def {HOOK}({SIGNATURES['all three']}): pass", namespace)
    manager = pluggy.PluginManager("benchmark")
    manager.add_hookspecs(type("Specification", (), {HOOK: pluggy.HookspecMarker("benchmark")(namespace[HOOK])}))
    kinds = ["all three" if kind == "kwargs" else kind for kind in kinds]
    for plugin in make_callbacks(kinds, mark=pluggy.HookimplMarker("benchmark")):
        manager.register(plugin)
    return manager


def make_direct(kinds: list[str]) -> Timer:
    """What one would write without a bus: a loop, or line by line where each callback takes something else."""
    callbacks = make_callbacks(kinds)
    scope = {"callbacks": callbacks, **{f"c{i}": callback for i, callback in enumerate(callbacks)}, **ARGUMENTS}
    calls = [", ".join(f"{name}={name}" for name in TAKES.get(kind, ARGUMENTS)) for kind in kinds]
    if len(set(calls)) == 1:
        return Timer(f"for callback in callbacks: callback.{HOOK}({calls[0]})", globals=scope)
    return Timer("\n".join(f"c{i}.{HOOK}({passed})" for i, passed in enumerate(calls)), globals=scope)


def count_calls(timer: Timer) -> int:
    """How many callbacks a side calls: the proof that all sides do the same work."""
    called: Counter[str] = Counter()

    def count(frame: Any, event: str, _: object) -> None:
        # a method of a callback, not a function of the same name that leads to it
        called[frame.f_code.co_name] += event == "call" and frame.f_code.co_filename == "<string>"

    sys.setprofile(count)
    try:
        timer.timeit(1)
    finally:
        sys.setprofile(None)
    return called[HOOK]
