"""A function as a guarded callback."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fabric_lite.events import Event, Phase
from fabric_lite.permissions import Callback, ConditionalCallback, StateAccess


class CustomCallback(Callback):
    """Calls a function at one event, in one phase, as a guarded callback.

        CustomCallback(lambda learner: print(learner.step.loss), Event.STEP_END, TrainingPhase, {"step.loss": Read()})

    State access: what it is given.

    Args:
        fn: The function. Of the arguments of the hook, such as ``learner``, ``phase``, ``event``, it gets those that it
            takes, by name.
        event: At which event: an `Event` or any other name of a hook.
        phase: In which phase: a class of phases, subclasses count, or one of it. By default in all, and outside of any.
        access: What the function touches, as in `Callback.stateaccess`.

    Raises:
        TypeError: If the function cannot be called, or the phase is none.
        ValueError: If the event has a name that cannot be that of a hook.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        event: str = Event.STEP_END,
        phase: Phase | type[Phase] = Phase,
        access: StateAccess | None = None,
    ) -> None:
        name = event.value if isinstance(event, Event) else event
        if not callable(fn):
            raise TypeError(f"`CustomCallback({fn!r}, {name!r})` got something that is not callable; pass a function.")
        if not isinstance(name, str) or name.startswith("_") or hasattr(type(self), name):
            raise ValueError(
                f"`CustomCallback(..., event={name!r})`: no hook can have that name. Take an `Event`, or a name that"
                ' your loop calls, such as "on_step_end".'
            )
        kind = phase if isinstance(phase, type) else type(phase)
        if not issubclass(kind, Phase):
            raise TypeError(f"`CustomCallback(..., phase={phase!r})`: pass a class of phases, such as `TrainingPhase`.")
        self.fn, self.event, self.phase = fn, name, kind
        self.access: StateAccess = {} if access is None else access
        # One method, under the name of the event: that is how hooks are found.
        self.__dict__[name] = (
            fn if kind is Phase else getattr(ConditionalCallback(SimpleNamespace(**{name: fn}), self._here), name)
        )

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return self.access

    def _here(self, hook: str, phase: Any) -> bool:
        return isinstance(phase, self.phase)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fn!r}, {self.event!r}, {self.phase.__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fn, self.event, self.phase, self.access)
