from __future__ import annotations

import gc
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from timeit import Timer
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    spec = spec_from_file_location("timing", Path(__file__).parents[2] / "benchmarks" / "timing.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_side_has_as_many_turns_and_no_garbage_is_collected_in_them(timing: ModuleType) -> None:
    collecting = set()
    sides = {name: Timer(lambda: collecting.add(gc.isenabled())) for name in "abc"}

    times = timing.in_turns(sides, rounds=5, seconds=1e-5)

    assert {name: len(rounds) for name, rounds in times.items()} == {"a": 5, "b": 5, "c": 5}
    assert all(seconds > 0 for rounds in times.values() for seconds in rounds)
    assert collecting == {False}


def test_the_ratio_is_the_median_of_the_ratios_of_the_rounds(timing: ModuleType) -> None:
    ours = timing.Times.of([1.0, 20.0, 300.0])  # the machine became slower and slower
    its = timing.Times.of([2.0, 50.0, 600.0])

    row = timing.compare("figure", ours, "peer", its)

    assert row == ("figure", "20 s (1 s)", "peer", "50 s (2 s)", "0.5 (0.45–0.5)", "", None)


@pytest.mark.parametrize("limit, holds", [(0.6, True), (0.5, True), (0.4, False)])
def test_a_bar_for_the_ratio(timing: ModuleType, limit: float, holds: bool) -> None:
    ours, its = timing.Times.of([1.0, 1.0, 1.0]), timing.Times.of([2.0, 2.0, 2.0])

    row = timing.compare("figure", ours, "peer", its, timing.Bar("text", limit))

    assert (row.bar, row.holds) == ("text", holds)


@pytest.mark.parametrize("limit, holds", [(0.06, True), (0.04, False)])
def test_a_bar_for_our_time(timing: ModuleType, limit: float, holds: bool) -> None:
    ours, its = timing.Times.of([0.05, 0.05, 0.9]), timing.Times.of([2.0, 2.0, 2.0])

    row = timing.compare("figure", ours, "peer", its, timing.Bar("text", limit, of="ours"))

    assert row.holds is holds


@pytest.mark.parametrize(
    "seconds, shown",
    [
        (2.0, "2 s"),
        (0.0333, "33.3 ms"),
        (0.9996e-3, "1000 µs"),
        (1.234e-6, "1.23 µs"),
        (5e-10, "0.5 ns"),
        (-3e-6, "-3 µs"),
        (0.0, "0 ns"),
    ],
)
def test_a_time_has_three_digits_and_a_unit(timing: ModuleType, seconds: float, shown: str) -> None:
    assert timing.show_time(seconds) == shown
