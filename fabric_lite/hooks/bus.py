"""Calling: from the name of a hook to the methods of the callbacks."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from fabric_lite.events import Phase, method_names
from fabric_lite.hooks.dispatch import Call, Compiled, Executor, Guard, bind, can_compile, compile_hook, find

# Beyond these, a hook's calls change too much for written-out code to pay: they are bound one by one instead.
_MOST_SHAPES = 8
_MOST_REPLACEMENTS = 8


class HookBus:
    """Calls a method by its name on each of an ordered set of objects that has one.

    Args:
        executor: Runs the calls of a hook. By default they run one after the other.
        carry: Takes note of what libraries keep for each thread, and returns a context manager under which it holds in
            another one. Asked for each call that an executor runs.

    Attributes:
        order: The callbacks in the order in which they run.
        latest: For each hook, the function for calls of the shape that was seen last. Public, with `call_new_shape`,
            for `Fabric.call`, which would pay for one more function call in each step.
    """

    order: tuple[Any, ...]

    def __init__(
        self, *, executor: Executor | None = None, carry: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self._guard: Guard | None = None
        self._executor = executor
        self._carry = carry
        self._called: dict[str, None] = {}
        self._warned: list[tuple[Any, str]] = []
        self._set_order(())

    def call(self, hook_name: str, /, *args: Any, **kwargs: Any) -> None:
        """Call a method by its name on each callback that has one.

        Args:
            hook_name: Name of the method.
            *args: Passed to each as they are.
            **kwargs: Of these, each gets those that its signature takes.
        """
        self.dispatch(hook_name, args, kwargs)

    def dispatch(self, hook: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`call`, for those who hold the arguments as a tuple and a dictionary already."""
        compiled = self.latest.get(hook)
        if compiled is None or not compiled(self, args, kwargs):
            self.call_new_shape(hook, args, kwargs)

    def _set_order(self, order: Iterable[Any]) -> None:
        """Call these from now on. A running hook goes on with the function, and so the list, that it began with."""
        self.order = tuple(order)
        self._tracer = next(
            (callback for callback in self.order if getattr(type(callback), "traces_hooks", False)), None
        )
        self.latest: dict[str, Compiled] = {}
        self._shapes: dict[str, dict[tuple[int, frozenset[str], type | None], Compiled]] = {}
        self._replaced: Counter[str] = Counter()
        self._warned = [(c, hook) for c, hook in self._warned if any(c is other for other in self.order)]

    def call_new_shape(self, hook: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call a hook whose last call, if there was one, had other arguments."""
        given = kwargs.get("phase")
        phase: Any = type(given) if isinstance(given, Phase) else None
        names = (hook,) if phase is None else method_names(hook, phase)
        self._called.update(dict.fromkeys(names))
        shapes = self._shapes.setdefault(hook, {})
        shape = (len(args), frozenset(kwargs), phase)
        compiled = shapes.get(shape)
        if compiled is None and len(shapes) < _MOST_SHAPES and self._compiles(hook, names, kwargs):
            adapt = None if self._guard is None else self._guard.adapt
            compiled = shapes[shape] = compile_hook(names, self.order, args, kwargs, adapt, phase)
        if compiled is None:
            self._call_each(names, args, kwargs)
        else:
            self.latest[hook] = compiled
            if not compiled(self, args, kwargs):  # written when nobody had this hook, and now somebody has
                self.call_new_shape(hook, args, kwargs)

    def _compiles(self, hook: str, names: Sequence[str], kwargs: dict[str, Any]) -> bool:
        watched = self._guard is not None and self._guard.watches
        one_by_one = self._executor is not None or self._tracer is not None or watched
        return not one_by_one and self._replaced[hook] < _MOST_REPLACEMENTS and can_compile(names, kwargs)

    def _call_each(self, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call a hook callback by callback, or hand all the calls to the executor."""
        if self._executor is not None:
            bound = [self._bind(callback, *find(callback, names), args, kwargs) for callback in self.order]
            calls = [c._replace(function=partial(_carried, self._carry(), c.function)) for c in bound if c is not None]
            self._executor.run(calls, self.graph)
            return
        for callback in self.order:
            if (call := self._bind(callback, *find(callback, names), args, kwargs)) is not None:
                call()

    def forget(self, hook: str) -> None:
        """Look at the callbacks anew when this hook is called next."""
        self.latest.pop(hook, None)
        self._shapes.pop(hook, None)

    def changed(
        self, callback: Any, name: str, hook: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Called by written-out code in the place of a method that is not the one it was written for."""
        call = self._bind(callback, name, function, args, kwargs)
        if call is not None:
            self._replaced[hook] += 1
            self.forget(hook)
            call.function(*call.args, **call.kwargs)

    def _bind(
        self, callback: Any, hook: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        if callable(function):
            call = bind(callback, hook, function, args, kwargs, self._guard)
            if self._tracer is not None:
                call = call._replace(function=partial(self._tracer.trace, callback, hook, call.function))
            return call
        if function is not None and not any(c is callback and h == hook for c, h in self._warned):
            self._warned.append((callback, hook))
            warnings.warn(
                f"`{type(callback).__name__}.{hook}` is {function!r}, which is not callable: the hook `{hook}` skips"
                " this callback. Make it a method, or give the attribute another name.",
                stacklevel=6,
            )
        return None

    @property
    def graph(self) -> Any:
        """Which callback runs before which, and why: a `fabric_lite.CallbackGraph`."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "latest": {}, "_shapes": {}}  # written-out code is not pickled, nor copied


def _carried(context: AbstractContextManager[Any], function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Make a call under what was carried over from the thread of the hook."""
    with context:
        function(*args, **kwargs)
