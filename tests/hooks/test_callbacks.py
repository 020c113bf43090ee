"""The live collection: adding, removing, finding, saving, and the hooks that nothing calls."""

from __future__ import annotations

import pytest

from fabric_lite.hooks import Callbacks, Uncalled


class Counter:
    def __init__(self, n=0):
        self.n = n

    def on_end(self):
        self.n += 1

    def state_dict(self):
        return {"n": self.n} if self.n else {}

    def load_state_dict(self, state):
        self.n = state["n"]


class Special(Counter):
    pass


class Stateless:
    def on_end(self):
        pass


def test_the_list_of_the_caller_is_copied():
    given = [Counter()]
    callbacks = Callbacks(given)
    callbacks.add(Counter())
    given.append(Counter())
    assert (len(given), len(callbacks)) == (2, 2)


@pytest.mark.parametrize(
    ("given", "length"), [(None, 0), ([], 0), ((1, 2), 2), ([1], 1), ("one object", 1), ({1, 2}, 1)]
)
def test_one_object_or_a_list(given, length):
    assert len(Callbacks(given)) == length


def test_it_reads_like_a_list():
    first, second = Counter(), Counter()
    callbacks = Callbacks([first, second])
    assert list(callbacks) == [first, second]
    assert callbacks[0] is first
    assert callbacks[-1] is second
    assert first in callbacks
    assert Counter() not in callbacks
    assert repr(Callbacks([1, 2])) == "Callbacks([1, 2])"
    assert not Callbacks()


def test_membership_is_identity():
    class Equal:
        def __eq__(self, other):
            return True

        __hash__ = None

    callbacks = Callbacks([Equal()])
    assert Equal() not in callbacks
    assert callbacks.remove(Equal()) is None


class TestHandles:
    def test_remove(self):
        callbacks = Callbacks()
        counter = Counter()
        handle = callbacks.add(counter)
        callbacks.call("on_end")
        handle.remove()
        handle.remove()
        callbacks.call("on_end")
        assert counter.n == 1
        assert len(callbacks) == 0

    def test_with(self):
        callbacks = Callbacks()
        with callbacks.add(Counter()) as counter:
            callbacks.call("on_end")
        callbacks.call("on_end")
        assert counter.n == 1

    def test_with_an_exception(self):
        callbacks = Callbacks()
        with pytest.raises(ValueError, match="inside"), callbacks.add(Counter()):
            raise ValueError("inside")
        assert len(callbacks) == 0

    def test_append_is_what_a_list_calls_it(self):
        callbacks = Callbacks()
        callbacks.append(Counter())
        assert len(callbacks) == 1


class TestFunctions:
    def test_a_plain_function_is_a_callback(self):
        callbacks, got = Callbacks(), []
        handle = callbacks.on("on_end", lambda loss: got.append(loss))
        callbacks.call("on_end", loss=1, step=2)
        callbacks.call("on_other", loss=1)
        handle.remove()
        callbacks.call("on_end", loss=2)
        assert got == [1]

    def test_it_must_be_callable(self):
        with pytest.raises(TypeError, match=r"`callbacks.on\('on_end', ...\)` got 3, which is not callable"):
            Callbacks().on("on_end", 3)

    def test_it_is_shown(self):
        callbacks = Callbacks()
        callbacks.on("on_end", print)
        assert repr(callbacks[0]) == "<<built-in function print> on on_end>"


class TestRemoveReplaceGetSet:
    def test_remove(self):
        first, second = Counter(), Special()
        callbacks = Callbacks([first, second])
        assert callbacks.remove(Special) is second
        assert callbacks.remove(Special) is None
        assert callbacks.remove(first) is first
        assert callbacks.remove(first) is None
        assert list(callbacks) == []

    def test_remove_by_type_takes_the_first(self):
        first, second = Special(), Counter()
        callbacks = Callbacks([first, second])
        assert callbacks.remove(Counter) is first

    def test_a_class_that_is_a_callback_itself_is_removed_by_identity(self):
        callbacks = Callbacks([Counter(), Counter])
        assert callbacks.remove(Counter) is Counter

    def test_replace_keeps_the_place(self):
        first, second, new = Counter(1), Stateless(), Counter(2)
        callbacks = Callbacks([first, second])
        assert callbacks.replace(new) is first
        assert list(callbacks) == [new, second]

    def test_replace_adds_if_there_is_none_of_the_very_type(self):
        first, new = Counter(), Special()
        callbacks = Callbacks([first])
        assert callbacks.replace(new) is None
        assert list(callbacks) == [first, new]

    def test_get(self):
        first, second = Stateless(), Special()
        callbacks = Callbacks([first, second])
        assert callbacks.get(Counter) is second
        assert callbacks.get(dict) is None

    def test_set(self):
        callbacks = Callbacks([Counter()])
        new = Counter()
        callbacks.set([new])
        assert list(callbacks) == [new]
        callbacks.set(Callbacks([1, 2]))
        assert list(callbacks) == [1, 2]
        callbacks.set(None)
        assert list(callbacks) == []


class TestUncalled:
    def test_a_misspelt_hook_is_found(self):
        class Callback:
            on_number = 3

            def on_train_batch_ends(self):
                pass

            def on_something_else(self):
                pass

            def on_fit_end(self):
                pass

            def helper(self):
                pass

            @property
            def on_demand(self):
                raise AssertionError("a property is not run to find out")

        callback = Callback()
        callbacks = Callbacks([callback])
        callbacks.call("on_train_batch_end", loss=1)
        callbacks.call("on_fit_end")
        found = callbacks.uncalled()
        assert found == [
            Uncalled(callback, "on_something_else", None),
            Uncalled(callback, "on_train_batch_ends", "on_train_batch_end"),
        ]
        assert [str(each) for each in found] == [
            "`Callback.on_something_else` was never called",
            "`Callback.on_train_batch_ends` was never called (did you mean `on_train_batch_end`?)",
        ]

    def test_plain_functions_and_kinds_of_methods(self):
        class Callback:
            @staticmethod
            def on_static():
                pass

            @classmethod
            def on_class(cls):
                pass

        callbacks = Callbacks([Callback()])
        callbacks.on("on_function", print)
        assert [each.hook for each in callbacks.uncalled()] == ["on_class", "on_static", "on_function"]
        for hook in ("on_class", "on_static", "on_function"):
            callbacks.call(hook)
        assert callbacks.uncalled() == []


class TestState:
    def test_it_is_kept_per_instance(self):
        callbacks = Callbacks([Counter(1), Stateless(), Counter(2), Special(3)])
        state = callbacks.state_dict()
        assert state == {"Counter.0": {"n": 1}, "Counter.1": {"n": 2}, "Special.0": {"n": 3}}
        new = Callbacks([Counter(), Counter(), Special()])
        assert new.load_state_dict(state) == ([], [])
        assert [callback.n for callback in new] == [1, 2, 3]

    def test_a_callback_may_give_its_own_key(self):
        counter = Counter(1)
        counter.state_key = "mine"
        assert Callbacks([counter, Counter(2)]).state_dict() == {"mine": {"n": 1}, "Counter.1": {"n": 2}}

    def test_a_key_may_not_be_used_twice(self):
        first, second = Counter(1), Counter(2)
        first.state_key = second.state_key = "mine"
        with pytest.raises(ValueError, match="both have the state key 'mine'"):
            Callbacks([first, second]).state_dict()

    def test_an_empty_state_is_left_out(self):
        assert Callbacks([Counter(0)]).state_dict() == {}
        assert Callbacks([Counter(0)]).load_state_dict({}) == ([], [])

    def test_what_is_missing_and_left_over_is_reported_and_nothing_is_loaded(self):
        callbacks = Callbacks([Counter(1), Special(2)])
        with pytest.raises(
            RuntimeError,
            match=r"no state was saved for 'Special.0'; there is no callback for 'EMA.0'; pass .* strict=False",
        ):
            callbacks.load_state_dict({"Counter.0": {"n": 9}, "EMA.0": {}})
        assert [callback.n for callback in callbacks] == [1, 2]
        report = callbacks.load_state_dict({"Counter.0": {"n": 9}, "EMA.0": {}}, strict=False)
        assert (report.missing, report.unexpected) == (["Special.0"], ["EMA.0"])
        assert [callback.n for callback in callbacks] == [9, 2]

    def test_the_order_of_execution_does_not_matter(self):
        class Backwards:
            watches = False

            def arrange(self, callbacks):
                return callbacks[::-1]

            def unwrap(self, callback):
                return callback

        first, second = Counter(1), Counter(2)
        Counter.needs_guard = True
        try:
            callbacks = Callbacks([first, second], make_guard=Backwards)
        finally:
            del Counter.needs_guard
        assert list(callbacks) == [second, first]
        assert callbacks.state_dict() == {"Counter.0": {"n": 1}, "Counter.1": {"n": 2}}
