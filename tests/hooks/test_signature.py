"""What a callable takes, for every kind of callable."""

from __future__ import annotations

import functools
import gc
import inspect
import weakref
from typing import Any

import pytest

from fabric_lite.hooks import accepted


class Callback:
    def method(self, loss, *, step=0):
        pass

    @staticmethod
    def static(loss, output):
        pass

    @classmethod
    def of_class(cls, loss):
        pass

    def positional_only(self, first, /, second):
        pass

    def greedy(self, loss, *args, **kwargs):
        pass

    def __call__(self, called):
        pass


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def plain(loss, output):
    pass


@pytest.mark.parametrize(
    ("function", "positional", "keywords", "everything"),
    [
        (plain, ("loss", "output"), {"loss", "output"}, False),
        (lambda: None, (), set(), False),
        (Callback().method, ("loss",), {"loss", "step"}, False),
        (Callback.method, ("self", "loss"), {"self", "loss", "step"}, False),
        (Callback().static, ("loss", "output"), {"loss", "output"}, False),
        (Callback().of_class, ("loss",), {"loss"}, False),
        (Callback().positional_only, ("first", "second"), {"second"}, False),
        (Callback().greedy, ("loss",), {"loss"}, True),
        (Callback(), ("called",), {"called"}, False),
        (functools.partial(plain, 1), ("output",), {"output"}, False),
        (functools.partial(plain, output=1), ("loss",), {"loss", "output"}, False),
        (logged(plain), ("loss", "output"), {"loss", "output"}, False),
        (dict, (), set(), True),  # has no signature that can be read
        ([].append, ("object",), set(), False),
    ],
)
def test_every_kind_of_callable(function: Any, positional: tuple[str, ...], keywords: set[str], everything: bool):
    found = accepted(function)
    assert (found.positional, found.keywords, found.everything) == (positional, keywords, everything)


def test_a_function_is_inspected_once(monkeypatch: pytest.MonkeyPatch):
    inspected = []
    signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda function: inspected.append(function) or signature(function))

    class Fresh:
        def on_end(self, loss):
            pass

    for _ in range(3):  # another instance, and another bound method each time: the same function
        accepted(Fresh().on_end)
    assert len(inspected) == 1
    accepted(Fresh.on_end)  # unbound, its first parameter is free
    assert len(inspected) == 2


def test_callables_that_cannot_be_remembered_are_read_all_the_same():
    class Slotted:
        __slots__ = ()
        __hash__ = None

        def __call__(self, loss):
            pass

    assert accepted(Slotted()).keywords == {"loss"}


def test_nothing_is_kept_alive():
    def function(loss):
        pass

    accepted(function)
    reference = weakref.ref(function)
    del function
    gc.collect()
    assert reference() is None


def test_names_are_selected_in_the_order_of_the_call():
    assert accepted(lambda a, b, c: None).select({"c": 1, "x": 2, "a": 3}) == ("c", "a")
    assert accepted(lambda **kwargs: None).select({"c": 1, "x": 2}) == ("c", "x")
