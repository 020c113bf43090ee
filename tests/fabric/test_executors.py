"""Executors in a Fabric: callbacks that do not depend on each other at the same time, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_lite import (
    Callback,
    CancelStepException,
    Fabric,
    NoConflict,
    ProtectedException,
    Read,
    SerialExecutor,
    State,
    ThreadedExecutor,
    Write,
    throttle,
)
from fabric_lite.hooks import Call

HOOK = "on_step_end"
TIMEOUT = 20  # of barriers that are expected to open, so that a failing test ends


class Worker(Callback):
    def __init__(self, access: Any = None, work: Any = lambda learner: None) -> None:
        self.access, self.work = access or {}, work

    def stateaccess(self) -> Any:
        return self.access

    def resolveconflict(self, other: object) -> NoConflict:
        return NoConflict()

    def on_step_end(self, learner: Any = None) -> None:
        self.work(learner)


class Plain:
    def __init__(self, work: Any) -> None:
        self.work = work

    def on_step_end(self, learner: Any = None) -> None:
        self.work(learner)


@pytest.fixture
def threaded() -> Iterator[ThreadedExecutor]:
    executor = ThreadedExecutor(max_workers=4)
    yield executor
    executor.close()


def make(callbacks: Any, executor: Any, **arguments: Any) -> Fabric:
    return Fabric(accelerator="cpu", callbacks=callbacks, executor=executor, **arguments)


@pytest.mark.parametrize("guard", ["on", "off", "strict"])
def test_independent_callbacks_overlap(threaded: ThreadedExecutor, guard: Any) -> None:
    """Each waits until all four are running: it only ends if they run at the same time."""
    barrier = threading.Barrier(4, timeout=TIMEOUT)
    workers = [Worker({f"part{i}": Write()}, lambda learner: barrier.wait()) for i in range(3)]
    conditional = throttle(Worker({"other": Write()}, lambda learner: barrier.wait()), HOOK, freq=1)
    fabric = make([*workers, conditional], threaded, guard=guard)
    for _ in range(3):
        fabric.call(HOOK, learner=State())
    assert not barrier.broken


def test_dependent_ones_run_one_after_the_other(threaded: ThreadedExecutor) -> None:
    class Counter(Worker):
        def resolveconflict(self, other: object) -> Any:
            return NoConflict() if isinstance(other, Counter) else NotImplemented

    class Reader(Worker):
        def resolveconflict(self, other: object) -> Any:
            return NotImplemented

    def count(learner: Any) -> None:
        learner.count = learner.count + 1

    seen: list[int] = []
    reader = Reader({"count": Read()}, lambda learner: seen.append(learner.count))
    fabric = make([reader, *[Counter({"count": Write()}, count) for _ in range(5)]], threaded)
    learner = State(count=0)
    for _ in range(10):
        fabric.call(HOOK, learner=learner)
    assert seen == list(range(5, 51, 5))


def test_plain_callbacks_run_alone_at_their_place(threaded: ThreadedExecutor) -> None:
    log: list[Any] = []
    barriers = [threading.Barrier(2, timeout=TIMEOUT) for _ in range(2)]

    def work(place: int) -> Any:
        def wait(learner: Any) -> None:
            barriers[place].wait()
            log.append(place)

        return wait

    plain = Plain(lambda learner: log.append(threading.current_thread()))
    fabric = make([Worker({}, work(0)), Worker({}, work(0)), plain, Worker({}, work(1)), Worker({}, work(1))], threaded)
    fabric.call(HOOK, learner=State())
    assert log == [0, 0, threading.current_thread(), 1, 1]


def modes() -> dict[str, Any]:
    return {
        "nothing": [],
        "no_grad": [torch.no_grad],
        "inference_mode": [torch.inference_mode],
        "autocast": [lambda: torch.autocast("cpu", torch.bfloat16)],
        "autocast, without a cache": [lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False)],
        "gradients in no_grad": [torch.no_grad, torch.enable_grad],
        "all": [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    }


@pytest.mark.parametrize("mode", modes())
def test_the_modes_of_the_calling_thread_hold(threaded: ThreadedExecutor, mode: str) -> None:
    def look(learner: Any) -> None:
        barrier.wait()
        seen.append(state())

    def state() -> Any:
        product = torch.ones(1, 1, requires_grad=True) @ torch.ones(1, 1)
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
            (product.dtype, product.requires_grad, product.is_inference()),
        )

    seen: list[Any] = []
    barrier = threading.Barrier(2, timeout=TIMEOUT)
    fabric = make([Worker({}, look), Worker({}, look)], threaded)
    for contexts in (modes()[mode], []):  # and the threads do not keep them
        seen.clear()
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            expected = state()
            fabric.call(HOOK, learner=State())
        assert seen == [expected] * 2


def test_a_precision_of_the_fabric_holds(threaded: ThreadedExecutor) -> None:
    seen: list[Any] = []
    barrier = threading.Barrier(2, timeout=TIMEOUT)

    def multiply(learner: Any) -> None:
        barrier.wait()
        seen.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)

    fabric = make([Worker({}, multiply), Worker({}, multiply)], threaded, precision="bf16-mixed")
    with fabric.autocast():
        fabric.call(HOOK, learner=State())
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("error", [ValueError, CancelStepException, KeyboardInterrupt])
def test_the_exception_is_the_first_in_serial_order(threaded: ThreadedExecutor, error: type[BaseException]) -> None:
    later_failed = threading.Event()

    class Early(Worker):
        def on_step_end(self, learner: Any = None) -> None:
            assert later_failed.wait(TIMEOUT)
            raise error("first in order, last in time")

    class Late(Worker):
        def on_step_end(self, learner: Any = None) -> None:
            later_failed.set()
            raise ZeroDivisionError

    with pytest.raises(error, match="first in order") as caught:
        make([Early(), Late()], threaded).call(HOOK, learner=State())
    if hasattr(caught.value, "add_note"):
        assert caught.value.__notes__ == ["raised by the callback `Early` in its hook `on_step_end`"]


def test_a_guarded_one_is_guarded_in_its_thread(threaded: ThreadedExecutor) -> None:
    barrier = threading.Barrier(2, timeout=TIMEOUT)

    def overstep(learner: Any) -> None:
        barrier.wait()
        learner.loss  # noqa: B018

    with pytest.raises(
        ProtectedException, match=r"^Read access to State\.loss disallowed\. Worker read it in on_step_"
    ):
        make([Worker({}, overstep), Worker({}, overstep)], threaded).call(HOOK, learner=State(loss=1))


@pytest.mark.parametrize("make_executor", [SerialExecutor, ThreadedExecutor])
def test_init_comes_right_before_the_first_hook_as_without_an_executor(make_executor: Any) -> None:
    """What an earlier callback did in this hook can be seen there."""

    class Starting(Worker):
        def init(self, learner: Any) -> None:
            seen.append(learner.count if "count" in learner else None)

    def count(learner: Any) -> None:
        learner.count = 1

    def callbacks() -> list[Worker]:
        return [Worker({"count": Write()}, count), Starting({"count": Read()})]

    seen: list[Any] = []
    make(callbacks(), None).call(HOOK, learner=State())
    executor = make_executor()
    make(callbacks(), executor).call(HOOK, learner=State())
    if isinstance(executor, ThreadedExecutor):
        executor.close()
    assert seen == [1, 1]


def test_an_exception_in_init_has_a_note_and_comes_at_its_place(threaded: ThreadedExecutor) -> None:
    class Failing(Worker):
        def init(self, learner: Any) -> None:
            raise KeyError("mine")

    log: list[int] = []
    with pytest.raises(KeyError, match="mine") as caught:
        make([Plain(lambda learner: log.append(1)), Failing()], threaded).call(HOOK, learner=State())
    assert log == [1]
    if hasattr(caught.value, "add_note"):
        assert "the callback `Failing`" in "".join(getattr(caught.value, "__notes__", ()))


NAMES = st.sampled_from(["a", "b", "c"])
WORKERS = st.one_of(
    st.none(),
    st.tuples(st.dictionaries(NAMES, st.sampled_from([Read(), Write()]), max_size=2), st.integers(1, 9), st.booleans()),
)


@settings(max_examples=60)
@given(st.lists(WORKERS, max_size=6))
def test_the_results_are_those_of_serial_execution(declared: list[Any]) -> None:
    def outcome(executor: Any) -> Any:
        def work(access: Any, number: int, fails: bool) -> Any:
            def act(learner: Any) -> None:
                total = number + sum(learner[name] for name in access)
                for name, mode in access.items():
                    if mode == Write():
                        learner[name] = (3 * learner[name] + total) % 1009
                if fails:
                    raise RuntimeError(number)

            return act

        plain = {"a": Write(), "c": Write()}
        fabric = make(
            [
                Plain(work(plain, 1, False)) if worker is None else Worker(worker[0], work(*worker))
                for worker in declared
            ],
            executor,
        )
        learner = State(a=1, b=2, c=3)
        for _ in range(3):
            try:
                fabric.call(HOOK, learner=learner)
            except RuntimeError as error:
                return error.args, getattr(error, "__notes__", None)
        return dict(learner)

    executor = ThreadedExecutor(3)
    try:
        assert outcome(executor) == outcome(None) == outcome(SerialExecutor())
    finally:
        executor.close()


def test_an_executor_of_ones_own() -> None:
    class Own:
        def run(self, calls: Sequence[Call], graph: Any) -> None:
            for call in calls:
                seen.append((call.callback, call.hook))
                call()
            seen.append(graph.independent(calls[0].callback, calls[1].callback))
            seen.append(graph.independent(calls[0].callback, calls[2].callback))

    seen: list[Any] = []
    first, second, third = Worker({"a": Write()}), Worker({"b": Write()}), Worker({"a": Read()})
    ran: list[Any] = []
    for worker in (first, second, third):
        worker.work = lambda learner: ran.append(type(learner).__name__)
    fabric = make([first, second, third], Own())
    fabric.call(HOOK, learner=State())
    assert ran == ["Protected"] * 3
    assert seen == [(first, HOOK), (second, HOOK), (third, HOOK), True, False]
