from __future__ import annotations

import copy
import gc
import re
import weakref
from dataclasses import dataclass, field

import pytest

from fabric_lite.permissions import Protected, ProtectedException, Read, State, Write

READ_LOSS = """Read access to Learner.step.loss disallowed. Printer read it in on_step_end; \
to allow it, add this line to the mapping that Printer.stateaccess() returns:
    "step.loss": Read(),"""
WRITE_LOSS = (
    READ_LOSS.replace("Read access", "Write access").replace("read it", "wrote to it").replace("Read()", "Write()")
)


def denied(message):
    return pytest.raises(ProtectedException, match=f"^{re.escape(message)}")


# The table of the design: what each kind of access gives for each kind of declaration.


@pytest.mark.parametrize("access", [{}, {"step": {}}, {"step": {"xs": Write()}}, {"cbstate": Write()}])
def test_undeclared(learner, protected, access):
    proxy = protected(learner, access)
    for read in (lambda: proxy.step.loss, lambda: proxy["step"]["loss"], lambda: getattr(proxy.step, "loss")):  # noqa: B009
        with pytest.raises(ProtectedException) as caught:
            read()
        assert str(caught.value) == READ_LOSS
    with pytest.raises(ProtectedException) as caught:
        proxy.step.loss = 1
    assert str(caught.value) == WRITE_LOSS
    with denied(WRITE_LOSS):
        proxy.step["loss"] = 1
    with denied(WRITE_LOSS):
        del proxy.step.loss
    with denied(WRITE_LOSS):
        del proxy.step["loss"]
    assert learner.step.loss == 0.5


def test_readable(learner, protected):
    proxy = protected(learner, {"step": {"loss": Read()}})
    assert proxy.step.loss == proxy["step"]["loss"] == proxy.step["loss"] == proxy["step"].loss == 0.5
    assert proxy.step.get("loss") == 0.5
    message = WRITE_LOSS.replace("add this line to", "change the entry in")
    with denied(message):
        proxy.step.loss = 1
    with denied(message):
        proxy.step["loss"] = 1
    with denied(message):
        del proxy.step.loss
    with denied(message):
        del proxy.step["loss"]
    with denied(message):
        proxy.step.loss += 1
    assert learner.step.loss == 0.5


def test_writable(learner, protected):
    proxy = protected(learner, {"step": {"loss": Write(), "ys": Write(), "xs": Write()}})
    proxy.step.loss += 1
    proxy.step["ys"] = 2
    assert (learner.step.loss, learner.step.ys) == (1.5, 2)
    assert proxy.step.xs is learner.step.xs
    del proxy.step.loss
    del proxy.step["ys"]
    assert list(learner.step) == ["xs"]


def test_a_nested_mapping(learner, protected):
    proxy = protected(learner, {"step": {"loss": Write()}})
    assert isinstance(proxy.step, Protected)
    with denied("Write access to Learner.step disallowed. Printer wrote to it in on_step_end; to allow it, add"):
        proxy.step = State()
    with denied("Write access to Learner.step disallowed."):
        del proxy.step


def test_an_undeclared_value_that_is_no_state_container(learner, protected):
    proxy = protected(learner, {})
    learner.losses = [1]
    for name in ("model", "epoch", "losses", "absent"):
        with denied(f"Read access to Learner.{name} disallowed."):
            getattr(proxy, name)


@dataclass
class Options:
    rate: float = 0.1
    names: list = field(default_factory=lambda: ["a"])


@pytest.mark.parametrize("container", [State(rate=1), {"rate": 1}, Options()], ids=["State", "dict", "dataclass"])
def test_an_undeclared_state_container_fails_at_its_leaf(learner_class, protected, container):
    learner = learner_class(options=container)
    proxy = protected(learner, {})
    options = proxy.options
    assert isinstance(options, Protected)
    assert (list(options), len(options), dir(options)) == ([], 0, [])
    with denied("Read access to Learner.options.rate disallowed."):
        options["rate"]


def test_any_object_can_be_the_learner(protected):
    learner = {"step": {"loss": 1, "xs": 2}}
    proxy = protected(learner, {"step": {"loss": Write()}})
    proxy["step"]["loss"] += 1
    assert learner["step"]["loss"] == 2
    with denied("Read access to dict.step.xs disallowed."):
        proxy["step"]["xs"]


def test_items_of_an_object_are_its_attributes(learner, protected):
    proxy = protected(learner, {"epoch": Write(), "absent": Write()})
    proxy["epoch"] += 1
    proxy["absent"] = 1
    assert (learner.epoch, learner.absent) == (4, 1)
    del proxy["absent"]
    with pytest.raises(KeyError, match="absent"):
        proxy["absent"]
    with pytest.raises(AttributeError, match="absent"):
        proxy.absent  # noqa: B018


def test_keys_that_are_no_strings_are_named_in_brackets(protected):
    proxy = protected({"steps": {1: {"loss": 2}}}, {"steps": {}})
    with denied("Read access to dict.steps[1].loss disallowed. Printer read it") as caught:
        proxy["steps"][1]["loss"]
    assert '"steps": Read(),' in str(caught.value)


# The details below the table.


def test_the_more_specific_entry_counts(learner, protected):
    proxy = protected(learner, {"step": Read(), "step.xs": Write()})
    proxy.step.xs = [9]
    proxy.step["xs"].append(10)
    assert learner.step.xs == [9, 10]
    assert proxy.step.loss == proxy.step["loss"] == 0.5
    assert set(proxy.step) == {"loss", "xs"}
    with denied("Write access to Learner.step.loss disallowed."):
        proxy.step.loss = 1
    with denied("Write access to Learner.step disallowed."):
        proxy.step = 1
    learner.step.ys = [1]
    with denied("Write access to Learner.step.ys disallowed. Printer called .append() in on_step_end"):
        proxy.step.ys.append(1)


def test_a_read_below_a_write(learner, protected):
    proxy = protected(learner, {"step": Write(), "step.xs": Read()})
    proxy.step.loss = 2
    with denied("Write access to Learner.step.xs disallowed."):
        proxy.step.xs = []
    with denied("Write access to Learner.step.xs disallowed."):
        proxy.step.xs.append(1)
    proxy.step = State(xs=[5])
    assert proxy.step.xs == [5]


def test_what_cannot_be_viewed_comes_as_it_is_whatever_is_declared_below(learner, protected):
    proxy = protected(learner, {"model": Read(), "model.weight": Write()})
    assert proxy.model is learner.model is proxy["model"]


def test_declared_names_that_exist_show_up(learner, protected):
    proxy = protected(learner, {"step.loss": Read(), "step.ys": Read(), "epoch": Read(), "absent": Write()})
    assert list(proxy) == list(proxy.keys()) == ["step", "epoch"]
    assert dir(proxy) == ["epoch", "step"]
    assert dict(proxy.step) == {**proxy.step} == dict(proxy.step.items()) == {"loss": 0.5}
    assert list(proxy.step.values()) == [0.5]
    assert (len(proxy), len(proxy.step)) == (2, 1)
    assert "loss" in proxy.step
    assert "ys" not in proxy.step
    assert "xs" not in proxy.step
    assert "model" not in proxy
    learner.step.ys = 1
    assert "ys" in proxy.step
    assert sorted(proxy.step) == sorted(dir(proxy.step)) == ["loss", "ys"]


def test_a_readable_dataclass_with_a_writable_field_shows_its_fields(learner_class, protected):
    learner = learner_class(options=Options())
    proxy = protected(learner, {"options": Read(), "options.rate": Write()})
    assert list(proxy.options) == ["rate", "names"]
    proxy.options.rate = 0.2
    assert learner.options == Options(0.2)


def test_truth_is_that_of_a_container_and_of_any_other_object(learner, protected):
    proxy = protected(learner, {"step.loss": Read(), "cbstate": {}})
    assert proxy
    assert proxy.step
    assert not proxy.cbstate
    assert protected(learner, {})


def test_a_declared_name_wins_over_a_method_of_the_proxy(learner_class, protected):
    learner = learner_class(values=3, holder=4, node=5, target=6)
    proxy = protected(learner, {"values": Write(), "target": Read()})
    proxy.values += 1
    assert (learner.values, proxy.target) == (4, 6)
    for name in ("holder", "node"):
        with denied(f"Read access to Learner.{name} disallowed."):
            getattr(proxy, name)


def test_none_is_none(learner_class, protected):
    learner = learner_class(step=None)
    assert protected(learner, {"step": {"loss": Read()}}).step is None


def test_replaced_state_is_followed(learner, protected):
    proxy = protected(learner, {"step": {"loss": Read()}})
    old = proxy.step
    learner.step = State(loss=9)
    assert (proxy.step.loss, old.loss) == (9, 0.5)


def test_replaced_state_is_not_kept_alive(learner, protected):
    proxy = protected(learner, {"step": {"loss": Read()}})
    assert proxy.step.loss == 0.5
    gone = weakref.ref(learner.step)
    learner.step = State()
    assert gone() is None


def test_a_proxy_does_not_keep_the_learner_alive(learner_class, protected):
    proxy = protected(learner := learner_class(epoch=1), {"epoch": Write()})
    assert proxy.epoch == 1
    gone = weakref.ref(learner)
    gc.disable()
    try:
        del learner
        assert gone() is None
    finally:
        gc.enable()
    message = "Printer kept a proxy of a Learner that no longer exists; use the one that the hook is given."
    with pytest.raises(ReferenceError, match=re.escape(message)):
        proxy.epoch  # noqa: B018
    with pytest.raises(ReferenceError, match=re.escape(message)):
        proxy.epoch = 1
    assert repr(proxy) == "<Protected Learner: epoch Write()>"


def test_errors_of_declared_state_are_those_of_the_state(learner, protected):
    proxy = protected(learner, {"step": {"los": Read()}})
    with pytest.raises(AttributeError, match=re.escape("State has no entry 'los'; did you mean 'loss'?")):
        proxy.step.los  # noqa: B018
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        proxy.step["los"]


def test_repr_shows_names_and_rights_and_no_values(learner, protected):
    proxy = protected(learner, {"step": {"loss": Read(), "xs": Write()}, "cbstate": {}, "model": Read()})
    assert repr(proxy) == "<Protected Learner: step …, cbstate …, model Read()>"
    assert str(proxy.step) == f"{proxy.step}" == "<Protected Learner.step: loss Read(), xs Write()>"
    assert repr(proxy.cbstate) == "<Protected Learner.cbstate: nothing declared>"
    proxy = protected(learner, {"step": Read(), "step.xs": Write()})
    assert repr(proxy.step) == "<Protected Learner.step: xs Write(), everything else Read()>"


def test_proxies_of_one_object_are_equal(learner, learner_class, protected):
    one, other = protected(learner, {"step": {}}), protected(learner, {"step.loss": Read()})
    assert one == other
    assert one.step == other.step
    assert hash(one.step) == hash(other.step)
    assert one != one.step
    another = learner_class()
    assert one != protected(another, {})


def test_a_proxy_is_not_made_by_hand(learner):
    with pytest.raises(TypeError, match="A Protected is made by the guard when a hook passes a learner"):
        Protected(learner)


def test_the_docstring_says_what_it_is():
    assert "guard rail for colleagues, not a sandbox for attackers" in " ".join(Protected.__doc__.split())


def test_asking_for_the_whole_says_what_to_do_instead(learner, protected):
    proxy = protected(learner, {"step": {"loss": Read()}})
    with pytest.raises(ProtectedException) as caught:
        copy.deepcopy(proxy)
    assert str(caught.value) == (
        "Read access to Learner disallowed. Printer asked for a copy of it in on_step_end;"
        " the learner as a whole cannot be had, take the values you need."
    )
    with pytest.raises(ProtectedException) as caught:
        vars(proxy.step)
    assert str(caught.value) == (
        "Read access to Learner.step disallowed. Printer asked for its __dict__ in on_step_end;"
        " to allow it, add this line to the mapping that Printer.stateaccess() returns:\n"
        '    "step": Read(),'
    )
    assert copy.deepcopy(protected(learner, {"step.loss": Read(), "step": Read()}).step) == learner.step


def test_a_pasted_line_is_what_it_takes(learner, protected):
    """Pasting the lines of the messages, one after the other, ends in a callback that works."""

    def work(proxy):
        proxy.epoch += 1
        proxy.step.xs.append(proxy.step["loss"])
        proxy.cbstate.seen = True

    access, lines = {}, []
    for _ in range(10):
        try:
            work(protected(learner, access))
            break
        except ProtectedException as error:
            lines.append(str(error).splitlines()[-1].strip())
            access.update(eval("{" + lines[-1] + "}", {"Read": Read, "Write": Write}))
    assert lines == [
        '"epoch": Read(),',
        '"epoch": Write(),',
        '"step.xs": Read(),',
        '"step.loss": Read(),',
        '"step.xs": Write(),',
        '"cbstate.seen": Write(),',
    ]
