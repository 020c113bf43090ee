"""What a callback receives: what its signature takes of a call, as with Lightning where that keeps to its rule."""

from __future__ import annotations

import functools
import inspect
import keyword
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.fabric as theirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fabric_lite as ours

LIBRARIES = (theirs, ours)

# Among them those that a dispatcher might use for itself.
NAMES = ["a", "b", "c", "d", "args", "kwargs", "bus", "hook", "self", "hook_name", "v0", "f0", "error", "i", "f"]
UNUSUAL = ["class", "not a name", "1", "ünïcode", ""]
names = st.sampled_from(NAMES[:3]) | st.sampled_from(NAMES)  # a few often, so that calls and signatures meet
FORMS = ["method", "static", "class", "attribute", "object", "partial", "partialmethod", "wrapped", "type", "lambda"]


@dataclass
class Spec:
    """A random callable: its parameters as source, how it is attached, and what a partial has bound already."""

    parameters: str
    form: str
    bound: int
    bound_keywords: tuple[str, ...]


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    chosen = draw(st.lists(names, unique=True, max_size=5))
    kinds = sorted(draw(st.lists(st.integers(0, 2), min_size=len(chosen), max_size=len(chosen))))
    optional = [draw(st.booleans()) for _ in chosen]
    positional = sum(kind < 2 for kind in kinds)
    first_optional = next((i for i in range(positional) if optional[i]), positional)
    defaults = [optional[i] if i >= positional else i >= first_optional for i in range(len(chosen))]
    parts = [name + ("='default'" if default else "") for name, default in zip(chosen, defaults, strict=True)]
    free = [name for name in ("args", "rest", "kwargs", "more") if name not in chosen]
    source = parts[: kinds.count(0)] + (["/"] if 0 in kinds else []) + parts[kinds.count(0) : positional]
    several = draw(st.booleans())
    if several:
        source.append("*" + free[0])
    elif positional < len(chosen):
        source.append("*")
    source += parts[positional:]
    if draw(st.booleans()):
        source.append("**" + free[-1])
    bound = draw(st.integers(0, 1)) if positional or several else 0
    by_keyword = [chosen[i] for i, kind in enumerate(kinds) if kind > 0 and (i > 0 or not bound)]
    bound_keywords = draw(st.lists(st.sampled_from(by_keyword), unique=True, max_size=2)) if by_keyword else []
    return Spec(", ".join(source), draw(st.sampled_from(FORMS)), bound, tuple(bound_keywords))


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
calls: st.SearchStrategy[Arguments] = st.tuples(
    st.lists(st.integers(), max_size=3).map(tuple),
    st.dictionaries(names | st.sampled_from(UNUSUAL), st.integers(), max_size=6),
)


def build(spec: Spec, log: list[Any]) -> Any:
    """A callback whose hook `on_event` notes what it receives."""
    scope: dict[str, Any] = {"log": log, "name": f"callback {id(spec)}"}
    receives = spec.form not in ("static", "attribute", "partial", "lambda")
    parameters = ", ".join(filter(None, ["this" if receives else "", spec.parameters]))
    note = "log.append({k: v for k, v in locals().items() if k not in ('this', '__class__')})"
    if spec.form == "lambda":
        log_all = "{" + ", ".join(f"{n!r}: {n}" for n in inspect.signature(_of(spec.parameters)).parameters) + "}"
        exec(f"function = lambda {spec.parameters}: log.append({log_all})", scope)
    else:
        exec(f"def function({parameters}):\n    {note}", scope)
    function = scope["function"]
    bound = partial(function, *["bound"] * spec.bound, **dict.fromkeys(spec.bound_keywords, "bound"))
    if spec.form in ("attribute", "partial", "lambda"):
        return types.SimpleNamespace(on_event=bound if spec.form == "partial" else function)
    if spec.form == "object":
        return types.SimpleNamespace(on_event=type("Callable", (), {"__call__": function})())
    if spec.form == "type":
        return type("Callback", (), {"on_event": type("Made", (), {"__init__": function})})()
    attached: dict[str, Any] = {
        "method": function,
        "static": staticmethod(function),
        "class": classmethod(function),
        "wrapped": decorated(function),
        "partialmethod": functools.partialmethod(
            function, *["bound"] * spec.bound, **dict.fromkeys(spec.bound_keywords, "bound")
        ),
    }
    return type("Callback", (), {"on_event": attached[spec.form]})()


def _of(parameters: str) -> Callable[..., Any]:
    return eval(f"lambda {parameters}: None")  # type: ignore[no-any-return]


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def accepts(signature: inspect.Signature, name: str) -> bool:
    """Whether `inspect` binds a keyword. No keyword fills a positional-only parameter, but `bind` trips over them."""
    by_keyword = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    try:
        signature.replace(parameters=by_keyword).bind_partial(**{name: None})
    except TypeError:
        return False
    return True


def outcome(function: Callable[[], Any]) -> type | None:
    """The type of what a function raises."""
    try:
        function()
    except Exception as error:
        return type(error)
    return None


def expected(callbacks: list[Any], log: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the methods by hand with what `inspect` says that they accept."""

    def by_hand() -> None:
        for callback in callbacks:
            signature = inspect.signature(callback.on_event)
            callback.on_event(*args, **{name: value for name, value in kwargs.items() if accepts(signature, name)})

    return outcome(by_hand), take(log)


def take(log: list[Any]) -> list[Any]:
    taken = list(log)
    log.clear()
    return taken


@given(specs=st.lists(specs(), min_size=1, max_size=4), calls=st.lists(calls, min_size=1, max_size=3))
def test_a_callback_receives_what_its_signature_binds(specs: list[Spec], calls: list[Arguments]) -> None:
    log: list[Any] = []
    callbacks = [build(spec, log) for spec in specs]
    fabric = ours.Fabric(accelerator="cpu", devices=1, callbacks=callbacks)
    for args, kwargs in [*calls, *calls]:  # the second time, what was learnt from the first is used
        error = outcome(lambda args=args, kwargs=kwargs: fabric.call("on_event", *args, **kwargs))
        assert (error, take(log)) == expected(callbacks, log, args, kwargs)


def keeps_its_rule(callback: Any, kwargs: dict[str, Any]) -> bool:
    """Lightning also passes, by keyword, what only a position or `*args` would take."""
    parameters = inspect.signature(callback.on_event).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters) or not any(
        p.name in kwargs for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)
    )


@given(specs=st.lists(specs(), min_size=1, max_size=3), calls=st.lists(calls, min_size=1, max_size=3))
def test_a_callback_receives_what_lightning_passes(specs: list[Spec], calls: list[Arguments]) -> None:
    log: list[Any] = []
    callbacks = [build(spec, log) for spec in specs]
    their, our = (library.Fabric(accelerator="cpu", devices=1, callbacks=callbacks) for library in LIBRARIES)
    for args, given_kwargs in calls:
        # They are parameters of Lightning's own `call`, so nobody can pass them there.
        kwargs = {name: value for name, value in given_kwargs.items() if name not in ("self", "hook_name")}
        if not all(keeps_its_rule(callback, kwargs) for callback in callbacks):
            continue
        results = []
        for fabric in (their, our):
            error = outcome(lambda fabric=fabric, args=args, kwargs=kwargs: fabric.call("on_event", *args, **kwargs))
            results.append((error, take(log)))
        assert results[0] == results[1]


@given(name=st.sampled_from([*NAMES, *UNUSUAL, "on_train_batch_end", "before play", *keyword.kwlist]))
def test_any_name_is_a_hook(name: str) -> None:
    for library in LIBRARIES:
        seen: list[Any] = []
        callback = types.SimpleNamespace()
        setattr(callback, name, lambda x, seen=seen: seen.append(x))
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=[callback, object(), callback])
        fabric.call(name, x=1, y=2)
        fabric.call(name, 2)
        fabric.call(name + " no more", x=3)
        assert seen == [1, 1, 2, 2]


def test_builtins_without_a_signature_get_everything() -> None:
    for library in LIBRARIES:
        store: dict[str, int] = {}
        assert outcome(lambda store=store: inspect.signature(store.update)) is ValueError
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=types.SimpleNamespace(on_event=store.update))
        fabric.call("on_event", a=1, b=2)
        assert store == {"a": 1, "b": 2}


def test_what_is_not_callable_is_skipped_with_a_warning() -> None:
    for library in LIBRARIES:
        seen: list[int] = []
        last = types.SimpleNamespace(on_event=partial(seen.append, 1))
        callbacks = [types.SimpleNamespace(on_event=3), types.SimpleNamespace(on_event=None), last]
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=callbacks)
        with pytest.warns(UserWarning, match="SimpleNamespace.on_event.*not callable"):
            fabric.call("on_event")
        assert seen == [1]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration(3), SystemExit(2)])
def test_an_exception_reaches_the_caller_and_ends_the_call(error: BaseException) -> None:
    def fail() -> None:
        raise error

    for library in LIBRARIES:
        seen: list[int] = []
        hooks = (partial(seen.append, 1), fail, partial(seen.append, 2))
        callbacks = [types.SimpleNamespace(on_event=hook) for hook in hooks]
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=callbacks)
        with pytest.raises(type(error)) as caught:
            fabric.call("on_event")
        assert caught.value is error
        assert seen == [1]


def test_a_method_that_is_replaced_later_is_called() -> None:
    for library in LIBRARIES:
        seen: list[Any] = []

        class Callback:
            def on_event(self, x: int, seen: list[Any] = seen) -> None:
                seen.append(("first", x))

        def of_class(self: Any, y: int, seen: list[Any] = seen) -> None:
            seen.append(("class", y))

        def of_instance(x: int, y: int, seen: list[Any] = seen) -> None:
            seen.append(("instance", x, y))

        callback, original = Callback(), Callback.on_event
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=callback)
        fabric.call("on_event", x=1, y=2)
        Callback.on_event = of_class  # type: ignore[assignment, method-assign]
        fabric.call("on_event", x=1, y=2)
        callback.on_event = of_instance  # type: ignore[assignment, method-assign]
        fabric.call("on_event", x=1, y=2)
        del callback.on_event
        Callback.on_event = original  # type: ignore[method-assign]
        fabric.call("on_event", x=1, y=2)
        assert seen == [("first", 1), ("class", 2), ("instance", 1, 2), ("first", 1)]


class Everything:
    """Notes the hooks that Fabric itself calls."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        self.seen.append(("step", strategy, optimizer))

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        self.seen.append(("setup", fabric, module))


def test_the_hooks_that_fabric_itself_calls() -> None:
    for library in LIBRARIES:
        callback = Everything()
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=[callback])
        model = nn.Linear(1, 1)
        bare = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = fabric.setup(model, bare)
        other = fabric.setup_optimizers(torch.optim.Adam(model.parameters()))
        optimizer.step()
        other.step()
        optimizer.step(lambda: 1.0)
        steps = [(kind, strategy, type(each)) for kind, strategy, each in callback.seen[1:]]
        assert callback.seen[0] == ("setup", fabric, model)
        assert callback.seen[1][2] is bare
        kinds = [torch.optim.SGD, torch.optim.Adam, torch.optim.SGD]
        assert steps == [("step", fabric.strategy, kind) for kind in kinds]


def test_a_module_set_up_alone_is_announced_here_only() -> None:
    """Lightning forgets it in `setup_module`."""
    seen = []
    for library in LIBRARIES:
        callback = Everything()
        library.Fabric(accelerator="cpu", devices=1, callbacks=[callback]).setup_module(nn.Linear(1, 1))
        seen.append(len(callback.seen))
    assert seen == [0, 1]


def test_the_list_of_the_caller_stays_as_it_is() -> None:
    """Lightning keeps the very list, so that what it adds, and what the caller adds later, show up on both sides."""
    for library in LIBRARIES:
        mine: list[Any] = [Everything()]
        fabric = library.Fabric(accelerator="cpu", devices=1, callbacks=mine)
        mine.append(Everything())
        assert len(fabric._callbacks) == (2 if library is theirs else 1)
        fabric._callbacks = [*mine, Everything()]
        fabric.call("on_after_setup", fabric=1, module=2)
        assert [len(callback.seen) for callback in fabric._callbacks] == [1, 1, 1]
