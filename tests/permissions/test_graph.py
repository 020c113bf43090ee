from __future__ import annotations

import pickle
import re
from abc import ABC

import pytest

from fabric_lite.permissions import (
    Callback,
    CallbackGraph,
    CallbackGraphError,
    ConditionalCallback,
    CyclicDependencyError,
    Edge,
    MissingStateError,
    NoConflict,
    Read,
    RunFirst,
    Unresolvable,
    Write,
    WriteConflictError,
)


class Declared(Callback):
    """Declares what its class says."""

    access: dict = {}
    after: tuple = ()
    answer = staticmethod(lambda self, other: NotImplemented)

    def stateaccess(self):
        return self.access

    def runafter(self):
        return self.after

    def resolveconflict(self, other):
        return type(self).answer(self, other)


class WritesLoss(Declared):
    access = {"step.loss": Write()}


class ReadsLoss(Declared):
    access = {"step": {"loss": Read()}}


class WritesStep(Declared):
    access = {"step": Write()}


class Recorder(Declared):
    access = {"cbstate.history": Write()}


class Printer(Declared):
    access = {"cbstate.history.steps": Read(), "step.loss": Read()}


class Plain:
    pass


def make(base=Declared, name="Made", **attributes):
    if "answer" in attributes:
        attributes["answer"] = staticmethod(attributes["answer"])
    return type(name, (base,), attributes)()


def names(graph):
    return [type(callback).__name__ for callback in graph.order]


# Order


def test_the_order_is_as_given_without_dependencies():
    given = [Plain(), Declared(), ReadsLoss(), Plain(), ReadsLoss()]
    graph = CallbackGraph(given)
    assert graph.order == tuple(given)
    assert graph.edges == ()
    assert CallbackGraph([]).order == ()


def test_a_writer_runs_before_a_reader():
    reader, writer = ReadsLoss(), WritesStep()
    graph = CallbackGraph([reader, Plain(), writer])
    assert names(graph) == ["Plain", "WritesStep", "ReadsLoss"]
    assert graph.edges == (Edge(writer, reader, "WritesStep writes step, and ReadsLoss reads step.loss"),)


def test_a_creator_runs_before_a_reader():
    printer, recorder = Printer(), Recorder()
    graph = CallbackGraph([printer, recorder])
    assert graph.order == (recorder, printer)
    reason = "Recorder creates cbstate.history, and Printer reads cbstate.history.steps"
    assert graph.edges == (Edge(recorder, printer, reason),)


def test_runafter_counts_subclasses():
    class Special(WritesLoss):
        pass

    last, special = make(after=(WritesLoss,), name="Last"), Special()
    graph = CallbackGraph([last, special])
    assert graph.order == (special, last)
    assert graph.edges == (Edge(special, last, "Last.runafter() names WritesLoss"),)


def test_runafter_counts_registered_classes_and_plain_callbacks():
    class Metric(ABC):  # noqa: B024
        pass

    Metric.register(Plain)
    last, plain = make(after=[Metric]), Plain()
    assert CallbackGraph([last, plain]).order == (plain, last)


def test_runafter_sees_through_conditions():
    last, wrapped = make(after=(WritesLoss,)), ConditionalCallback(WritesLoss(), lambda hook, phase: True)
    conditional = ConditionalCallback(last, lambda hook, phase: True)
    assert CallbackGraph([conditional, wrapped]).order == (wrapped, conditional)


def test_a_callback_does_not_run_after_itself():
    last = make(after=(Callback, object))
    assert CallbackGraph([last, ReadsLoss(), Plain()]).order[-1] is last


def test_plain_callbacks_declare_nothing():
    class Pretends:
        def stateaccess(self):
            raise RuntimeError("not asked")

        runafter = resolveconflict = stateaccess

    given = [Pretends(), WritesLoss(), Pretends()]
    assert CallbackGraph(given).order == tuple(given)


# Conflicts


@pytest.mark.parametrize("other", [WritesLoss, WritesStep])
def test_an_unresolved_write_conflict(other):
    with pytest.raises(WriteConflictError) as caught:
        CallbackGraph([WritesLoss(), other()])
    second, path = ("WritesLoss#2", "step.loss") if other is WritesLoss else ("WritesStep", "step")
    assert str(caught.value) == (
        f"WritesLoss writes step.loss and {second} writes {path}, and nothing says which of them runs first;"
        " remove one, or add to WritesLoss:\n"
        "    def resolveconflict(self, other):\n"
        f"        return RunFirst(self) if isinstance(other, {other.__name__}) else NotImplemented\n"
        "(RunFirst(other) and NoConflict() are other answers)."
    )


@pytest.mark.parametrize("answers_first", [True, False])
@pytest.mark.parametrize("given_first", [True, False])
@pytest.mark.parametrize("says_self", [True, False])
def test_run_first_from_either_side(answers_first, given_first, says_self):
    one = make(WritesLoss, name="One", answer=lambda self, other: RunFirst(self if says_self else other))
    other = make(WritesLoss, name="Other")
    graph = CallbackGraph([one, other] if given_first else [other, one])
    assert names(graph) == (["One", "Other"] if says_self else ["Other", "One"])
    first, second = graph.order
    who = type(first).__name__
    assert graph.edges == (Edge(first, second, f"One.resolveconflict(Other) says RunFirst({who})"),)


def test_the_first_answer_counts_and_the_other_is_not_asked():
    asked = []
    one = make(WritesLoss, name="One", answer=lambda self, other: asked.append("One") or NotImplemented)
    two = make(WritesLoss, name="Two", answer=lambda self, other: asked.append("Two") or NoConflict())
    assert CallbackGraph([one, two]).order == (one, two)
    assert asked == ["One", "Two"]
    asked.clear()
    assert CallbackGraph([two, one]).order == (two, one)
    assert asked == ["Two"]


def test_no_conflict_needs_no_edge():
    graph = CallbackGraph([make(WritesLoss, answer=lambda self, other: NoConflict()), WritesStep()])
    assert graph.edges == ()


def test_a_reader_may_answer_too():
    early = make(ReadsLoss, name="Early", answer=lambda self, other: RunFirst(self))
    assert names(CallbackGraph([WritesLoss(), early])) == ["Early", "WritesLoss"]
    whenever = make(ReadsLoss, name="Whenever", answer=lambda self, other: NoConflict())
    graph = CallbackGraph([whenever, WritesLoss()])
    assert (names(graph), graph.edges) == (["Whenever", "WritesLoss"], ())


def test_an_answer_holds_for_all_that_two_callbacks_share():
    one = make(name="One", access={"a": Write(), "b": Read()}, answer=lambda self, other: RunFirst(self))
    other = make(name="Other", access={"a": Write(), "b": Write()})
    assert names(CallbackGraph([other, one])) == ["One", "Other"]


@pytest.mark.parametrize("base", [WritesLoss, ReadsLoss])
def test_unresolvable(base):
    never = make(base, name="Never", answer=lambda self, other: Unresolvable())
    verb = "writes" if base is WritesLoss else "reads"
    with pytest.raises(WriteConflictError) as caught:
        CallbackGraph([WritesLoss(), never])
    assert str(caught.value) == (
        f"WritesLoss writes step.loss and Never {verb} step.loss, and Never.resolveconflict(WritesLoss) says"
        " Unresolvable(): they cannot be used together; remove one."
    )


def test_a_declared_order_settles_the_matter_and_nobody_is_asked():
    def fail(self, other):
        raise RuntimeError("asked")

    first = make(WritesLoss, name="First", answer=fail)
    middle = make(name="Middle", after=(type(first),))
    last = make(WritesLoss, name="Last", after=(type(middle),), answer=fail)
    assert names(CallbackGraph([last, middle, first])) == ["First", "Middle", "Last"]
    reader = make(ReadsLoss, name="Reader", answer=fail)
    writer = make(WritesLoss, name="Writer", after=(type(reader),), answer=fail)
    assert names(CallbackGraph([writer, reader])) == ["Reader", "Writer"]


def test_resolveconflict_gets_the_callbacks_themselves_and_may_name_either():
    inner, seen = WritesStep(), []
    wrapper = ConditionalCallback(inner, lambda hook, phase: True)
    for named in (inner, wrapper):
        picky = make(WritesLoss, answer=lambda self, other, named=named: seen.append(other) or RunFirst(named))
        assert CallbackGraph([picky, wrapper]).order == (wrapper, picky)
    assert seen == [inner, inner]


def test_reads_alone_are_no_conflict():
    def fail(self, other):
        raise RuntimeError("asked")

    assert CallbackGraph([make(ReadsLoss, answer=fail), make(ReadsLoss, answer=fail)]).edges == ()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"answer": lambda self, other: None},
            "Made.resolveconflict(WritesLoss) returned None; return RunFirst(callback), NoConflict(), Unresolvable()"
            " or NotImplemented.",
        ),
        ({"answer": lambda self, other: RunFirst}, "Made.resolveconflict(WritesLoss) returned <class"),
        ({"after": WritesLoss}, "Made.runafter() returned <class"),
        ({"after": ("WritesLoss",)}, "Made.runafter() returned ('WritesLoss',); return a tuple of types, such as"),
        ({"access": {"step": Read}}, "Made.stateaccess(): 'step' is the class Read; write Read() instead."),
    ],
)
def test_malformed_declarations_name_the_callback(attributes, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        CallbackGraph([make(WritesLoss, **attributes), WritesLoss()])


def test_run_first_of_a_stranger():
    stranger = make(WritesLoss, name="Confused", answer=lambda self, other: RunFirst("someone"))
    with pytest.raises(WriteConflictError) as caught:
        CallbackGraph([stranger, WritesLoss()])
    assert str(caught.value) == (
        "Confused.resolveconflict(WritesLoss) says RunFirst('someone'), which is neither of the two;"
        " name self or other."
    )


# Missing state


@pytest.mark.parametrize(
    ("creators", "message"),
    [
        (
            {"history": "Recorder"},
            "Printer reads cbstate.history.steps, which no callback writes; add Recorder(), which creates"
            " cbstate.history, or remove Printer.",
        ),
        (
            {},
            "Printer reads cbstate.history.steps, which no callback writes; add a callback that declares Write() on"
            " cbstate.history, or remove Printer.",
        ),
    ],
)
def test_missing_state(creators, message):
    with pytest.raises(MissingStateError) as caught:
        CallbackGraph([Printer(), Plain()], creators)
    assert str(caught.value) == message


@pytest.mark.parametrize("written", ["cbstate", "cbstate.history", "cbstate.history.steps", "cbstate.history.steps.a"])
def test_state_is_there_if_anybody_writes_at_above_or_below_it(written):
    assert len(CallbackGraph([Printer(), make(access={written: Write()})]).edges) == 1


def test_state_beside_it_does_not_count():
    with pytest.raises(MissingStateError, match=r"^Printer reads cbstate\.history\.steps, which no callback writes"):
        CallbackGraph([Printer(), make(access={"cbstate.history.epochs": Write(), "cbstate.other": Write()})])


def test_only_entries_of_cbstate_need_a_creator():
    CallbackGraph([ReadsLoss(), make(access={"cbstate": Read()}), make(access={"epoch": Read()})])


# Cycles


def test_a_cycle_is_printed_with_its_reasons():
    one = make(name="One", access={"a": Write(), "b": Read()})
    two = make(name="Two", access={"a": Read()})
    three = make(name="Three", access={"b": Write()}, after=(type(two),))
    with pytest.raises(CyclicDependencyError) as caught:
        CallbackGraph([one, two, three])
    assert str(caught.value) == (
        "These callbacks wait for each other; take one of the reasons away:\n"
        "    One\n"
        "    -> Two runs after it: One writes a, which Two reads\n"
        "    -> Three runs after it: Three.runafter() names Two\n"
        "    -> One runs after it: Three writes b, which One reads"
    )


def test_each_reads_what_the_other_writes():
    one = make(name="One", access={"a": Write(), "b": Read()})
    two = make(name="Two", access={"a": Read(), "b": Write()})
    with pytest.raises(CyclicDependencyError) as caught:
        CallbackGraph([two, one])
    assert str(caught.value) == (
        "These callbacks wait for each other; take one of the reasons away:\n"
        "    Two\n"
        "    -> One runs after it: Two writes b, which One reads\n"
        "    -> Two runs after it: One writes a, which Two reads"
    )
    settled = make(type(one), name="Settled", answer=lambda self, other: RunFirst(self))
    assert CallbackGraph([two, settled]).order == (settled, two)


def test_two_that_each_run_after_the_other():
    class Last(Declared):
        after = (Callback,)

    with pytest.raises(CyclicDependencyError, match=r"Last\n    -> Last#2 runs after it: Last#2\.runafter\(\) names"):
        CallbackGraph([Last(), Last()])


# The report


def test_all_problems_come_in_one_report():
    one = make(name="One", after=())
    two = make(name="Two", after=(type(one),))
    type(one).after = (type(two),)
    three = make(name="Three", access={"b": Write(), "c": Read()})
    four = make(name="Four", access={"b": Read(), "c": Write()})
    with pytest.raises(WriteConflictError) as caught:
        CallbackGraph([Printer(), WritesLoss(), WritesLoss(), one, two, three, four], {"history": "Recorder"})
    error = caught.value
    assert [type(problem) for problem in error.problems] == [
        WriteConflictError,
        MissingStateError,
        CyclicDependencyError,
        CyclicDependencyError,
    ]
    assert str(error).startswith("4 problems with these callbacks:\n1. WritesLoss writes step.loss and WritesLoss#2")
    for number, problem in enumerate(error.problems, start=1):
        assert f"\n{number}. {problem}" in str(error)
        assert problem.problems == []


def test_a_single_problem_is_in_the_list_too():
    with pytest.raises(MissingStateError) as caught:
        CallbackGraph([Printer()])
    assert [str(problem) for problem in caught.value.problems] == [str(caught.value)]
    assert isinstance(caught.value, CallbackGraphError)


# Pictures


@pytest.fixture
def graph():
    return CallbackGraph(
        [Printer(), Plain(), make(name='Quo"ted', after=(Plain,)), Recorder(), WritesStep(), Declared()]
    )


def test_explain(graph):
    assert graph.explain() == (
        "The callbacks run in this order:\n"
        "  1. Plain (not guarded)\n"
        '  2. Quo"ted (touches no state)\n'
        '       after Plain: Quo"ted.runafter() names Plain\n'
        "  3. Recorder (writes cbstate.history)\n"
        "  4. WritesStep (writes step)\n"
        "  5. Printer (reads cbstate.history.steps and step.loss)\n"
        "       after Recorder: Recorder creates cbstate.history, and Printer reads cbstate.history.steps\n"
        "       after WritesStep: WritesStep writes step, and Printer reads step.loss\n"
        "  6. Declared (touches no state)"
    )
    assert CallbackGraph([]).explain() == "There are no callbacks."
    assert CallbackGraph([Plain(), Plain()]).explain() == (
        "The callbacks run in this order:\n  1. Plain (not guarded)\n  2. Plain#2 (not guarded)\n"
        "None depends on another one; this is the order in which they were given."
    )


def test_mermaid(graph):
    assert graph.to_mermaid() == (
        "flowchart TD\n"
        '    n1(["Plain"])\n'
        '    n2["Quo&quot;ted"]\n'
        '    n3["Recorder"]\n'
        '    n4["WritesStep"]\n'
        '    n0["Printer"]\n'
        '    n5["Declared"]\n'
        '    n1 -->|"Quo&quot;ted.runafter() names Plain"| n2\n'
        '    n3 -->|"Recorder creates cbstate.history, and Printer reads cbstate.history.steps"| n0\n'
        '    n4 -->|"WritesStep writes step, and Printer reads step.loss"| n0\n'
    )


def test_dot(graph):
    assert graph.to_dot() == (
        "digraph callbacks {\n"
        "    node [shape=box];\n"
        '    n1 [label="Plain", style=dashed];\n'
        '    n2 [label="Quo\\"ted"];\n'
        '    n3 [label="Recorder"];\n'
        '    n4 [label="WritesStep"];\n'
        '    n0 [label="Printer"];\n'
        '    n5 [label="Declared"];\n'
        '    n1 -> n2 [label="Quo\\"ted.runafter() names Plain"];\n'
        '    n3 -> n0 [label="Recorder creates cbstate.history, and Printer reads cbstate.history.steps"];\n'
        '    n4 -> n0 [label="WritesStep writes step, and Printer reads step.loss"];\n'
        "}\n"
    )


def test_a_graph_survives_pickling():
    graph = pickle.loads(pickle.dumps(CallbackGraph([ReadsLoss(), WritesLoss()])))
    assert names(graph) == ["WritesLoss", "ReadsLoss"]


# Who may run at the same time


def test_independence():
    writer, reader, other, plain = WritesLoss(), ReadsLoss(), Declared(), Plain()
    after_reader = make(after=(ReadsLoss,))
    graph = CallbackGraph([writer, reader, other, plain, after_reader])
    assert graph.independent(writer, other)
    assert graph.independent(other, reader)
    assert not graph.independent(writer, reader)
    assert not graph.independent(reader, writer)
    assert not graph.independent(writer, after_reader), "a path connects them"
    assert not graph.independent(plain, other), "who declared nothing may touch anything"
    assert not graph.independent(other, other)
    assert not graph.independent(other, Declared()), "not in this graph"


def test_no_conflict_means_any_order_and_not_at_the_same_time():
    one, two = (make(WritesLoss, answer=lambda self, other: NoConflict()) for _ in range(2))
    assert not CallbackGraph([one, two]).independent(one, two)
