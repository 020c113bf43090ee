from __future__ import annotations

import torch

from fabric_lite.callbacks import series as module
from fabric_lite.callbacks.series import Series


def test_a_sequence_of_steps_and_values():
    series = Series()
    assert not series
    for step, value in ((1, 0.5), (2, torch.tensor(1.5)), (4, torch.tensor([2.5], requires_grad=True))):
        series.append(step, value)
    assert [*series] == [(1, 0.5), (2, 1.5), (4, 2.5)]
    assert (series.steps, series.values, series.last, series.latest(2)) == ([1, 2, 4], [0.5, 1.5, 2.5], 2.5, [1.5, 2.5])
    assert series.latest(0) == []
    assert repr(series) == "Series(1: 0.5, 2: 1.5, 4: 2.5)"
    assert [*Series.load(series.state_dict())] == [*series]


def test_values_of_another_device_wait_until_they_are_read(monkeypatch):
    fetched = []
    monkeypatch.setattr(module, "_numbers", lambda tensors: fetched.append(len(tensors)) or [1.0] * len(tensors))
    series = Series()
    for step in range(5):
        series.append(step, torch.zeros((), device="meta"))
    assert fetched == []
    assert series.values == [1.0] * 5
    assert series.last == 1.0
    series.append(5, 2.0)
    assert fetched == [5]
    for step in range(3000):
        series.append(step, torch.zeros((), device="meta"))
    assert fetched == [5, 1024, 1024]
    assert len(series) == 3006
    assert series.values == [1.0] * 5 + [2.0] + [1.0] * 3000


def test_numbers_of_one_kind_and_of_several():
    one = [torch.tensor(1.5), torch.tensor(2.5)]
    assert module._numbers(one) == [1.5, 2.5]
    assert module._numbers([*one, torch.tensor(3, dtype=torch.int64)]) == [1.5, 2.5, 3.0]
