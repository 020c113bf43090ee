# ruff: noqa: UP030, UP031, UP032 - the old ways of formatting are among them
"""Ways to get around the proxy by accident. Each is tried; none gets at the object behind or at undeclared state."""

from __future__ import annotations

import collections
import copy
import dataclasses
import inspect
import json
import operator
import pickle
import pprint
import string
import weakref

import pytest

from fabric_lite.permissions import Guard, Protected, ProtectedException, Read, State


@dataclasses.dataclass
class Options:
    rate: float = 0.125
    names: list = dataclasses.field(default_factory=list)


SECRET = "a secret"


class Learner:
    shared = SECRET

    def __init__(self):
        self.step = State(loss=0.5, secret=SECRET)
        self.options = Options()
        self.secret = SECRET
        self.table = {"secret": SECRET}
        self.losses = [SECRET]

    @property
    def computed(self):
        return self.secret

    def method(self):
        return self

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __getitem__(self, key):
        return getattr(self, key)


DENIED = ProtectedException

#: What a colleague might write, and what becomes of it: an exception, or a harmless value.
ACCIDENTS = {
    # reading
    "attribute": (lambda p: p.secret, DENIED),
    "item": (lambda p: p["secret"], DENIED),
    "getattr": (lambda p: getattr(p, "sec" + "ret"), DENIED),
    "getattr with a default": (lambda p: getattr(p, "secret", None), DENIED),
    "getattr with a default, absent": (lambda p: getattr(p, "absent", None), DENIED),
    "hasattr": (lambda p: hasattr(p, "secret"), DENIED),
    "get": (lambda p: p.get("secret"), DENIED),
    "get with a default": (lambda p: p.get("secret", 1), DENIED),
    "nested attribute": (lambda p: p.step.secret, DENIED),
    "nested item": (lambda p: p["step"]["secret"], DENIED),
    "mixed": (lambda p: p["step"].secret, DENIED),
    "dict inside": (lambda p: p.table["secret"], DENIED),
    "dict method": (lambda p: p.table.get("secret"), DENIED),
    "list": (lambda p: p.losses, DENIED),
    "property": (lambda p: p.computed, DENIED),
    "class attribute": (lambda p: p.shared, DENIED),
    "attrgetter": (lambda p: operator.attrgetter("step.secret")(p), DENIED),
    "itemgetter": (lambda p: operator.itemgetter("secret")(p), DENIED),
    "methodcaller": (lambda p: operator.methodcaller("method")(p), DENIED),
    "method": (lambda p: p.method(), DENIED),
    "method, looked up": (lambda p: p.method, DENIED),
    "call": (lambda p: p(), TypeError),
    "with": (lambda p: p.__enter__(), AttributeError),
    "slot names": (lambda p: (p.target, p.node, p.holder), DENIED),
    "mangled slot names": (lambda p: p._Protected__target, DENIED),
    "wrapped object": (lambda p: p.__wrapped__, AttributeError),
    "private attribute": (lambda p: p._target, DENIED),
    "dataclass field": (lambda p: p.options.rate, DENIED),
    "format string": (lambda p: "{0.secret}".format(p), DENIED),
    "format string, nested": (lambda p: "{0[step][secret]}".format(p), DENIED),
    "string.Formatter": (lambda p: string.Formatter().format("{l.secret}", l=p), DENIED),
    "format spec": (lambda p: format(p, ">10"), TypeError),
    "format map": (lambda p: "{secret}".format_map(p), DENIED),
    "% formatting": (lambda p: "%(secret)s" % p, DENIED),
    "through the type": (lambda p: type(p).secret, AttributeError),
    "super": (lambda p: super(Protected, p).secret, AttributeError),
    # all at once
    "vars": (vars, DENIED),
    "__dict__": (lambda p: p.__dict__, DENIED),
    "vars of a part": (lambda p: vars(p.step), DENIED),
    "dir": (dir, ["step"]),
    "dir of a part": (lambda p: dir(p.step), ["loss"]),
    "iteration": (list, ["step"]),
    "len": (lambda p: len(p.step), 1),
    "in": (lambda p: "secret" in p or "secret" in p.step, False),
    "keys": (lambda p: list(p.step.keys()), ["loss"]),
    "values": (lambda p: list(p.step.values()), [0.5]),
    "items": (lambda p: list(p.step.items()), [("loss", 0.5)]),
    "dict()": (lambda p: dict(p.step), {"loss": 0.5}),
    "State()": (lambda p: State(p.step), {"loss": 0.5}),
    "dict.update": (lambda p: collections.OrderedDict(p.step), {"loss": 0.5}),
    "**": (lambda p: (lambda **kw: kw)(**p.step), {"loss": 0.5}),
    "{**}": (lambda p: {**p.step}, {"loss": 0.5}),
    "*": (lambda p: [*p.step], ["loss"]),
    "sorted": (lambda p: sorted(p), ["step"]),
    "ChainMap": (lambda p: collections.ChainMap(p.step)["secret"], DENIED),
    "inspect.getmembers": (lambda p: SECRET in repr(inspect.getmembers(p)), False),
    "dataclasses.asdict": (lambda p: dataclasses.asdict(p.options), TypeError),
    "dataclasses.astuple": (lambda p: dataclasses.astuple(p.options), TypeError),
    "dataclasses.fields": (lambda p: dataclasses.fields(p.options), TypeError),
    "dataclasses.replace": (lambda p: dataclasses.replace(p.options, rate=1), TypeError),
    "json": (json.dumps, TypeError),
    "json, by attributes": (lambda p: json.dumps(p, default=lambda o: o.__dict__), DENIED),
    # text
    "repr": (lambda p: SECRET in repr(p) + repr(p.step), False),
    "str": (lambda p: SECRET in str(p) + str(p.step), False),
    "f-string": (lambda p: SECRET in f"{p} {p.step} {p.step!r}", False),
    "pprint": (lambda p: SECRET in pprint.pformat([p, p.step]), False),
    "repr of keys": (lambda p: SECRET in repr(p.step.keys()), False),
    # copies
    "copy": (copy.copy, DENIED),
    "deepcopy": (copy.deepcopy, DENIED),
    "copy of a part": (lambda p: copy.copy(p.step), DENIED),
    "deepcopy of a part": (lambda p: copy.deepcopy(p.step), DENIED),
    "deepcopy in a container": (lambda p: copy.deepcopy([p.step]), DENIED),
    "pickle": (pickle.dumps, DENIED),
    "pickle of a part": (lambda p: pickle.dumps({"step": p.step}), DENIED),
    "__reduce_ex__": (lambda p: p.__reduce_ex__(4), DENIED),
    "__reduce__": (lambda p: p.__reduce__(), DENIED),
    "__getstate__": (lambda p: getattr(p, "__getstate__", dict)(), DENIED),
    # identity, comparison
    "weakref": (lambda p: weakref.ref(p)() is p, True),
    "weakref proxy": (lambda p: weakref.proxy(p).secret, DENIED),
    "type": (type, Protected),
    "__class__": (lambda p: p.__class__, Protected),
    "isinstance": (lambda p: isinstance(p, Learner) or isinstance(p.step, State), False),
    "bool": (bool, True),
    "bool of a part": (lambda p: bool(p.step), True),
    "hash": (lambda p: hash(p) == hash(p), True),
    # writing
    "set": (lambda p: setattr(p, "secret", 1), DENIED),
    "set item": (lambda p: p.__setitem__("secret", 1), DENIED),
    "set nested": (lambda p: setattr(p.step, "secret", 1), DENIED),
    "set new": (lambda p: setattr(p, "brand_new", 1), DENIED),
    "set __class__": (lambda p: setattr(p, "__class__", Learner), DENIED),
    "set __dict__": (lambda p: setattr(p, "__dict__", {}), DENIED),
    "set a slot": (lambda p: setattr(p, "target", 1), DENIED),
    "delete": (lambda p: delattr(p, "secret"), DENIED),
    "delete item": (lambda p: p.__delitem__("secret"), DENIED),
    "delete nested": (lambda p: operator.delitem(p.step, "loss"), DENIED),
    "augmented": (lambda p: exec("p.step.loss += 1", {"p": p}), DENIED),
    "augmented item": (lambda p: exec("p.step['loss'] += 1", {"p": p}), DENIED),
    "augmented, itself": (lambda p: operator.iadd(p.step, [1]), TypeError),
    "update": (lambda p: p.step.update(loss=1), DENIED),
    "vars update": (lambda p: vars(p.step).update(loss=1), DENIED),
    "pop": (lambda p: p.step.pop("loss"), DENIED),
    "setdefault": (lambda p: p.step.setdefault("loss", 1), DENIED),
    "clear": (lambda p: p.step.clear(), DENIED),
    "dict |=": (lambda p: operator.ior(p.step, {"loss": 1}), TypeError),
    "for target": (lambda p: exec("for p.step.loss in [1]: pass", {"p": p}), DENIED),
    "with target": (
        lambda p: exec("import contextlib\nwith contextlib.nullcontext(1) as p.secret: pass", {"p": p}),
        DENIED,
    ),
}


class Nosy:
    """Keeps what it is compared with."""

    def __init__(self):
        self.seen = []

    def __eq__(self, other):
        self.seen.append(other)
        return False

    __hash__ = None


@pytest.fixture(params=["on", "strict"])
def proxy(request, protected):
    learner = Learner()
    proxy = protected(learner, {"step": {"loss": Read()}}, request.param, lambda value: ())
    yield proxy
    assert (learner.step, learner.secret) == ({"loss": 0.5, "secret": SECRET}, SECRET)
    assert type(learner) is Learner


def test_there_are_many():
    assert len(ACCIDENTS) >= 40


@pytest.mark.parametrize("name", ACCIDENTS)
def test_accident(name, proxy):
    attempt, outcome = ACCIDENTS[name]
    if isinstance(outcome, type) and issubclass(outcome, Exception):
        with pytest.raises(outcome) as caught:
            attempt(proxy)
        assert SECRET not in str(caught.value)
        if outcome is DENIED:
            assert str(caught.value).startswith(("Read access to Learner", "Write access to Learner"))
    else:
        assert attempt(proxy) == outcome


def test_match_statements_see_what_is_declared(proxy):
    match proxy:
        case Learner():
            pytest.fail("a proxy is no learner")
        case {"secret": secret}:
            pytest.fail(secret)
        case Protected(step=step):
            assert step.loss == 0.5


def test_a_match_statement_that_asks_for_more_fails(proxy):
    def ask():
        match proxy:
            case Protected(secret=secret):
                pytest.fail(secret)

    with pytest.raises(DENIED, match=r"^Read access to Learner\.secret disallowed\."):
        ask()


def test_comparison_hands_out_nothing(proxy):
    nosy = Nosy()
    assert proxy != nosy
    assert proxy.step != nosy
    assert all(type(seen) is Protected for seen in nosy.seen)


def test_a_declared_name_that_is_absent_is_absent(protected):
    learner = Learner()
    proxy = protected(learner, {"step": {"missing": Read()}, "gone": Read()})
    assert getattr(proxy.step, "missing", 7) == proxy.step.get("missing", 7) == getattr(proxy, "gone", 7) == 7
    assert not hasattr(proxy.step, "missing")
    assert not hasattr(proxy, "gone")


def test_an_object_that_is_passed_on_is_still_protected(protected, printer):
    """A callback that calls another hook passes its proxy on: the next one gets its own rights, not both."""
    learner = Learner()
    proxy = protected(learner, {"step": {"loss": Read()}})
    other = printer({"secret": Read()})
    guard = Guard()
    guard.arrange([other])
    handed = guard.adapt(other, "on_custom", "learner")(proxy)
    assert handed.secret == SECRET
    with pytest.raises(DENIED, match=r"^Read access to Learner\.step\.loss disallowed\. Printer read it in on_custom"):
        handed.step.loss  # noqa: B018
    assert guard.adapt(other, "on_custom", "learner")(learner) is handed
