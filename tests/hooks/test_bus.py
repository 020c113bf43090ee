"""Calling a hook: who is called, in which order, with what, and what happens when it goes wrong."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import sys
import warnings
import weakref
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_lite.hooks import Callbacks


class Recorder:
    """Notes what its hooks got in a list that several of them may share."""

    def __init__(self, name="recorder", events=None):
        self.name = name
        self.events = [] if events is None else events


class TakesLoss(Recorder):
    def on_end(self, loss):
        self.events.append((self.name, {"loss": loss}))


class TakesAll(Recorder):
    def on_end(self, **kwargs):
        self.events.append((self.name, kwargs))


class TakesNothing(Recorder):
    def on_end(self):
        self.events.append((self.name, {}))


def test_order_filtering_and_return_value():
    events = []
    callbacks = Callbacks([TakesAll("a", events), TakesNothing("b", events), object(), TakesLoss("c", events)])
    assert callbacks.call("on_end", loss=1, step=2) is None
    assert events == [("a", {"loss": 1, "step": 2}), ("b", {}), ("c", {"loss": 1})]


def test_positional_arguments_are_all_passed():
    got = []

    class Callback:
        def on_batch(self, batch, index, /, loss=None, **kwargs):
            got.append((batch, index, loss, kwargs))

    callbacks = Callbacks(Callback())
    callbacks.call("on_batch", "batch", 3, loss=1, index=4)
    callbacks.call("on_batch", "batch", 3)
    assert got == [("batch", 3, 1, {"index": 4}), ("batch", 3, None, {})]
    with pytest.raises(TypeError, match="positional argument"):
        callbacks.call("on_batch", 1, 2, 3, 4)


def test_positional_only_parameters_are_not_filled_from_keywords():
    callbacks = Callbacks(Mock(spec=["on_end"], on_end=lambda loss, /: None))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'loss'"):
        callbacks.call("on_end", loss=1)


def test_parameters_may_have_the_names_of_ours():
    got = []

    class Callback:
        def on_end(this, hook_name, self, args, kwargs, bus, callback, f, i, v0):
            got.append((hook_name, self, args, kwargs, bus, callback, f, i, v0))

    Callbacks(Callback()).call("on_end", hook_name=1, self=2, args=3, kwargs=4, bus=5, callback=6, f=7, i=8, v0=9)
    assert got == [(1, 2, 3, 4, 5, 6, 7, 8, 9)]


def test_names_that_cannot_be_written_into_source():
    callback = TakesAll()
    setattr(callback, "on end", callback.on_end)
    callbacks = Callbacks(callback)
    callbacks.call("on end", loss=1)
    callbacks.call("on_end", **{"class": 1, "a b": 2})
    assert callback.events == [("recorder", {"loss": 1}), ("recorder", {"class": 1, "a b": 2})]


def test_every_kind_of_callable():
    got = []

    class Callback:
        @staticmethod
        def on_static(loss):
            got.append(("static", loss))

        @classmethod
        def on_class(cls, loss):
            got.append((cls.__name__, loss))

    class Called:
        def __call__(self, loss):
            got.append(("called", loss))

    callback = Callback()
    callback.on_partial = functools.partial(lambda name, loss: got.append((name, loss)), "partial")
    callback.on_object = Called()
    callback.on_builtin = got.extend
    callbacks = Callbacks(callback)
    for hook in ("on_static", "on_class", "on_partial", "on_object"):
        callbacks.call(hook, loss=1, step=2)
    callbacks.call("on_builtin", ["builtin"], step=2)
    assert got == [("static", 1), ("Callback", 1), ("partial", 1), ("called", 1), "builtin"]


def test_a_class_or_a_module_can_be_a_callback():
    class Callback:
        got = []

        @classmethod
        def on_end(cls, loss):
            cls.got.append(loss)

    Callbacks(Callback).call("on_end", loss=1, step=2)
    assert Callback.got == [1]
    Callbacks(gc).call("isenabled")


class TestReplacedAttributes:
    def test_a_mock_on_the_instance(self):
        callback = TakesLoss()
        callbacks = Callbacks(callback)
        callbacks.call("on_end", loss=1, step=2)
        callback.on_end = Mock()
        callbacks.call("on_end", loss=1, step=2)
        callback.on_end.assert_called_once_with(loss=1, step=2)
        del callback.on_end
        callbacks.call("on_end", loss=3, step=2)
        assert [kwargs for _, kwargs in callback.events] == [{"loss": 1}, {"loss": 3}]

    def test_a_method_patched_on_the_class(self, monkeypatch):
        class Callback(TakesLoss):
            pass

        callback = Callback()
        callbacks = Callbacks([callback, TakesNothing("after", callback.events)])
        callbacks.call("on_end", loss=1, step=2)
        monkeypatch.setattr(Callback, "on_end", lambda self, step: self.events.append(("patched", step)), raising=False)
        callbacks.call("on_end", loss=1, step=2)
        assert callback.events[-2:] == [("patched", 2), ("after", {})]

    def test_one_that_comes_later_and_one_that_goes(self):
        class Callback(Recorder):
            pass

        callback = Callback()
        callbacks = Callbacks(callback)
        callbacks.call("on_end", loss=1)
        Callback.on_end = lambda self, loss: self.events.append(loss)
        callbacks.call("on_end", loss=2)
        del Callback.on_end
        callbacks.call("on_end", loss=3)
        assert callback.events == [2]

    def test_one_that_is_replaced_while_the_hook_runs(self):
        events = []
        second = TakesLoss("second", events)

        class First:
            def on_end(self):
                second.on_end = lambda step: events.append(("replaced", step))

        callbacks = Callbacks([First(), second])
        callbacks.call("on_end", loss=1, step=2)
        assert events == [("replaced", 2)]

    def test_a_property_that_makes_a_new_function_each_time(self):
        got = []

        class Callback:
            @property
            def on_end(self):
                return lambda loss: got.append(loss)

        callbacks = Callbacks(Callback())
        for i in range(20):
            callbacks.call("on_end", loss=i, step=0)
        assert got == list(range(20))

    def test_an_attribute_that_does_not_know_how_to_compare(self):
        class Callable:
            got = []

            def __call__(self, loss):
                self.got.append(loss)

        callback = TakesLoss()
        callbacks = Callbacks(callback)
        callbacks.call("on_end", loss=1)
        callback.on_end = Callable()
        callbacks.call("on_end", loss=2, step=1)
        callbacks.call("on_end", loss=3, step=1)
        assert Callable.got == [2, 3]


def test_signatures_are_not_read_at_each_call(monkeypatch):
    class Callback(TakesLoss):
        def on_end(self, loss):
            pass

    inspected = []
    signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda f, **_: inspected.append(f) or signature(f))
    callbacks = Callbacks([Callback(), Callback()])
    for step in range(10):
        callbacks.call("on_end", loss=1)
        callbacks.call("on_end", loss=1, step=step)
        callbacks.call("on_end", 1)
    assert len(inspected) == 1


def test_something_that_is_not_callable_is_skipped_with_one_warning():
    callback, other = TakesLoss(), TakesLoss()
    callback.on_end = other.on_end = 3
    callbacks = Callbacks([callback, other])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for kwargs in ({"loss": 1}, {"loss": 1, "step": 2}, {"loss": 1}):
            callbacks.call("on_end", **kwargs)
    assert len(warned) == 2  # one for each callback
    assert str(warned[0].message).startswith("`TakesLoss.on_end` is 3, which is not callable: the hook `on_end` skips")
    callback.on_other = "x"
    with pytest.warns(UserWarning, match=r"`TakesLoss.on_other` is 'x'"):
        callbacks.call("on_other")
    callback.on_end = lambda loss: callback.events.append(loss)
    callbacks.call("on_end", loss=1)
    assert callback.events == [1]


def test_an_attribute_that_is_none_is_no_hook():
    callback = TakesLoss()
    callback.on_end = None
    Callbacks(callback).call("on_end", loss=1)
    assert callback.events == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")
class TestExceptions:
    class Broken:
        def on_end(self, loss):
            raise ValueError("no")

    @pytest.mark.parametrize("compiled", [True, False])
    def test_it_comes_as_it_was_raised_with_a_note(self, compiled):
        after = TakesAll()
        callbacks = Callbacks([self.Broken(), after])
        kwargs = {"loss": 1} if compiled else {"loss": 1, "a b": 2}
        for _ in range(2):
            with pytest.raises(ValueError, match="no") as caught:
                callbacks.call("on_end", **kwargs)
            assert caught.value.args == ("no",)
            assert caught.traceback[-1].name == "on_end"
            assert caught.value.__notes__ == ["raised by the callback `Broken` in its hook `on_end`"]
        assert after.events == []

    def test_the_note_names_the_right_callback(self):
        callbacks = Callbacks([TakesLoss(), object(), self.Broken(), TakesAll()])
        with pytest.raises(ValueError, match="no") as caught:
            callbacks.call("on_end", loss=1)
        assert caught.value.__notes__ == ["raised by the callback `Broken` in its hook `on_end`"]

    def test_a_missing_argument_is_an_error_of_the_callback(self):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'loss'") as caught:
            Callbacks(TakesLoss()).call("on_end", step=1)
        assert caught.value.__notes__ == ["raised by the callback `TakesLoss` in its hook `on_end`"]

    def test_nested_hooks_leave_a_note_each(self):
        class Outer:
            def on_outer(self):
                callbacks.call("on_end", loss=1)

        callbacks = Callbacks([Outer(), self.Broken()])
        with pytest.raises(ValueError, match="no") as caught:
            callbacks.call("on_outer")
        assert caught.value.__notes__ == [
            "raised by the callback `Broken` in its hook `on_end`",
            "raised by the callback `Outer` in its hook `on_outer`",
        ]

    def test_a_replaced_method_leaves_one_note(self):
        broken = self.Broken()
        callbacks = Callbacks([broken])
        with pytest.raises(ValueError, match="no"):
            callbacks.call("on_end", loss=1)
        broken.on_end = Mock(side_effect=KeyError("other"))
        with pytest.raises(KeyError) as caught:
            callbacks.call("on_end", loss=1)
        assert caught.value.__notes__ == ["raised by the callback `Broken` in its hook `on_end`"]


class TestChangesWhileAHookRuns:
    def test_the_running_call_finishes_with_the_list_it_began_with(self):
        events = []

        class Changer:
            def on_end(self, loss):
                callbacks.remove(last)
                callbacks.add(TakesLoss("new", events))

        last = TakesLoss("last", events)
        callbacks = Callbacks([Changer(), last])
        callbacks.call("on_end", loss=1)
        assert events == [("last", {"loss": 1})]
        callbacks.remove(Changer)
        callbacks.call("on_end", loss=2)
        assert events[1:] == [("new", {"loss": 2})]

    def test_a_callback_may_call_the_same_hook(self):
        depths = []

        class Nested:
            def on_end(self, depth):
                depths.append(depth)
                if depth:
                    callbacks.call("on_end", depth=depth - 1)

        callbacks = Callbacks(Nested())
        callbacks.call("on_end", depth=3)
        assert depths == [3, 2, 1, 0]


class Idle:
    """A guard that lets everything be."""

    watches = False
    graph = None

    def arrange(self, callbacks):
        return callbacks

    def adapt(self, callback, hook, parameter):
        return None

    def unwrap(self, callback):
        return callback


class TestExecutor:
    class Reversed:
        """Runs the calls of a hook backwards, to see that it is the one who runs them."""

        def __init__(self):
            self.asked = []

        def run(self, calls, graph):
            self.asked.append(calls)
            for call in reversed(calls):
                call()

    def test_it_gets_the_calls_ready_to_run(self):
        events, executor = [], self.Reversed()
        first, second = TakesLoss("first", events), TakesAll("second", events)
        callbacks = Callbacks([first, object(), second], make_guard=Idle, executor=executor)
        callbacks.call("on_end", loss=1, step=2)
        callbacks.call("on_nothing")
        assert events == [("second", {"loss": 1, "step": 2}), ("first", {"loss": 1})]
        asked = [[(call.callback, call.hook, call.args, call.kwargs) for call in calls] for calls in executor.asked]
        assert asked == [[(first, "on_end", (), {"loss": 1}), (second, "on_end", (), {"loss": 1, "step": 2})], []]

    def test_exceptions_have_their_note(self):
        callbacks = Callbacks(TestExceptions.Broken(), make_guard=Idle, executor=self.Reversed())
        with pytest.raises(ValueError, match="no") as caught:
            callbacks.call("on_end", loss=1)
        assert caught.value.__notes__ == ["raised by the callback `Broken` in its hook `on_end`"]


class Guarding:
    """Stands in for the permission layer: sorts callbacks by name, and marks what guarded ones get as learner."""

    watches = False
    graph = "the graph"

    def arrange(self, callbacks):
        if any(callback.name == "bad" for callback in callbacks):
            raise ValueError("cannot be arranged")
        return sorted(callbacks, key=lambda callback: callback.name)

    def adapt(self, callback, hook, parameter):
        if parameter == "learner" and callback.needs_guard:
            return lambda learner: ("protected", learner, hook)
        return None

    def around(self, callback, hook, call):
        callback.events.append(f"before {hook}")
        call()
        callback.events.append(f"after {hook}")

    def unwrap(self, callback):
        return callback


class Watching(Guarding):
    watches = True


class Plain(Recorder):
    needs_guard = False

    def on_end(self, learner, loss=None):
        self.events.append((self.name, learner, loss))


class Guarded(Plain):
    needs_guard = True


setattr(Plain, "on end", Plain.on_end)


class TestSeamsOfThePermissionLayer:
    @pytest.mark.parametrize("hook", ["on_end", "on end"])
    def test_an_argument_can_be_adapted_for_one_callback(self, hook):
        events = []
        callbacks = Callbacks([Plain("a", events), Guarded("b", events)], make_guard=Guarding)
        for _ in range(2):
            callbacks.call(hook, learner=1, loss=2)
            callbacks.call(hook, 1, 2)
            callbacks.call(hook, 1)
        protected = ("protected", 1, hook)
        once = [("a", 1, 2), ("b", protected, 2)]
        assert events == (once + once + [("a", 1, None), ("b", protected, None)]) * 2

    @pytest.mark.parametrize("executor", [None, TestExecutor.Reversed()])
    def test_a_call_can_be_watched(self, executor):
        guarded = Guarded()
        callbacks = Callbacks(guarded, make_guard=Watching, executor=executor)
        callbacks.call("on_end", learner=1, loss=2)
        assert guarded.events == ["before on_end", ("recorder", ("protected", 1, "on_end"), 2), "after on_end"]

    def test_an_order_that_cannot_be_arranged_changes_nothing(self):
        first, second = Guarded("b"), Guarded("a")
        callbacks = Callbacks([first, second], make_guard=Guarding)
        assert list(callbacks) == [second, first]
        for change in (lambda: callbacks.add(Plain("bad")), lambda: callbacks.set([Plain("bad")])):
            with pytest.raises(ValueError, match="cannot be arranged"):
                change()
            assert list(callbacks) == [second, first]
        callbacks.add(third := Plain("0"))
        assert list(callbacks) == [third, second, first]

    def test_plain_callbacks_need_no_guard(self):
        def make_guard():
            made.append(Guarding())
            return made[-1]

        made = []
        callbacks = Callbacks([Plain("b"), Plain("a")], make_guard=make_guard)
        callbacks.call("on_end", learner=1)
        assert made == []
        assert [callback.name for callback in callbacks] == ["b", "a"]
        callbacks.add(Guarded("c"))
        assert len(made) == 1
        assert [callback.name for callback in callbacks] == ["a", "b", "c"]

    def test_the_graph_is_that_of_the_guard(self):
        assert Callbacks([Plain()], make_guard=Guarding).graph == "the graph"

    def test_without_a_guard_a_guarded_callback_is_refused(self):
        with pytest.raises(TypeError, match=r"A guarded callback needs a guard. Pass `Callbacks\(..., make_guard="):
            Callbacks([Guarded()])


def test_changing_names_do_not_compile_without_end():
    callback = TakesAll()
    callbacks = Callbacks(callback)
    for i in range(30):
        callbacks.call("on_end", **{f"metric_{i}": i})
    assert [kwargs for _, kwargs in callback.events] == [{f"metric_{i}": i} for i in range(30)]
    assert len(callbacks._shapes["on_end"]) <= 8


def test_it_can_be_copied_and_pickled_after_calls():
    callbacks = Callbacks([TakesLoss()])
    callbacks.call("on_end", loss=1)
    for other in (pickle.loads(pickle.dumps(callbacks)), copy.deepcopy(callbacks)):
        other.call("on_end", loss=2)
        assert [kwargs for _, kwargs in other[0].events] == [{"loss": 1}, {"loss": 2}]
    assert len(callbacks[0].events) == 1


def test_callbacks_are_freed_at_once():
    gc.disable()
    try:
        callback = TakesLoss()
        reference = weakref.ref(callback)
        callbacks = Callbacks(callback)
        callbacks.call("on_end", loss=1)
        callbacks.call("on_end", 1)
        del callback, callbacks
        assert reference() is None
    finally:
        gc.enable()


names = st.sampled_from(["loss", "output", "batch", "step", "epoch"])


@st.composite
def signatures(draw):
    """A function with a random signature that returns what it got."""
    parameters = draw(st.lists(names, unique=True, max_size=4))
    kinds = sorted(draw(st.lists(st.sampled_from([0, 1, 3]), min_size=len(parameters), max_size=len(parameters))))
    parts, slash, star = [], False, False
    for name, kind in zip(parameters, kinds, strict=True):
        if kind != 0 and not slash and any(k == 0 for k in kinds):
            parts.append("/")
            slash = True
        if kind == 3 and not star:
            parts.append("*")
            star = True
        parts.append(f"{name}=None")
    if not slash and any(k == 0 for k in kinds):
        parts.append("/")
    if draw(st.booleans()):
        parts.append("**extra")
    namespace = {}
    exec(f"def on_end(self, {', '.join(parts)}): return locals()", namespace)
    return namespace["on_end"]


@given(
    st.lists(signatures(), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 1), st.lists(names, unique=True)), min_size=1, max_size=4),
)
def test_written_out_and_one_by_one_are_the_same(functions, calls):
    def run(executor):
        got = []

        def recorded(function):
            @functools.wraps(function)
            def on_end(self, *args, **kwargs):
                values = function(self, *args, **kwargs)
                got.append({name: value for name, value in values.items() if name != "self"})

            return on_end

        callbacks = Callbacks(
            [type("Callback", (), {"on_end": recorded(function)})() for function in functions],
            make_guard=Idle,
            executor=executor,
        )
        for number, keywords in calls:
            try:
                callbacks.call("on_end", *range(number), **{name: name for name in keywords})
            except TypeError as error:
                got.append(str(error))
        return got

    class Serial:
        def run(self, calls, graph):
            for call in calls:
                call()

    assert run(None) == run(Serial())


@pytest.mark.parametrize("executor", [None, TestExecutor.Reversed()])
@pytest.mark.parametrize("guard", [Guarding, Watching])
def test_keywords_may_have_the_names_of_ours_everywhere(guard, executor):
    class Greedy(Guarded):
        def on_end(self, learner, **kwargs):
            self.events.append((learner, kwargs))

    greedy = Greedy()
    ours = "function by_name by_place guard callback hook context call args kwargs phase"
    kwargs = dict.fromkeys(ours.split(), 1)
    Callbacks(greedy, make_guard=guard, executor=executor).call("on_end", learner=1, **kwargs)
    assert (("protected", 1, "on_end"), kwargs) in greedy.events
