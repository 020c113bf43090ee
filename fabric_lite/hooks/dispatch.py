"""How one hook reaches many callbacks: call by call, or through a function written for just these callbacks.

Invariants, for both ways:
    1. Callbacks run in order; the list is the one that stood when the call began.
    2. What is called is the attribute that the callback has *now*; what it takes is read once per function.
    3. All positional arguments are passed, and of the keyword arguments those that the signature takes.
    4. An exception leaves as it was raised, with a note that names callback and hook.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from keyword import iskeyword
from typing import Any, NamedTuple, Protocol

from fabric_lite.events import Phase
from fabric_lite.hooks.signature import accepted

Adapter = Callable[[Any], Any]
"""Turns the value of an argument into what one callback gets for it (the permission layer hands out a proxy)."""

Adapt = Callable[[Any, str, str], "Adapter | None"]
"""``adapt(callback, hook, parameter)``: that of a `Guard`."""


class Call(NamedTuple):
    """One method of one callback with the arguments that it takes, ready to run."""

    callback: Any
    hook: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> None:
        """Run it; an exception gets a note that names callback and hook."""
        try:
            self.function(*self.args, **self.kwargs)
        except BaseException as error:
            annotate(error, self.callback, self.hook)
            raise


class Independence(Protocol):
    """What an executor asks of a callback graph."""

    def independent(self, one: Any, other: Any) -> bool:
        """Whether two callbacks may run at the same time."""


class Executor(Protocol):
    """Runs the calls of one hook. Which callbacks are called, and with what, is decided before it is asked.

    It must keep what serial execution promises: of two calls whose callbacks are not independent, the one that comes
    first has ended before the other one begins, and of several exceptions that of the first call is raised.
    """

    def run(self, calls: Sequence[Call], graph: Independence) -> None:
        """Make the calls.

        Args:
            calls: The calls, in serial order.
            graph: Tells which of them may run at the same time.
        """


class Guard(Protocol):
    """The permission layer, as the bus sees it."""

    @property
    def graph(self) -> Any:
        """The callback graph of the last valid arrangement."""

    @property
    def watches(self) -> bool:
        """Whether calls are made through `around`."""

    def arrange(self, callbacks: Sequence[Any]) -> Sequence[Any]:
        """The callbacks in the order in which they run; raises if there is none, and nothing has changed then."""

    def adapt(self, callback: Any, hook: str, parameter: str) -> Adapter | None:
        """What turns the value of an argument into what the callback gets for it; None to pass it as it is."""

    def around(self, callback: Any, hook: str, call: Callable[[], Any]) -> Any:
        """Make a call, and look at what it did."""

    def attach(self, learner: Any) -> None:
        """Let guarded callbacks meet a learner."""


def unwrap(callback: Any) -> Any:
    """The callback inside of a conditional one, whose class says so by `wraps_callback`; any other as it is."""
    while getattr(type(callback), "wraps_callback", False):
        callback = callback.callback
    return callback


def annotate(error: BaseException, callback: Any, hook: str) -> None:
    """Say in the traceback which callback and hook an exception came from (Python 3.11 and later)."""
    if sys.version_info >= (3, 11):
        error.add_note(f"raised by the callback `{type(unwrap(callback)).__name__}` in its hook `{hook}`")


def bind(
    callback: Any,
    hook: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    guard: Guard | None = None,
) -> Call:
    """Choose the arguments that a callback's method takes.

    Args:
        callback: The callback.
        hook: Name of the hook.
        function: What the callback has under that name.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        guard: Exchanges arguments, and watches the call, when it is made.

    Returns:
        The call, ready to run.
    """
    takes = accepted(function)
    chosen = {name: kwargs[name] for name in takes.select(kwargs)}
    if guard is not None:
        by_name = {name: a for name in chosen if (a := guard.adapt(callback, hook, name)) is not None}
        by_place = [guard.adapt(callback, hook, name) for name in takes.positional[: len(args)]]
        if guard.watches:
            function = partial(_watched, guard, callback, hook, function)
        if by_name or any(by_place):
            function = partial(_adapted, function, by_name, by_place)
    return Call(callback, hook, function, args, chosen)


def _adapted(
    function: Callable[..., Any],
    by_name: dict[str, Adapter],
    by_place: list[Adapter | None],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Make a call with other arguments: exchanged now, as an earlier callback may have changed what they stand for."""
    for name, adapter in by_name.items():
        kwargs[name] = adapter(kwargs[name])
    adapted = [value if adapter is None else adapter(value) for value, adapter in zip(args, by_place, strict=False)]
    return function(*adapted, *args[len(adapted) :], **kwargs)


def _watched(guard: Guard, callback: Any, hook: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Make a call through a guard that looks at what it did."""
    return guard.around(callback, hook, lambda: function(*args, **kwargs))


def find(callback: Any, names: Sequence[str]) -> tuple[str, Any]:
    """The first of several names under which a callback has something, and what it has there.

    Args:
        callback: The callback.
        names: Names, the most specific first.

    Returns:
        The name and the attribute; the last name and None if it has none.
    """
    for name in names:
        if (function := getattr(callback, name, None)) is not None:
            return name, function
    return names[-1], None


Compiled = Callable[[Any, "tuple[Any, ...]", "dict[str, Any]"], bool]
"""``compiled(bus, args, kwargs)``: run the hook; False, with nothing run, if the call has another shape."""


def can_compile(names: Sequence[str], kwargs: dict[str, Any]) -> bool:
    """Whether all names of a call can be written into source code."""
    return all(name.isidentifier() and not iskeyword(name) for name in (*names, *kwargs))


def compile_hook(
    names: Sequence[str],
    order: Sequence[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    adapt: Adapt | None,
    phase: type | None = None,
) -> Compiled:
    """Write the function that calls one hook on these callbacks, for calls of one shape.

    A loop pays for ``getattr``, the comparison with what is known, a filtered dict and a call with ``**``: six times
    the price of calling the methods by hand. Written out, the interpreter's inline caches and plain keyword calls
    bring it to about three. The source for ``call("on_end", loss=...)`` and one callback reads::

        def run(bus, args, kwargs):
            if len(args) != 0 or len(kwargs) != 1: return False
            try: v0 = kwargs['loss']
            except KeyError: return False
            i = 0
            try:
                try: f = c0.on_end
                except AttributeError: f = None
                if f == f0: f(loss=v0)
                elif f is not None:
                    bus.changed(c0, 'on_end', 'on_end', f, args, kwargs)
            except BaseException as error:
                annotate(error, callbacks[i], hooks[i]); raise
            return True

    Where a callback had no such method, only the look-up is written: one that gets it later is noticed.

    Args:
        names: Names of the hook, identifiers: that of the event last, before it those for its phase, if it has one.
        order: The callbacks, in order.
        args: Positional arguments of the call that asks for it; their number counts.
        kwargs: Keyword arguments of that call; their names count, and must be identifiers.
        adapt: Gives the adapter of a parameter.
        phase: Class of the argument ``phase``, where the names depend on it.

    Returns:
        A function of ``(bus, args, kwargs)``. ``bus.changed(callback, name, hook, function, args, kwargs)`` is called
        in the place of a method that is not the one it was written for.
    """
    hook = names[-1]
    if all(find(callback, names)[1] is None for callback in order):
        return _idle(hook, tuple(order)) if phase is None else _idle_in_phase(names, tuple(order), phase)
    scope: dict[str, Any] = {"callbacks": tuple(order), "annotate": annotate, "find": find, "names": tuple(names)}
    scope["hooks"] = tuple(find(callback, names)[0] for callback in order)
    values = {name: f"v{i}" for i, name in enumerate(kwargs)}
    lines = [f"if len(args) != {len(args)} or len(kwargs) != {len(kwargs)}: return False"]
    if kwargs:
        lines += ["try: " + "; ".join(f"{v} = kwargs[{name!r}]" for name, v in values.items())]
        lines += ["except KeyError: return False"]
    if phase is not None:
        scope["phase"] = phase
        lines += [f"if type({values['phase']}) is not phase: return False"]
    if args:
        lines += ["".join(f"p{i}, " for i in range(len(args))) + "= args"]
    lines += ["i = 0", "try:", "    pass"]
    for i, callback in enumerate(order):
        scope[f"c{i}"] = callback
        name, function = find(callback, names)
        lines += [f"    i = {i}"]
        if callable(function):
            scope[f"f{i}"] = function
            passed = _arguments(f"a{i}_", callback, name, function, len(args), values, adapt, scope)
            lines += _look_up(f"c{i}", names[: names.index(name) + 1])
            lines += [f"    if f == f{i}: f({passed})"]
            lines += ["    else:"] if len(names) > 1 else ["    elif f is not None:"]
        else:
            lines += [*_look_up(f"c{i}", names), "    if f is not None:"]
        if len(names) > 1:
            lines += [f"        name, f = find(c{i}, names)"]
            lines += [f"        if f is not None: bus.changed(c{i}, name, {hook!r}, f, args, kwargs)"]
        else:
            lines += [f"        bus.changed(c{i}, {hook!r}, {hook!r}, f, args, kwargs)"]
    lines += ["except BaseException as error:", "    annotate(error, callbacks[i], hooks[i])", "    raise"]
    lines += ["return True"]
    source = f"def make({', '.join(scope)}):\n def run(bus, args, kwargs):\n"
    source += "".join(f"  {line}\n" for line in lines) + " return run"
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<hook {hook}>", "exec"), namespace)
    # popped, so that the function does not keep itself alive through its globals
    compiled: Compiled = namespace.pop("make")(**scope)
    return compiled


def _look_up(callback: str, names: Sequence[str]) -> list[str]:
    """Source that puts into ``f`` the first attribute that a callback has of several, or None."""
    if len(names) == 1:
        return [f"    try: f = {callback}.{names[0]}", "    except AttributeError: f = None"]
    lines = [f"    f = getattr({callback}, {names[0]!r}, None)"]
    lines += [f"    if f is None: f = getattr({callback}, {name!r}, None)" for name in names[1:]]
    return lines


def _idle(hook: str, order: tuple[Any, ...]) -> Compiled:
    """The function for a hook that no callback has, whatever the arguments: it looks whether one has got it."""

    def run(bus: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if "phase" in kwargs and isinstance(kwargs["phase"], Phase):  # reaches methods of other names, too
            return False
        for callback in order:
            if getattr(callback, hook, None) is not None:
                bus.forget(hook)
                return False
        return True

    return run


def _idle_in_phase(names: Sequence[str], order: tuple[Any, ...], phase: type) -> Compiled:
    """The same, for an event in a phase."""

    def run(bus: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if type(kwargs.get("phase")) is not phase:
            return False
        if any(find(callback, names)[1] is not None for callback in order):
            bus.forget(names[-1])
            return False
        return True

    return run


def _arguments(
    prefix: str,
    callback: Any,
    hook: str,
    function: Callable[..., Any],
    number: int,
    values: dict[str, str],
    adapt: Adapt | None,
    scope: dict[str, Any],
) -> str:
    """The arguments of one method's call as source; adapters are put into the scope that the source sees."""
    takes = accepted(function)

    def source(parameter: str | None, value: str) -> str:
        adapter = adapt(callback, hook, parameter) if adapt is not None and parameter is not None else None
        if adapter is None:
            return value
        scope[prefix + value] = adapter
        return f"{prefix}{value}({value})"

    landed: list[str | None] = [*takes.positional[:number], *[None] * (number - len(takes.positional))]
    passed = [source(parameter, f"p{i}") for i, parameter in enumerate(landed)]
    passed += [f"{name}={source(name, values[name])}" for name in takes.select(values)]
    return ", ".join(passed)
