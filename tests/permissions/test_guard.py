from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import pytest

from fabric_lite.permissions import (
    Callback,
    ConditionalCallback,
    CyclicDependencyError,
    Guard,
    MissingStateError,
    Protected,
    ProtectedException,
    Read,
    State,
    Write,
    WriteConflictError,
)


class Learner:
    def __init__(self, **state):
        self.__dict__.update(state)


class Reader(Callback):
    def __init__(self):
        self.met = []

    def stateaccess(self):
        return {"loss": Read()}

    def init(self, learner):
        self.met.append(learner)


class Writer(Callback):
    def stateaccess(self):
        return {"loss": Write()}


class NeedsRecorder(Callback):
    def stateaccess(self):
        return {"cbstate.history": Read()}


def adapted(guard, callback, hook="on_step_end"):
    return guard.adapt(callback, hook, "learner")


def test_arranging_orders_all_callbacks_and_keeps_the_graph():
    reader, plain, writer = Reader(), object(), Writer()
    given = [reader, plain, writer]
    guard = Guard()
    assert guard.graph.order == ()
    assert guard.arrange(given) == (plain, writer, reader) == guard.graph.order
    assert given == [reader, plain, writer]


def test_what_cannot_work_together_changes_nothing():
    guard, reader, writer = Guard(creators={"history": "Recorder"}), Reader(), Writer()
    guard.arrange([reader, writer])
    graph, adapt = guard.graph, adapted(guard, reader)
    learner = Learner(loss=1)
    proxy = adapt(learner)
    with pytest.raises(WriteConflictError, match="Writer writes loss and Writer#2 writes loss"):
        guard.arrange([reader, writer, Writer()])
    with pytest.raises(MissingStateError, match=r"add Recorder\(\), which creates cbstate.history"):
        guard.arrange([NeedsRecorder()])
    assert guard.graph is graph
    assert adapt(learner) is proxy is adapted(guard, reader)(learner)


def test_stateaccess_is_asked_once_when_a_callback_is_added():
    class Counting(Reader):
        asked = 0

        def stateaccess(self):
            Counting.asked += 1
            return super().stateaccess()

    guard, callback = Guard(), Counting()
    guard.arrange([callback])
    guard.arrange([callback, Writer()])
    learner = Learner(loss=1)
    for _ in range(3):
        assert adapted(guard, callback)(learner).loss == 1
    assert Counting.asked == 1


def test_only_the_learner_of_a_guarded_callback_is_adapted():
    guard, reader, plain = Guard(), Reader(), object()
    conditional = ConditionalCallback(plain, lambda hook, phase: True)
    guard.arrange([reader, plain, conditional])
    assert guard.adapt(reader, "on_step_end", "loss") is None
    assert guard.adapt(plain, "on_step_end", "learner") is None
    assert guard.adapt(conditional, "on_step_end", "learner") is None
    assert guard.adapt(reader, "on_step_end", "learner") is not None


def test_one_proxy_per_callback_and_learner():
    guard, one, two = Guard(), Reader(), Reader()
    guard.arrange([one, two])
    learner, other = Learner(loss=1), Learner(loss=2)
    proxy = adapted(guard, one)(learner)
    assert type(proxy) is Protected
    assert proxy is adapted(guard, one)(learner) is adapted(guard, one, "on_epoch_end")(learner)
    assert proxy is not adapted(guard, two)(learner)
    assert proxy is not adapted(guard, one)(other)
    assert proxy is adapted(guard, one)(learner)


def test_a_wrapped_callback_is_the_callback():
    guard, reader = Guard(), Reader()
    wrapper = ConditionalCallback(reader, lambda hook, phase: True)
    guard.arrange([wrapper])
    learner = Learner(loss=1)
    assert adapted(guard, wrapper)(learner) is adapted(guard, reader)(learner)
    assert len(reader.met) == 1
    with pytest.raises(
        ProtectedException, match=r"^Read access to Learner\.xs disallowed\. Reader read it in on_step_end"
    ):
        adapted(guard, wrapper)(learner).xs  # noqa: B018


def test_init_runs_once_when_a_callback_meets_a_learner():
    guard, reader = Guard(), Reader()
    guard.arrange([reader])
    learner, other = Learner(), Learner()
    proxies = [adapted(guard, reader, hook)(learner) for hook in ("on_a", "on_b", "on_a")]
    assert reader.met == [proxies[0]]
    adapted(guard, reader)(other)
    guard.arrange([reader, Writer()])
    adapted(guard, reader)(learner)
    assert len(reader.met) == 2


def test_init_is_guarded_and_named():
    class Greedy(Reader):
        def init(self, learner):
            super().init(learner)
            learner.model.train()

    guard, greedy, learner = Guard(), Greedy(), Learner(model=1)
    guard.arrange([greedy])
    for times in (1, 2):
        message = "Read access to Learner.model disallowed. Greedy read it in init; to allow it, add this line"
        with pytest.raises(ProtectedException, match=f"^{re.escape(message)}"):
            adapted(guard, greedy)(learner)
        assert len(greedy.met) == times, "a callback whose init failed has not met the learner"


def test_attach_runs_init_in_order():
    met = []

    class Late(Writer):
        def init(self, learner):
            met.append("writer")
            learner.loss = 5

    class Early(Reader):
        def init(self, learner):
            met.append(learner.loss)

    guard, learner = Guard(), Learner()
    guard.arrange([Early(), object(), Late()])
    guard.attach(learner)
    guard.attach(learner)
    assert met == ["writer", 5]


@pytest.mark.parametrize("mode", ["on", "off", "strict"])
def test_init_runs_in_every_mode(mode):
    guard, reader, learner = Guard(mode, mutation_check=lambda value: ()), Reader(), Learner(loss=1)
    guard.arrange([reader])
    for _ in range(2):
        seen = adapted(guard, reader)(learner)
    assert reader.met == [seen]
    assert (seen is learner) == (mode == "off")


def test_guard_off_hands_out_the_learner_at_no_cost():
    guard, writer = Guard("off"), Writer()
    guard.arrange([writer])
    assert adapted(guard, writer) is None
    with pytest.raises(WriteConflictError, match="Writer writes loss and Writer#2"):
        guard.arrange([writer, Writer()])


def test_no_learner_is_no_learner():
    for mode in ("on", "off"):
        guard, reader = Guard(mode), Reader()
        guard.arrange([reader])
        assert adapted(guard, reader)(None) is None
        assert reader.met == []


@pytest.mark.parametrize(
    "learner",
    [State(loss=1), {"loss": 1}, (1,), type("Slots", (), {"__slots__": ("loss",)})()],
    ids=["State", "dict", "tuple", "slots"],
)
def test_any_object_can_be_a_learner(learner):
    guard, reader = Guard(), Reader()
    guard.arrange([reader])
    assert adapted(guard, reader)(learner) is adapted(guard, reader)(learner)
    assert len(reader.met) == 1


def test_learners_are_not_kept_alive():
    guard, reader = Guard(), Reader()
    guard.arrange([reader])
    gc.disable()
    try:
        for _ in range(5):
            learner = Learner(loss=1)
            adapted(guard, reader)(learner)
            gone = weakref.ref(learner)
            del learner
            assert gone() is None
        assert len(reader.met) == 5, "a new learner is met, even at the address of an old one"
    finally:
        gc.enable()


def test_learners_that_cannot_be_referenced_weakly_do_not_pile_up():
    guard, reader = Guard(), Writer()
    guard.arrange([reader])
    payloads = []
    for number in range(5):
        payload = Learner()
        payloads.append(weakref.ref(payload))
        assert adapted(guard, reader)({"loss": number, "payload": payload})["loss"] == number
    del payload
    assert [payload() is None for payload in payloads] == [True] * 4 + [False]


def test_a_guard_leaves_no_cycle_behind():
    guard, reader = Guard("strict", mutation_check=lambda value: ()), Reader()
    learner = Learner(loss=1, guard=guard)
    guard.arrange([reader])
    adapted(guard, reader)(learner)
    gone = [weakref.ref(guard), weakref.ref(learner), weakref.ref(reader)]
    gc.disable()
    try:
        del guard, learner, reader
        assert [reference() for reference in gone] == [None] * 3
    finally:
        gc.enable()


def test_a_callback_that_was_taken_off_is_still_guarded_in_the_running_call():
    guard, reader, learner = Guard(), Reader(), Learner(loss=1)
    guard.arrange([reader])
    before = adapted(guard, reader)
    guard.arrange([])
    for adapt in (before, adapted(guard, reader)):
        with pytest.raises(ProtectedException, match=r"^Read access to Learner\.xs disallowed"):
            adapt(learner).xs  # noqa: B018


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda guard: pickle.loads(pickle.dumps(guard))])
def test_a_guard_can_be_sent_to_another_process(duplicate):
    guard, reader, writer = Guard(creators={"history": "Recorder"}), Reader(), Writer()
    guard.arrange([reader, writer])
    learner = Learner(loss=1)
    guard.attach(learner)
    reader.met.clear()
    again = duplicate(guard)
    assert [type(callback) for callback in again.graph.order] == [Writer, Reader]
    assert again.creators == {"history": "Recorder"}
    assert adapted(again, again.graph.order[1])(learner).loss == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("of",), "guard='of' is none of the modes; pass 'on', 'off' or 'strict'."),
        (("strict",), "guard='strict' needs a mutation_check that finds tensors and their versions."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Guard(*arguments)


def test_around_calls_in_every_mode():
    for mode in ("on", "off", "strict"):
        guard, reader = Guard(mode, mutation_check=lambda value: ()), Reader()
        guard.arrange([reader])
        assert guard.around(reader, "on_step_end", lambda: 7) == guard.around(object(), "on_step_end", lambda: 7) == 7


def test_a_cycle_is_found_before_anything_runs():
    class One(Callback):
        def runafter(self):
            return (Two,)

    class Two(Callback):
        def runafter(self):
            return (One,)

    with pytest.raises(CyclicDependencyError, match="These callbacks wait for each other"):
        Guard().arrange([One(), Two()])
