"""Events are strings: the names of hooks."""

from __future__ import annotations

import json
import pickle

import pytest

from fabric_lite.events import Event

NAMES = [
    "on_fit_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_loss_begin",
    "on_backward_begin",
    "on_backward_end",
    "on_step_end",
    "on_epoch_end",
    "on_fit_end",
    "on_exception",
]


def test_the_events_are_these_in_this_order() -> None:
    assert [event.value for event in Event] == NAMES


@pytest.mark.parametrize("event", Event)
def test_an_event_is_its_name(event: Event) -> None:
    assert isinstance(event, str)
    assert event == event.value == str(event) == f"{event}" == json.loads(json.dumps(event))
    assert {event.value: 1}[event] == 1
    assert Event(event.value) is event
    assert pickle.loads(pickle.dumps(event)) is event
