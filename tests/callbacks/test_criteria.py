from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.callbacks.criteria import (
    GL,
    PQ,
    Criterion,
    InvalidValue,
    Never,
    NumberLimit,
    NumberSinceBest,
    Patience,
    Threshold,
    TimeLimit,
    Warmup,
)

LOSSES = [10.0, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 16]
SOME = st.lists(st.floats(0.1, 100), min_size=1, max_size=30)


def stopping_time(criterion: Criterion, losses: Sequence[float], training: Sequence[bool] | None = None) -> int:
    """After how many losses on held-out data it stops; 0 for never."""
    count = 0
    for index, loss in enumerate(losses):
        is_training = training is not None and training[index]
        count += not is_training
        if criterion.update(loss, is_training):
            return count
    return 0


def first(condition: Callable[[int], bool], n: int) -> int:
    """The first t of 1, 2, … n for which a definition holds; 0 for none."""
    return next((t for t in range(1, n + 1) if condition(t)), 0)


# The stopping times that EarlyStopping.jl has for the same losses.
@pytest.mark.parametrize(
    "criterion, expected",
    [
        (Never(), 0),
        (InvalidValue(), 0),
        (GL(alpha=12), 3),
        (GL(alpha=20), 4),
        (GL(alpha=40), 6),
        (GL(alpha=90), 11),
        (GL(alpha=110), 12),
        (GL(alpha=1000), 0),
        (Patience(6), 0),
        (Patience(5), 12),
        (Patience(4), 6),
        (Patience(3), 5),
        (Patience(2), 4),
        (Patience(1), 3),
        (NumberSinceBest(6), 8),
        (NumberSinceBest(5), 7),
        (NumberSinceBest(1), 3),
        (NumberLimit(7), 7),
        (Threshold(8.5), 2),
        (Threshold(8.0), 0),
        (Warmup(NumberLimit(1), 4), 5),
        (Patience(4) | NumberLimit(3), 3),
        (Patience(2) & NumberLimit(6), 6),
        (Patience(2) & NumberLimit(7), 9),
    ],
    ids=repr,
)
def test_stopping_times(criterion: Criterion, expected: int) -> None:
    assert stopping_time(criterion, LOSSES) == expected
    assert bool(criterion.message) == bool(expected)


def test_number_since_best_begins_anew_with_a_new_best() -> None:
    losses = [10, 9, 8, 9, 10, 7, 10, 10, 10, 10]
    assert stopping_time(NumberSinceBest(2), losses) == 5
    assert stopping_time(NumberSinceBest(3), losses) == 9


# Two or three losses on the training data, then one on held-out data; again the stopping times of EarlyStopping.jl.
ROUNDS = [
    (9.5, 9.3, 10), (9.3, 9.1, 8.9, 8), (8.3, 8.4, 9), (9.9, 9.5, 10), (10.6, 10.4, 11), (8888, 11.8, 11.7, 12),
    (11.6, 11.4, 12), (12.2, 12.1, 13), (14.5, 14.1, 14), (13.9, 13.7, 15), (12.5, 12.3, 16), (11.2, 11.0, 17),
    (10.5, 10.3, 16),
]  # fmt: skip


@pytest.mark.parametrize("alpha, expected", [(2.0, 3), (3.8, 5), (11.6, 6), (15.1, 8), (15.3, 0)])
def test_pq(alpha: float, expected: int) -> None:
    losses = [loss for group in ROUNDS for loss in group]
    training = [index < len(group) - 1 for group in ROUNDS for index in range(len(group))]
    assert stopping_time(PQ(alpha, k=2), losses, training) == expected


def test_pq_without_progress_stops_and_without_enough_losses_waits() -> None:
    criterion = PQ(alpha=10, k=2)
    assert not criterion.update(10.0, training=True)
    assert not criterion.update(50.0)
    assert not criterion.update(10.0, training=True)
    assert criterion.update(10.0)
    assert criterion.message == "PQ(10, k=2): no progress in the last 2 losses on the training data"


@given(SOME, st.integers(1, 5))
def test_patience_is_ups_of_the_paper(losses: list[float], s: int) -> None:
    def up(t: int) -> bool:  # UP_s: s strips in a row with an increase
        return t > s and all(a < b for a, b in pairwise(losses[t - s - 1 : t]))

    assert stopping_time(Patience(s), losses) == first(up, len(losses))


@given(SOME, st.floats(0.1, 200))
def test_gl_is_that_of_the_paper(losses: list[float], alpha: float) -> None:
    def exceeds(t: int) -> bool:
        best = min(losses[:t])
        return 100 * ((losses[t - 1] - best) / best) > alpha

    assert stopping_time(GL(alpha), losses) == first(exceeds, len(losses))


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=20), st.integers(2, 5))
def test_pq_is_that_of_the_paper(pairs: list[tuple[float, float]], k: int) -> None:
    def exceeds(t: int) -> bool:
        if t < k:
            return False
        train, held_out = [pair[0] for pair in pairs[t - k : t]], [pair[1] for pair in pairs[:t]]
        progress = 1000 * ((sum(train) / k - min(train)) / min(train))
        gl = 100 * ((held_out[-1] - min(held_out)) / min(held_out))
        return not progress > 2.0**-52 or gl / progress > 0.75

    losses = [loss for pair in pairs for loss in pair]
    assert stopping_time(PQ(k=k), losses, [True, False] * len(pairs)) == first(exceeds, len(pairs))


@given(SOME, st.integers(1, 4), st.floats(1, 100))
def test_any_and_all(losses: list[float], n: int, alpha: float) -> None:
    def one() -> Criterion:
        return Patience(n)

    def other() -> Criterion:
        return GL(alpha)

    alone = [stopping_time(one(), losses), stopping_time(other(), losses)]
    assert stopping_time(one() | other(), losses) == min(filter(None, alone), default=0)
    both = stopping_time(one() & other(), losses)
    assert both == 0 or both >= max(alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_invalid_value_minds_training_losses_too(bad: float) -> None:
    assert stopping_time(InvalidValue(), [1.0, bad]) == 2
    criterion = InvalidValue()
    assert criterion.update(bad, training=True)
    assert criterion.message == f"InvalidValue(): there was a value of {bad}"


def test_a_best_value_of_zero_or_nan() -> None:
    assert stopping_time(GL(), [0.0, 0.0, 1.0]) == 3
    assert stopping_time(GL(), [math.nan, 1.0, 2.0]) == 3
    assert stopping_time(GL(), [-2.0, -2.0, -1.0]) == 3
    assert stopping_time(NumberSinceBest(2), [1.0, math.nan, math.nan]) == 3


def test_time_limit_counts_from_the_start_and_not_while_interrupted() -> None:
    now = 100.0
    criterion = TimeLimit(10, clock=lambda: now)
    assert criterion.elapsed is None
    criterion.start()
    now = 104.0
    criterion.start()
    assert not criterion.update(1.0)
    state = criterion.state_dict()
    now = 1000.0
    resumed = TimeLimit(10, clock=lambda: now)
    resumed.load_state_dict(state)
    now = 1006.0
    assert not resumed.update(1.0)
    now = 1006.5
    assert resumed.update(1.0, training=True)
    assert resumed.message == "TimeLimit(10): 10.5 seconds have passed"


def test_combinations_read_as_they_are_written() -> None:
    combined = Patience(2) | InvalidValue() | (GL(5.0) & Warmup(NumberSinceBest(3), 2))
    assert repr(combined) == "Patience(2) | InvalidValue() | (GL(5.0) & Warmup(NumberSinceBest(3), 2))"
    with pytest.raises(TypeError, match="unsupported operand"):
        Patience(2) | 3


def test_the_message_says_who_stopped_and_why() -> None:
    criterion = Patience(2) | NumberLimit(9) | Threshold(0.5)
    assert not criterion.update(0.6)
    assert criterion.message == ""
    criterion.update(0.7)
    assert criterion.update(0.8)
    assert criterion.message == "Patience(2): 2 increases in a row, up to 0.8"


def test_warmup_keeps_training_losses_back_without_counting_them() -> None:
    criterion = Warmup(InvalidValue(), 2)
    assert [criterion.update(*loss) for loss in [(math.nan, True), (math.nan,), (math.inf, True), (1.0,)]] == [
        False
    ] * 4
    assert criterion.update(math.nan, training=True)


CRITERIA = [
    lambda: Patience(2) | GL(5.0),
    lambda: Warmup(NumberSinceBest(3), 2) & NumberLimit(6),
    lambda: PQ(1.0, k=2) | InvalidValue(),
    lambda: Threshold(0.2) | Never(),
]


@pytest.mark.parametrize("make", CRITERIA)
@given(losses=SOME, cut=st.integers(0, 30))
def test_state_goes_on_where_it_was(make: Callable[[], Criterion], losses: list[float], cut: int) -> None:
    whole, part = make(), make()
    for index, loss in enumerate(losses):
        if index == cut:
            state = part.state_dict()
            kept = copy.deepcopy(state)
            part.update(loss)
            assert state == kept
            part = make()
            part.load_state_dict(state)
        is_training = index % 3 == 0
        assert part.update(loss, is_training) == whole.update(loss, is_training)
        assert part.message == whole.message


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Patience(0), r"`Patience\(n=0\)` would stop at once; pass a positive number"),
        (lambda: NumberLimit(-1), r"`NumberLimit\(n=-1\)` would stop at once"),
        (lambda: NumberSinceBest(0), r"`NumberSinceBest\(n=0\)` would stop at once"),
        (lambda: GL(0), r"`GL\(alpha=0\)` would stop at once"),
        (lambda: PQ(0), r"`PQ\(alpha=0\)` would stop at once"),
        (lambda: PQ(k=1), r"`PQ\(k=1\)` cannot see progress: it takes at least 2 losses"),
        (lambda: TimeLimit(0), r"`TimeLimit\(seconds=0\)` would stop at once"),
        (lambda: Warmup(Never(), 0), r"`Warmup\(n=0\)` would stop at once"),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], Criterion], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_criterion_of_ones_own() -> None:
    class Even(Criterion):
        def seen(self, loss: float) -> str:
            return "it is even" if loss % 2 == 0 else ""

        def __repr__(self) -> str:
            return "Even()"

    criterion = Even() | Never()
    assert stopping_time(criterion, [1, 3, 4]) == 3
    assert criterion.message == "Even(): it is even"
    with pytest.raises(NotImplementedError, match="`Criterion` does not say when to stop"):
        Criterion().update(1.0)


def test_state_of_other_criteria_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The saved state has 3 criteria, Patience\(1\) \| Never\(\) has 2"):
        (Patience(1) | Never()).load_state_dict((Patience(1) | Never() | Never()).state_dict())
