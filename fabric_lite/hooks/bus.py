"""Calling: from the name of a hook to the methods of the callbacks."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

from fabric_lite.hooks.dispatch import Adapt, Call, Compiled, Executor, bind, can_compile, compile_hook

# Beyond these, a hook's calls change too much for written-out code to pay: they are bound one by one instead.
_MOST_SHAPES = 8
_MOST_REPLACEMENTS = 8


class HookBus:
    """Calls a method by its name on each of an ordered set of objects that has one.

    Args:
        adapt: Gives, for a callback, hook and parameter, a function to apply to the argument, or None.
        executor: Runs the calls of a hook. By default they run one after the other.

    Attributes:
        order: The callbacks in the order in which they run.
    """

    order: tuple[Any, ...]

    def __init__(self, *, adapt: Adapt | None = None, executor: Executor | None = None) -> None:
        self._adapt = adapt
        self._executor = executor
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
        compiled = self._latest.get(hook)
        if compiled is None or not compiled(self, args, kwargs):
            self._call_new_shape(hook, args, kwargs)

    def _set_order(self, order: Iterable[Any]) -> None:
        """Call these from now on. A running hook goes on with the function, and so the list, that it began with."""
        self.order = tuple(order)
        self._latest: dict[str, Compiled] = {}
        self._shapes: dict[str, dict[tuple[int, frozenset[str]], Compiled]] = {}
        self._replaced: Counter[str] = Counter()
        self._warned = [(c, hook) for c, hook in self._warned if any(c is other for other in self.order)]

    def _call_new_shape(self, hook: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call a hook whose last call, if there was one, had other arguments."""
        self._called[hook] = None
        shapes = self._shapes.setdefault(hook, {})
        shape = (len(args), frozenset(kwargs))
        compiled = shapes.get(shape)
        if compiled is None and len(shapes) < _MOST_SHAPES and self._compiles(hook, kwargs):
            compiled = shapes[shape] = compile_hook(hook, self.order, args, kwargs, self._adapt)
        if compiled is None:
            self._call_each(hook, args, kwargs)
        else:
            self._latest[hook] = compiled
            compiled(self, args, kwargs)

    def _compiles(self, hook: str, kwargs: dict[str, Any]) -> bool:
        return self._executor is None and self._replaced[hook] < _MOST_REPLACEMENTS and can_compile(hook, kwargs)

    def _call_each(self, hook: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call a hook callback by callback, or hand all the calls to the executor."""
        if self._executor is not None:
            bound = [self._bind(c, hook, getattr(c, hook, None), args, kwargs) for c in self.order]
            self._executor.run([call for call in bound if call is not None])
            return
        for callback in self.order:
            if (call := self._bind(callback, hook, getattr(callback, hook, None), args, kwargs)) is not None:
                call()

    def forget(self, hook: str) -> None:
        """Look at the callbacks anew when this hook is called next."""
        self._latest.pop(hook, None)
        self._shapes.pop(hook, None)

    def changed(self, callback: Any, hook: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called by written-out code in the place of a method that is not the one it was written for."""
        call = self._bind(callback, hook, function, args, kwargs)
        if call is not None:
            self._replaced[hook] += 1
            self.forget(hook)
            call.function(*call.args, **call.kwargs)

    def _bind(
        self, callback: Any, hook: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        if callable(function):
            return bind(callback, hook, function, args, kwargs, self._adapt)
        if function is not None and not any(c is callback and h == hook for c, h in self._warned):
            self._warned.append((callback, hook))
            warnings.warn(
                f"`{type(callback).__name__}.{hook}` is {function!r}, which is not callable: the hook `{hook}` skips"
                " this callback. Make it a method, or give the attribute another name.",
                stacklevel=6,
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": {}, "_shapes": {}}  # written-out code is not pickled, nor copied
