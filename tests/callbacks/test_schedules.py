from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.callbacks.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Polynomial,
    Schedule,
    onecycle,
    sequence,
)

TIMES = st.floats(0, 1)
VALUES = st.floats(1e-6, 1e3)


@given(VALUES, VALUES, TIMES, st.floats(0.1, 5))
def test_closed_forms(a: float, b: float, t: float, power: float) -> None:
    def near(value: float) -> object:
        return pytest.approx(value, rel=1e-9, abs=1e-12)

    assert Constant(a)(t) == a
    assert Linear(a, b)(t) == near(a + (b - a) * t)
    assert Cosine(a, b)(t) == near(b + (a - b) * (1 + math.cos(math.pi * t)) / 2)
    assert Exponential(a, b)(t) == near(math.exp(math.log(a) + t * (math.log(b) - math.log(a))))
    assert Polynomial(a, b, power)(t) == near((a - b) * (1 - t) ** power + b)


@pytest.mark.parametrize("make", [Linear, Cosine, Exponential, Polynomial])
def test_ends_are_met_and_held(make: Callable[[float, float], Schedule]) -> None:
    schedule = make(0.3, 0.01).over(7)
    assert schedule.length == 7
    assert schedule(0) == schedule(-1) == pytest.approx(0.3)
    assert schedule(7) == schedule(100) == pytest.approx(0.01)
    assert schedule(3.5) == pytest.approx(make(0.3, 0.01)(0.5))


def test_a_sequence() -> None:
    schedule = Linear(0.0, 1.0).over(2).then(Constant(1.0).over(3)).then(Linear(1.0, 0.0).over(5))
    assert schedule.length == 10
    assert [schedule(t) for t in (0, 1, 2, 4, 5, 7.5, 10, 11)] == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0, 0])
    pairs = sequence((Linear(0.0, 1.0), 2), (Constant(1.0), 3), (Linear(1.0, 0.0), 5))
    assert [pairs(t / 10) for t in range(120)] == [schedule(t / 10) for t in range(120)]


def test_at_a_joint_the_later_piece_counts() -> None:
    schedule = sequence((Constant(1.0), 1), (Constant(2.0), 1), (Constant(3.0), 1))
    assert [schedule(t) for t in (0.999, 1, 1.999, 2, 3)] == [1, 2, 2, 3, 3]


def test_a_sequence_stretches_as_a_whole() -> None:
    schedule = sequence((Constant(1.0), 1), (Constant(2.0), 3)).over(8)
    assert [schedule(t) for t in (0, 1.9, 2, 8)] == [1, 1, 2, 2]


@given(st.floats(0, 10), st.floats(0.1, 0.9))
def test_onecycle_is_two_half_cosines(t: float, pct: float) -> None:
    peak, top, start, end = 10 * pct, 0.1, 0.1 / 25, 0.1 / 1e5
    if t < peak:
        expected = start + (top - start) * (1 - math.cos(math.pi * t / peak)) / 2
    else:
        expected = end + (top - end) * (1 + math.cos(math.pi * (t - peak) / (10 - peak))) / 2
    assert onecycle(10, top, pct_start=pct)(t) == pytest.approx(expected, rel=1e-6)


def test_onecycle_with_given_ends() -> None:
    schedule = onecycle(8, 1.0, start_val=0.5, end_val=0.25)
    assert schedule.length == 8
    assert [schedule(t) for t in (0, 1, 2, 5, 8)] == pytest.approx([0.5, 0.75, 1.0, 0.625, 0.25])


def test_onecycle_is_that_of_torch() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torch_one = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.1,
        total_steps=101,
        pct_start=0.25,
        div_factor=25,
        final_div_factor=4e3,
        cycle_momentum=False,
    )
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_one.step() if len(rates) < 101 else None
    # torch counts from 0 to 100, and puts the top at step 0.25 * 101 - 1
    ours = onecycle(100, 0.1, pct_start=0.2425, divfinal=1e5)
    assert rates == pytest.approx([ours(t) for t in range(101)], rel=1e-9)


def test_schedules_compare_and_pickle() -> None:
    assert onecycle(8, 1.0) == onecycle(8, 1.0) != onecycle(9, 1.0)
    assert pickle.loads(pickle.dumps(onecycle(8, 1.0))) == onecycle(8, 1.0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Linear(0, 1).over(0), r"Linear\(length=0, start=0, end=1\) lasts 0; the length of a schedule is"),
        (lambda: Constant(1).over(math.inf), "lasts inf; the length of a schedule is positive and finite"),
        (lambda: Exponential(1, 0), "no factor leads there. Both values must be positive, or both negative"),
        (lambda: sequence(), r"`sequence\(\)` got no schedules; pass at least one"),
        (
            lambda: onecycle(10, 0.1, pct_start=1.0),
            r"`onecycle\(pct_start=1.0\)`: it is the part of the time that rises",
        ),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_of_ones_own() -> None:
    class Square(Schedule):
        def at(self, fraction: float) -> float:
            return fraction**2

    assert Square(length=4).then(Constant(1.0))(2) == 0.25
    with pytest.raises(NotImplementedError, match=r"`Schedule` does not say how it goes\. Give it a method `at"):
        Schedule()(0.5)
