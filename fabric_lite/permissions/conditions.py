"""Callbacks that run only when a condition holds."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable as Function
from typing import Any, Protocol

from fabric_lite.hooks.dispatch import unwrap
from fabric_lite.permissions.callback import Callback

__all__ = ["Condition", "ConditionalCallback", "Throttle", "is_guarded", "throttle", "unwrap"]

_PHASE = inspect.Parameter("phase", inspect.Parameter.KEYWORD_ONLY, default=None)
#: What is asked of a callback outside of hooks, which no condition can hold back.
_ALWAYS = frozenset(
    ("init", "load_state_dict", "resolveconflict", "runafter", "state_dict", "state_key", "stateaccess")
)


class Condition(Protocol):
    """Decides whether a hook of a callback runs; a plain function ``(hook, phase) -> bool`` will do, too."""

    def shouldrun(self, hook: str, phase: Any) -> bool:
        """Whether the hook of this name runs now, in this phase; the phase is None if the call has none."""


class ConditionalCallback:
    """A callback whose hooks run only when a condition holds; in everything else it is the callback that it wraps.

    A wrapped guarded callback stays guarded, a plain one plain. Every public method counts as a hook but those of
    `Callback`; attributes that are not callable are those of the wrapped callback.

    Args:
        callback: The callback to wrap.
        condition: A function ``(hook, phase) -> bool``, or an object with such a method ``shouldrun``.
    """

    callback: Any
    needs_guard = True  # the bus asks the guard to look inside
    wraps_callback = True

    def __init__(self, callback: object, condition: Condition | Function[[str, Any], bool]) -> None:
        shouldrun = getattr(condition, "shouldrun", condition)
        if not callable(shouldrun):
            raise TypeError(
                f"The condition for {type(callback).__name__} is {condition!r}; pass a function (hook, phase) -> bool"
                " or an object with such a method shouldrun."
            )
        own = self.__dict__
        own["callback"] = callback
        own["condition"] = condition
        own["_shouldrun"] = shouldrun
        own["_hooks"] = {}

    def __getattr__(self, name: str) -> Any:
        # "callback" is missing while this object is being copied or unpickled.
        if name.startswith("__") or name == "callback":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.", name=name, obj=self)
        attribute = getattr(self.callback, name)
        if not callable(attribute) or name in _ALWAYS or name.startswith("_"):
            return attribute
        hook = self._hooks.get(name)
        if hook is None or hook.__wrapped__ != attribute:  # the callback's method may have been replaced
            hook = self._hooks[name] = _conditional(attribute, name, self._shouldrun)
        return hook

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.callback, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.callback, name)

    def __dir__(self) -> list[str]:
        return dir(self.callback)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.callback!r}, {self.condition!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.callback, self.condition)


def _conditional(method: Function[..., Any], name: str, shouldrun: Function[[str, Any], bool]) -> Function[..., Any]:
    """The method, run on condition. Its signature is that of the method, with a ``phase`` for the condition to see."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        signature = inspect.signature(lambda *args, **kwargs: None)
    parameters = list(signature.parameters.values())
    keywords = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    place = next((i for i, p in enumerate(parameters) if p.name == "phase"), None)
    takes_phase = place is not None or keywords
    if not takes_phase:
        signature = signature.replace(parameters=[*parameters, _PHASE])

    @functools.wraps(method)
    def hook(*args: Any, **kwargs: Any) -> Any:
        phase = kwargs.get("phase") if takes_phase else kwargs.pop("phase", None)
        if place is not None and place < len(args):
            phase = args[place]
        return method(*args, **kwargs) if shouldrun(name, phase) else None

    hook.__signature__ = signature  # type: ignore[attr-defined]
    return hook


class Throttle:
    """Lets one hook through every ``freq``-th time, or every ``seconds`` seconds; the first time always.

    Each hook is counted by itself: an event that reaches a callback as ``on_train_step_end`` and as
    ``on_validation_step_end`` is throttled in each of the two. Other hooks always run.

    Args:
        hook: The name of the hook, or of the event if the callback has a method for the event in a certain phase.
        freq: Run once in so many times.
        seconds: Run when so many seconds have passed since it last ran.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        hook: str,
        freq: int | None = None,
        seconds: float | None = None,
        clock: Function[[], float] = time.monotonic,
    ) -> None:
        if (freq is None) == (seconds is None):
            raise ValueError(f"throttle takes either freq or seconds, not freq={freq!r} and seconds={seconds!r}.")
        if freq is not None and freq < 1:
            raise ValueError(f"throttle got freq={freq!r}; it runs a hook once in freq times, so freq is at least 1.")
        if seconds is not None and seconds < 0:
            raise ValueError(f"throttle got seconds={seconds!r}; time does not run backwards.")
        self.hook, self.freq, self.seconds, self.clock = hook, freq, seconds, clock
        self._calls: dict[str, int] = {}
        self._last: dict[str, float] = {}

    def shouldrun(self, hook: str, phase: Any) -> bool:
        """Whether the hook's turn has come."""
        if not self._matches(hook, phase):
            return True
        if self.freq is not None:
            calls = self._calls.get(hook, 0)
            self._calls[hook] = calls + 1
            return calls % self.freq == 0
        now, last = self.clock(), self._last.get(hook)
        if last is not None and now - last < (self.seconds or 0):
            return False
        self._last[hook] = now
        return True

    def _matches(self, hook: str, phase: Any) -> bool:
        """Whether this is the throttled hook, or its form for the phase: on_train_step_end for on_step_end."""
        if hook == self.hook:
            return True
        names = {getattr(kind, "name", None) for kind in (phase, *type(phase).__mro__)} if phase is not None else set()
        return any(isinstance(name, str) and hook == self.hook.replace("on_", f"on_{name}_", 1) for name in names)

    def __repr__(self) -> str:
        how = f"freq={self.freq}" if self.freq is not None else f"seconds={self.seconds}"
        return f"Throttle({self.hook!r}, {how})"


def throttle(
    callback: object,
    hook: str,
    freq: int | None = None,
    seconds: float | None = None,
    clock: Function[[], float] = time.monotonic,
) -> ConditionalCallback:
    """Wrap a callback so that one of its hooks runs every ``freq``-th time, or every ``seconds`` seconds.

    Args:
        callback: The callback to wrap.
        hook: The hook to throttle; the others run as before.
        freq: Run the first time and then once in so many times.
        seconds: Run the first time and then when so many seconds have passed.
        clock: Returns the time in seconds.

    Raises:
        ValueError: If not exactly one of ``freq`` and ``seconds`` is given, or it is out of range.
    """
    return ConditionalCallback(callback, Throttle(hook, freq, seconds, clock))


def is_guarded(callback: object) -> bool:
    """Whether the permission layer holds this callback to what it declares: a `Callback`, or a condition around one."""
    return isinstance(unwrap(callback), Callback)
