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
from keyword import iskeyword
from typing import Any, NamedTuple, Protocol

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

    def unwrap(self, callback: Any) -> Any:
        """The callback inside of a conditional one."""


def annotate(error: BaseException, callback: Any, hook: str) -> None:
    """Say in the traceback which callback and hook an exception came from (Python 3.11 and later)."""
    if sys.version_info >= (3, 11):
        error.add_note(f"raised by the callback `{type(callback).__name__}` in its hook `{hook}`")


def bind(
    callback: Any,
    hook: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    adapt: Adapt | None,
) -> Call:
    """Choose the arguments that a callback's method takes.

    Args:
        callback: The callback.
        hook: Name of the hook.
        function: What the callback has under that name.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        adapt: Gives the adapter of a parameter.

    Returns:
        The call, ready to run.
    """
    takes = accepted(function)
    chosen = {name: kwargs[name] for name in takes.select(kwargs)}
    if adapt is not None:
        for name in chosen:
            if (adapter := adapt(callback, hook, name)) is not None:
                chosen[name] = adapter(chosen[name])
        adapters = (adapt(callback, hook, name) for name in takes.positional[: len(args)])
        adapted = tuple(
            value if adapter is None else adapter(value) for value, adapter in zip(args, adapters, strict=False)
        )
        args = adapted + args[len(adapted) :]
    return Call(callback, hook, function, args, chosen)


Compiled = Callable[[Any, "tuple[Any, ...]", "dict[str, Any]"], bool]
"""``compiled(bus, args, kwargs)``: run the hook; False, with nothing run, if the call has another shape."""


def can_compile(hook: str, kwargs: dict[str, Any]) -> bool:
    """Whether all names of a call can be written into source code."""
    return all(name.isidentifier() and not iskeyword(name) for name in (hook, *kwargs))


def compile_hook(
    hook: str, order: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], adapt: Adapt | None
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
                elif f is not None: bus.changed(c0, hook, f, args, kwargs)
            except BaseException as error:
                annotate(error, callbacks[i], hook); raise
            return True

    Where a callback had no such method, only the look-up is written: one that gets it later is noticed.

    Args:
        hook: Name of the hook, an identifier.
        order: The callbacks, in order.
        args: Positional arguments of the call that asks for it; their number counts.
        kwargs: Keyword arguments of that call; their names count, and must be identifiers.
        adapt: Gives the adapter of a parameter.

    Returns:
        A function of ``(bus, args, kwargs)``. ``bus.changed(callback, hook, function, args, kwargs)`` is called in
        the place of a method that is not the one it was written for.
    """
    if all(getattr(callback, hook, None) is None for callback in order):
        return _idle(hook, tuple(order))
    scope: dict[str, Any] = {"hook": hook, "callbacks": tuple(order), "annotate": annotate}
    values = {name: f"v{i}" for i, name in enumerate(kwargs)}
    lines = [f"if len(args) != {len(args)} or len(kwargs) != {len(kwargs)}: return False"]
    if kwargs:
        lines += ["try: " + "; ".join(f"{v} = kwargs[{name!r}]" for name, v in values.items())]
        lines += ["except KeyError: return False"]
    if args:
        lines += ["".join(f"p{i}, " for i in range(len(args))) + "= args"]
    lines += ["i = 0", "try:", "    pass"]
    for i, callback in enumerate(order):
        scope[f"c{i}"] = callback
        function = getattr(callback, hook, None)
        lines += [f"    i = {i}"]
        if callable(function):
            scope[f"f{i}"] = function
            passed = _arguments(f"a{i}_", callback, hook, function, len(args), values, adapt, scope)
            lines += [
                f"    try: f = c{i}.{hook}",
                "    except AttributeError: f = None",
                f"    if f == f{i}: f({passed})",
            ]
            lines += [f"    elif f is not None: bus.changed(c{i}, hook, f, args, kwargs)"]
        else:
            lines += [
                f"    f = getattr(c{i}, hook, None)",
                f"    if f is not None: bus.changed(c{i}, hook, f, args, kwargs)",
            ]
    lines += ["except BaseException as error:", "    annotate(error, callbacks[i], hook)", "    raise", "return True"]
    source = f"def make({', '.join(scope)}):\n def run(bus, args, kwargs):\n"
    source += "".join(f"  {line}\n" for line in lines) + " return run"
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<hook {hook}>", "exec"), namespace)
    # popped, so that the function does not keep itself alive through its globals
    compiled: Compiled = namespace.pop("make")(**scope)
    return compiled


def _idle(hook: str, order: tuple[Any, ...]) -> Compiled:
    """The function for a hook that no callback has, whatever the arguments: it looks whether one has got it."""

    def run(bus: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        for callback in order:
            if getattr(callback, hook, None) is not None:
                bus.forget(hook)
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
