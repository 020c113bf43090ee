"""What guarded callbacks cost, and what their declarations gain."""

from __future__ import annotations

import select
import socket
from graphlib import TopologicalSorter
from timeit import Timer
from typing import Any

from hook_call import UNIFORM, make_callbacks, make_sides
from timing import Bar, Row, Times, compare, in_turns

from fabric_lite import Callback, CallbackGraph, Fabric, NoConflict, Read, State, ThreadedExecutor, Write

SIZES = (100, 200, 400, 800)
ALL_OVERLAP = (100, 200, 400)
WAIT = 0.005


def measure(quick: bool) -> list[Row]:
    """Compare guarded callbacks with plain ones, graphs with smaller graphs, and threads with none."""
    return [*guarded_call(quick), *plain_call(quick), *graph(quick), *threads(quick)]


class Declared(Callback):
    """A guarded callback with a declaration that is given."""

    def __init__(self, access: dict[str, Read | Write]) -> None:
        self.access = access

    def stateaccess(self) -> dict[str, Read | Write]:
        return self.access


class Learner:
    """What a loop of one's own passes as ``learner``."""

    def __init__(self) -> None:
        self.step = State(loss=0.5)


# -- calls ---------------------------------------------------------------------------------------------------------


class Reader:
    """A plain callback that reads the loss."""

    seen: Any = None

    def on_step_end(self, learner: Any) -> None:
        self.seen = learner.step.loss


class GuardedReader(Declared):
    """The same, guarded."""

    seen: Any = None

    def on_step_end(self, learner: Any) -> None:
        self.seen = learner.step.loss


def guarded_call(quick: bool) -> list[Row]:
    """What the guard adds to a call, in proportion to Lightning's call of three callbacks."""
    learner, plain, guarded = Learner(), Reader(), GuardedReader({"step.loss": Read()})
    sides = {"plain": step_end(plain, learner), "guarded": step_end(guarded, learner)}
    for callback, timer in zip((plain, guarded), sides.values(), strict=True):
        timer.timeit(1)
        assert callback.seen == 0.5, f"{callback} did not read the loss"
    sides["Lightning Fabric"] = make_sides([*UNIFORM * 3])["Lightning Fabric"]
    times = in_turns(sides, rounds=20 if quick else 600, seconds=0.001)
    added = [mine - its for mine, its in zip(times["guarded"], times["plain"], strict=True)]
    ours = Times(added, min(times["guarded"]) - min(times["plain"]))
    figure = f"guarded callback: added to plain {Times.of(times['plain'])}"
    lightning = Times.of(times["Lightning Fabric"])
    return [compare(figure, ours, "Lightning Fabric, call of 3", lightning, Bar("≤ 1.5/23", 1.5 / 23))]


def step_end(callback: Any, learner: Learner) -> Timer:
    """One call of the hook of one callback."""
    fabric = Fabric(callbacks=callback)
    return Timer('call("on_step_end", learner=learner)', globals={"call": fabric.call, "learner": learner})


def plain_call(quick: bool) -> list[Row]:
    """Plain callbacks beside a guarded one that does not have the hook, and beside a plain one that has not either."""
    sides = {"guarded": plain_end(GuardedReader({"step.loss": Read()})), "plain": plain_end(Reader())}
    times = in_turns(sides, rounds=20 if quick else 400, seconds=0.001)
    figure = "3 plain callbacks, a guarded one beside them"
    ours, theirs = Times.of(times["guarded"]), Times.of(times["plain"])
    return [compare(figure, ours, "a plain one beside them", theirs, Bar("≤ 1.1", 1.1))]


def plain_end(beside: Any) -> Timer:
    """A call of a hook of three plain callbacks, in a collection that holds another one, too."""
    fabric = Fabric(callbacks=[*make_callbacks([*UNIFORM * 3]), beside])
    passed = "loss=1, output=2, batch=3"
    return Timer(f"call('on_train_batch_end', {passed})", globals={"call": fabric.call})


# -- the graph -----------------------------------------------------------------------------------------------------


class Shared(Declared):
    """One of many that write the same, in any order."""

    def resolveconflict(self, other: object) -> NoConflict:
        return NoConflict()


def chain(size: int) -> list[Any]:
    """Callbacks each of which reads what the one before it creates; all read the loss, which the first writes."""
    first = Declared({"step.loss": Write(), "cbstate.x0": Write()})
    return [first] + [
        Declared({"step.loss": Read(), f"cbstate.x{i - 1}": Read(), f"cbstate.x{i}": Write()}) for i in range(1, size)
    ]


def graph(quick: bool) -> list[Row]:
    """How long a graph takes, and that it grows with the number of overlaps."""
    rows = []
    shapes = {f"a chain of {size}": chain(size) for size in SIZES}
    shapes |= {f"all {size} overlapping": all_overlapping(size) for size in ALL_OVERLAP}
    overlaps = {name: count_overlaps(callbacks) for name, callbacks in shapes.items()}
    sides = {name: Timer(lambda given=callbacks: CallbackGraph(given)) for name, callbacks in shapes.items()}
    edges = CallbackGraph(shapes["a chain of 200"]).pairs
    sides["graphlib, the edges alone"] = Timer(lambda: sort(edges))
    times = in_turns(sides, rounds=3 if quick else 40, seconds=0.002)
    for name, peer, bar in (
        ("a chain of 200", "graphlib, the edges alone", Bar("< 50 ms", 0.05, of="ours")),
        ("all 200 overlapping", "a chain of 200", None),
    ):
        rows.append(compare(f"graph, {name}", Times.of(times[name]), peer, Times.of(times[peer]), bar))
    for form, sizes in (("a chain of {}", SIZES), ("all {} overlapping", ALL_OVERLAP)):
        names = [form.format(size) for size in sizes]
        each = [Times.of([taken / overlaps[name] for taken in times[name]]) for name in names]
        for name, ours in zip(names[1:], each[1:], strict=True):
            rows.append(compare(f"graph, {name}: per overlap", ours, names[0], each[0], Bar("≤ 1.5", 1.5)))
    return rows


def all_overlapping(size: int) -> list[Any]:
    """Callbacks that all write the same."""
    return [Shared({"step.loss": Write()}) for _ in range(size)]


def count_overlaps(callbacks: list[Any]) -> int:
    """How many pairs of callbacks touch the same state, at least one of them writing."""
    declared = [callback.stateaccess() for callback in callbacks]
    return sum(
        any(path in other and Write() in (mode, other[path]) for path, mode in one.items())
        for index, one in enumerate(declared)
        for other in declared[index + 1 :]
    )


def sort(pairs: list[tuple[int, int]]) -> list[int]:
    """What is left to do when the edges are known."""
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for before, after in pairs:
        sorter.add(after, before)
    return list(sorter.static_order())


# -- threads -------------------------------------------------------------------------------------------------------


class Waiting(Declared):
    """A guarded callback that waits for a connection on which nothing arrives."""

    def __init__(self, access: dict[str, Read | Write], ends: tuple[socket.socket, socket.socket]) -> None:
        super().__init__(access)
        self.ends = ends

    def on_step_end(self) -> None:
        select.select(self.ends[:1], [], [], WAIT)

    def on_nothing(self) -> None:
        pass


def threads(quick: bool) -> list[Row]:
    """Four callbacks that wait, and four that do nothing: in threads, and one after the other."""
    ends = [socket.socketpair() for _ in range(4)]
    callbacks = [Waiting({f"part{i}": Write()}, pair) for i, pair in enumerate(ends)]
    rows = []
    executor = ThreadedExecutor()
    fabrics = {"threads": Fabric(callbacks=callbacks, executor=executor), "serial": Fabric(callbacks=callbacks)}
    hooks = (("on_step_end", "wait 5 ms", Bar("≤ 1/2", 0.5)), ("on_nothing", "do nothing", None))
    for hook, what, bar in hooks:
        sides = {name: Timer("call(hook)", globals={"call": f.call, "hook": hook}) for name, f in fabrics.items()}
        times = in_turns(sides, rounds=5 if quick else 60, seconds=0.001)
        figure = f"4 callbacks that {what}, ThreadedExecutor"
        rows.append(compare(figure, Times.of(times["threads"]), "serial", Times.of(times["serial"]), bar))
    executor.close()
    for end in (end for pair in ends for end in pair):
        end.close()
    return rows
