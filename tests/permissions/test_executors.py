from __future__ import annotations

import contextlib
import contextvars
import itertools
import multiprocessing
import pickle
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_lite.hooks import Call
from fabric_lite.permissions import (
    Callback,
    CallbackGraph,
    CancelStepException,
    NoConflict,
    Read,
    SerialExecutor,
    ThreadedExecutor,
    Write,
)

TIMEOUT = 20  # of barriers that are expected to open, so that a failing test ends


class Worker(Callback):
    def __init__(self, access=None, work=lambda: None, resolution=NotImplemented):
        self.access, self.work, self.resolution = access or {}, work, resolution

    def stateaccess(self):
        return self.access

    def resolveconflict(self, other):
        return self.resolution

    def on_step_end(self):
        self.work()


class Plain:
    def __init__(self, work=lambda: None):
        self.on_step_end = work


@pytest.fixture
def threaded():
    executor = ThreadedExecutor(max_workers=8)
    yield executor
    executor.close()


def run(executor, callbacks):
    graph = CallbackGraph(callbacks)
    executor.run([Call(callback, "on_step_end", callback.on_step_end, (), {}) for callback in graph.order], graph)


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fabric-lite-callback")]


def test_serial_runs_in_order_and_ends_at_an_exception():
    log = []

    def fail():
        raise ValueError("second")

    with pytest.raises(ValueError, match="second"):
        run(
            SerialExecutor(),
            [Worker(work=lambda: log.append(1)), Worker(work=fail), Worker(work=lambda: log.append(3))],
        )
    assert log == [1]


def test_independent_callbacks_overlap(threaded):
    # Each waits until all four are running: it only ends if they run at the same time.
    barrier = threading.Barrier(4, timeout=TIMEOUT)
    run(threaded, [Worker({f"part{number}": Write()}, barrier.wait) for number in range(4)])
    assert not barrier.broken


@pytest.mark.parametrize("between", ["edge", "path", "no conflict", "plain", "same"])
def test_dependent_callbacks_never_overlap(threaded, between):
    inside, most, log = [], [], []
    lock = threading.Lock()

    def work(name):
        def enter():
            with lock:
                inside.append(name)
                most.append(len(inside))
                log.append(name)
            for _ in range(100):
                threading.Event().wait(0)
            with lock:
                inside.remove(name)

        return enter

    first, second = {"a": Write()}, {"a": Read()}
    callbacks = {
        "edge": [Worker(first, work("one")), Worker(second, work("two"))],
        "path": [
            Worker(first, work("one")),
            Worker({"a": Read(), "b": Write()}, work("two")),
            Worker({"b": Read()}, work("three")),
        ],
        "no conflict": [Worker(first, work("one"), NoConflict()), Worker(first, work("two"), NoConflict())],
        "plain": [Worker({}, work("one")), Plain(work("two")), Worker({}, work("three"))],
        "same": [Worker({}, work("one"))] * 3,
    }[between]
    for _ in range(20):
        run(threaded, callbacks)
    assert set(most) == {1}
    assert log == log[: len(callbacks)] * 20


def test_a_path_through_a_callback_without_the_hook_connects(threaded):
    """Who has no such hook is not among the calls; the order that it stands for holds all the same."""
    log = []
    first = Worker({"a": Write()}, lambda: log.append("first"))
    middle = Worker({"a": Read(), "b": Write()})
    last = Worker({"b": Read()}, lambda: log.append("last"))
    graph = CallbackGraph([last, middle, first])
    calls = [
        Call(callback, "on_step_end", callback.on_step_end, (), {})
        for callback in graph.order
        if callback is not middle
    ]
    for _ in range(50):
        threaded.run(calls, graph)
    assert log == ["first", "last"] * 50


def test_plain_callbacks_run_alone_in_the_calling_thread(threaded):
    threads = []
    run(threaded, [Plain(lambda: threads.append(threading.current_thread())), Worker(), Worker()])
    assert threads == [threading.current_thread()]


class Stop(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("error", [ValueError, CancelStepException, Stop, KeyboardInterrupt])
def test_the_exception_is_the_first_in_serial_order(threaded, error):
    later_failed = threading.Event()

    def fail_late():
        assert later_failed.wait(TIMEOUT)
        raise error("first in order, last in time")

    def fail_early():
        later_failed.set()
        raise ZeroDivisionError("last in order, first in time")

    with pytest.raises(error, match="first in order"):
        run(threaded, [Worker({"a": Write()}, fail_late), Worker({"b": Write()}, fail_early)])


def test_after_a_failure_what_comes_later_is_not_begun_and_what_comes_before_is(threaded):
    log, failed = [], threading.Event()

    def fail():
        failed.set()
        raise ValueError("middle")

    def wait_for_the_failure():
        assert failed.wait(TIMEOUT)
        log.append("first")

    callbacks = [
        Worker({"a": Write()}, wait_for_the_failure),
        Worker({"a": Read()}, lambda: log.append("before, not begun when it failed")),
        Worker({"b": Write()}, fail),
        Worker({"b": Read()}, lambda: log.append("after")),
        Worker({"a": Read()}, lambda: log.append("after, and only the first was waited for")),
        Plain(lambda: log.append("plain")),
    ]
    with pytest.raises(ValueError, match="middle"):
        run(threaded, callbacks)
    assert log == ["first", "before, not begun when it failed"]


def test_an_interrupt_of_the_calling_thread_leaves_nothing_running():
    """Ctrl-C while it waits: what runs ends first, what has not begun does not begin, the interrupt is raised."""
    begun, release, log = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        assert release.wait(TIMEOUT)
        log.append("done")

    executor = ThreadedExecutor(max_workers=1)
    callbacks = [Worker({"a": Write()}, work), Worker({"b": Write()}, lambda: log.append("never"))]
    submit, calls = executor._submit, []

    def interrupting(call):
        calls.append(call)
        if len(calls) == 2:
            assert begun.wait(TIMEOUT)
            release.set()
            raise KeyboardInterrupt
        return submit(call)

    executor._submit = interrupting
    with pytest.raises(KeyboardInterrupt):
        run(executor, callbacks)
    assert log == ["done"]
    executor.close()


def test_context_variables_are_seen(threaded):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    seen = []
    barrier = threading.Barrier(2, timeout=TIMEOUT)
    run(threaded, [Worker({}, lambda: (barrier.wait(), seen.append(variable.get()))) for _ in range(2)])
    assert seen == ["set", "set"]


def test_the_context_is_made_in_the_calling_thread_and_entered_in_the_other():
    made, entered = [], []

    def context():
        made.append(threading.current_thread())

        @contextlib.contextmanager
        def manager():
            entered.append(threading.current_thread())
            yield

        return manager()

    executor = ThreadedExecutor(2, context)
    barrier = threading.Barrier(2, timeout=TIMEOUT)
    run(executor, [Worker({}, barrier.wait), Worker({}, barrier.wait)])
    executor.close()
    assert made == [threading.current_thread()] * 2
    assert len(set(entered)) == 2
    assert threading.current_thread() not in entered


def test_a_hook_called_from_a_thread_runs_serially_and_does_not_wait_forever():
    executor, log = ThreadedExecutor(max_workers=1), []
    inner = [Worker({}, lambda: log.append("inner")) for _ in range(2)]
    run(executor, [Worker({}, lambda: run(executor, inner)) for _ in range(2)])
    executor.close()
    assert log == ["inner"] * 4


def test_threads_start_when_needed_and_end_with_close_or_the_executor():
    before = ours()
    executor = ThreadedExecutor(2)
    run(executor, [Worker({"a": Write()}), Worker({"a": Read()})])
    assert ours() == before, "nothing to run at the same time"
    run(executor, [Worker(), Worker()])
    mine = [thread for thread in ours() if thread not in before]
    assert mine
    executor.close()
    executor.close()
    assert not any(thread.is_alive() for thread in mine)
    run(executor, [Worker(), Worker()])
    mine = [thread for thread in ours() if thread not in before]
    del executor
    for thread in mine:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in mine)


def test_an_executor_can_be_sent_to_another_process(threaded):
    run(threaded, [Worker(), Worker()])
    again = pickle.loads(pickle.dumps(threaded))
    assert (type(again), again.max_workers) == (ThreadedExecutor, 8)
    run(again, [Worker(), Worker()])
    again.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(threaded):
    run(threaded, [Worker(), Worker()])
    process = multiprocessing.get_context("fork").Process(target=run, args=(threaded, [Worker(), Worker()]))
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0


def test_at_least_one_thread():
    with pytest.raises(ValueError, match=r"^ThreadedExecutor got max_workers=0; it needs at least 1\.$"):
        ThreadedExecutor(0)


workers = st.none() | st.tuples(
    st.dictionaries(st.sampled_from(["a", "a.x", "b", "c"]), st.sampled_from([Read(), Write()]), max_size=2),
    st.booleans(),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(workers, max_size=6))
def test_effects_and_exceptions_are_those_of_serial_execution(declared):
    def outcome(executor):
        log, callbacks = [], []
        for number, worker in enumerate(declared):

            def work(number=number, fails=worker is not None and worker[1]):
                log.append(number)
                if fails:
                    raise RuntimeError(number)

            callbacks.append(Plain(work) if worker is None else Worker(worker[0], work, NoConflict()))
        try:
            run(executor, callbacks)
        except RuntimeError as error:
            return callbacks, log, error.args[0]
        return callbacks, log, None

    executor = ThreadedExecutor(4)
    callbacks, serial, failed = outcome(SerialExecutor())
    _, threaded, threaded_failed = outcome(executor)
    executor.close()
    assert threaded_failed == failed
    assert set(serial) <= set(threaded), "what ran before the failure in serial order runs"
    graph = CallbackGraph(callbacks)
    for earlier, later in itertools.combinations(serial, 2):
        if not graph.independent(callbacks[earlier], callbacks[later]):
            assert threaded.index(earlier) < threaded.index(later)
