"""The live collection of callbacks that a `Fabric` holds."""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from fabric_lite.hooks.bus import HookBus
from fabric_lite.hooks.dispatch import Executor, Guard, unwrap


class Handle:
    """Takes a callback off again, by `remove()` or at the end of a ``with`` block."""

    def __init__(self, callbacks: Callbacks, callback: Any) -> None:
        self._callbacks = callbacks
        self.callback = callback

    def remove(self) -> None:
        """Take the callback off; does nothing if it has gone already."""
        self._callbacks.remove(self.callback)

    def __enter__(self) -> Any:
        return self.callback

    def __exit__(self, *_: object) -> None:
        self.remove()


class Uncalled(NamedTuple):
    """A method that looks like a hook, and that no call has reached.

    Attributes:
        callback: The callback that has it.
        hook: Its name.
        nearest: The most similar name that was called, if any is similar.
    """

    callback: Any
    hook: str
    nearest: str | None

    def __str__(self) -> str:
        hint = f" (did you mean `{self.nearest}`?)" if self.nearest else ""
        return f"`{type(unwrap(self.callback)).__name__}.{self.hook}` was never called{hint}"


class IncompatibleState(NamedTuple):
    """The keys that did not match when a state was loaded."""

    missing: list[str]
    unexpected: list[str]


class _Function:
    """A callback that is one plain function under the name of one hook."""

    def __init__(self, hook: str, function: Callable[..., Any]) -> None:
        self.__dict__[hook] = function

    def __repr__(self) -> str:
        return "".join(f"<{function!r} on {hook}>" for hook, function in vars(self).items())


class Callbacks(HookBus):
    """A live, ordered collection of any objects whose methods are called by name.

    Each change arranges the order anew. A change that cannot be arranged raises, and nothing has changed.

    Args:
        callbacks: One object, or a list or tuple of them, which is copied.
        make_guard: Makes the guard that arranges guarded callbacks and holds them to what they declared. It is asked
            for when the first of them comes: plain callbacks run as given, and need none.
        executor: Runs the calls of a hook. By default they run one after the other.
        carry: Carries over what libraries keep for each thread, for an executor.
    """

    def __init__(
        self,
        callbacks: Any = None,
        *,
        make_guard: Callable[[], Guard] | None = None,
        executor: Executor | None = None,
        carry: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__(executor=executor, carry=carry)
        self._make_guard = make_guard
        self._given: list[Any] = []
        self.set(callbacks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.order[index]

    def __contains__(self, callback: object) -> bool:
        return any(callback is other for other in self.order)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.order)!r})"

    def add(self, callback: Any) -> Handle:
        """Add a callback after the others.

        Args:
            callback: Any object.

        Returns:
            A handle that takes it off again.
        """
        self.set([*self._given, callback])
        return Handle(self, callback)

    append = add  # what a list calls it

    def on(self, hook_name: str, function: Callable[..., Any]) -> Handle:
        """Add a plain function as a callback.

        Args:
            hook_name: Name of the hook at which it is called.
            function: The function; of the keyword arguments it gets those that it takes.

        Returns:
            A handle that takes it off again.

        Raises:
            TypeError: If it cannot be called.
        """
        if not callable(function):
            raise TypeError(
                f"`callbacks.on({hook_name!r}, ...)` got {function!r}, which is not callable. Pass the function itself,"
                f" or an object with a method `{hook_name}` to `callbacks.add(...)`."
            )
        return self.add(_Function(hook_name, function))

    def remove(self, callback: Any) -> Any:
        """Take a callback off.

        Args:
            callback: The callback, or a type: then the first of that type goes.

        Returns:
            The callback that went, or None if there was none.
        """
        index = self._find(callback)
        if index is None:
            return None
        given = list(self._given)
        gone = given.pop(index)
        self.set(given)
        return gone

    def replace(self, callback: Any) -> Any:
        """Put a callback in the place of the first one of its type, or add it if there is none.

        Args:
            callback: The new one.

        Returns:
            The callback that went, or None if there was none.
        """
        given = list(self._given)
        for index, old in enumerate(given):
            if type(unwrap(old)) is type(unwrap(callback)):
                given[index] = callback
                self.set(given)
                return old
        self.add(callback)
        return None

    def get(self, kind: type) -> Any:
        """The first callback of a type, or None.

        Args:
            kind: The type; subclasses count.
        """
        return next((callback for callback in map(unwrap, self._given) if isinstance(callback, kind)), None)

    def set(self, callbacks: Any) -> None:
        """Make these the callbacks.

        Args:
            callbacks: One object, or a list or tuple of them, which is copied.
        """
        if isinstance(callbacks, Callbacks):
            given = list(callbacks._given)
        elif isinstance(callbacks, (list, tuple)):
            given = list(callbacks)
        else:
            given = [] if callbacks is None else [callbacks]
        guard = self._guard
        if guard is None and any(getattr(type(callback), "needs_guard", False) for callback in given):
            guard = self._new_guard()
        order = given if guard is None else guard.arrange(given)  # raises if there is none: nothing has changed yet
        self._guard, self._given = guard, given
        self._set_order(order)

    @property
    def given(self) -> list[Any]:
        """The callbacks in the order in which they were given."""
        return list(self._given)

    @staticmethod
    def is_a(callback: Any, kind: type) -> bool:
        """Whether a callback, or the one inside of a conditional one, is of a type.

        Args:
            callback: The callback.
            kind: The type; subclasses count.
        """
        while not isinstance(callback, kind) and hasattr(type(callback), "wraps_callback"):
            callback = callback.callback
        return isinstance(callback, kind)

    def attach(self, learner: Any) -> None:
        """Let guarded callbacks meet a learner before the first hook that passes it: each one's ``init`` runs.

        Args:
            learner: The learner.
        """
        if self._guard is not None:
            self._guard.attach(learner)

    @property
    def graph(self) -> Any:
        """Which callback runs before which, and why: a `fabric_lite.CallbackGraph`."""
        if self._guard is None:
            guard = self._new_guard()
            guard.arrange(self._given)
            self._guard = guard
        return self._guard.graph

    def uncalled(self) -> list[Uncalled]:
        """The methods called ``on_*`` that no call has reached so far: misspelt, or not called by this loop."""
        found = []
        for callback in self.order:
            for name in dir(callback):
                if name.startswith("on_") and name not in self._called and _is_method(callback, name):
                    nearest = difflib.get_close_matches(name, self._called, n=1)
                    found.append(Uncalled(callback, name, nearest[0] if nearest else None))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Gather the state of the callbacks that have any.

        Returns:
            For each, its ``state_dict()`` under its ``state_key`` if it has one, else under the name of its class and
            the how-manieth of that class it is: ``"EMA.0"``. An empty state is left out.
        """
        states = {key: callback.state_dict() for key, callback in self._stateful().items()}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleState:
        """Give the callbacks back what `state_dict` gathered.

        Args:
            state: From `state_dict`.
            strict: Whether a callback without saved state, and saved state without a callback, are errors.

        Returns:
            The keys that were missing and those that were left over.

        Raises:
            RuntimeError: If there are any and ``strict`` is set; nothing has been loaded then.
        """
        stateful = self._stateful()
        missing = [key for key, callback in stateful.items() if key not in state and callback.state_dict()]
        report = IncompatibleState(missing, [key for key in state if key not in stateful])
        if strict and (report.missing or report.unexpected):
            raise RuntimeError(
                "The saved state does not fit the callbacks:"
                + (f" no state was saved for {', '.join(map(repr, report.missing))};" if report.missing else "")
                + (f" there is no callback for {', '.join(map(repr, report.unexpected))};" if report.unexpected else "")
                + " pass the callbacks that were there when it was saved, or `load_state_dict(state, strict=False)`."
            )
        for key, callback in stateful.items():
            if key in state:
                callback.load_state_dict(state[key])
        return report

    def _stateful(self) -> dict[str, Any]:
        """The callbacks that can save and load, by key, in the order in which they were given."""
        found: dict[str, Any] = {}
        seen: Counter[str] = Counter()
        for callback in self._given:
            name = type(unwrap(callback)).__name__
            key = getattr(callback, "state_key", None) or f"{name}.{seen[name]}"
            seen[name] += 1
            if not (callable(getattr(callback, "state_dict", None)) and hasattr(callback, "load_state_dict")):
                continue
            if key in found:
                raise ValueError(
                    f"The callbacks {found[key]!r} and {callback!r} both have the state key {key!r}, so one would"
                    " overwrite the other in a checkpoint. Give them different `state_key`s."
                )
            found[key] = callback
        return found

    def _find(self, callback: Any) -> int | None:
        """Where the callback itself stands among those given, or else the first one of that type."""
        for index, other in enumerate(self._given):
            if other is callback or unwrap(other) is callback:
                return index
        if isinstance(callback, type):
            return next((i for i, other in enumerate(self._given) if isinstance(unwrap(other), callback)), None)
        return None

    def _new_guard(self) -> Guard:
        if self._make_guard is None:
            raise TypeError(
                "A guarded callback needs a guard. Pass `Callbacks(..., make_guard=fabric_lite.permissions.Guard)`, or"
                " let `Fabric(callbacks=...)` make the collection."
            )
        return self._make_guard()


def _is_method(callback: Any, name: str) -> bool:
    """Whether an attribute is callable, without running a property to find out."""
    attribute = inspect.getattr_static(unwrap(callback), name)
    return callable(attribute) or isinstance(attribute, (staticmethod, classmethod))
