"""A mapping from phases to what is kept for each, with defaults for the phases that were not there yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ByPhase(Mapping[Any, T]):
    """What is kept for each phase. One that was never there reads as a fresh value, which is not kept.

    Args:
        make: Makes a fresh value for a phase.
        load: Makes a value for a phase from its saved state.
    """

    def __init__(self, make: Callable[[Any], T], load: Callable[[Any, Any], T]) -> None:
        self._make = make
        self._load = load
        self._values: dict[Any, T] = {}
        self._saved: dict[str, Any] = {}

    def __getitem__(self, phase: Any) -> T:
        return self._values[phase] if phase in self._values else self._fresh(phase)

    def __contains__(self, phase: object) -> bool:
        return phase in self._values

    def get(self, phase: Any, default: Any = None) -> Any:
        """What is kept for a phase, or the default if it was never there."""
        return self._values.get(phase, default)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def begun(self, phase: Any) -> T:
        """What is kept for a phase, from now on.

        Args:
            phase: The phase.
        """
        if phase not in self._values:
            self._values[phase] = self._fresh(phase)
            key = self._saved_as(phase)
            if key is not None:
                del self._saved[key]
        return self._values[phase]

    def state_dict(self, save: Callable[[T], Any]) -> dict[str, Any]:
        """The state, by the names of the phases.

        Args:
            save: Gives the state of a value.
        """
        names = Counter(_name(phase) for phase in self._values)
        keys = {p: _name(p) if names[_name(p)] == 1 else _long_name(p) for p in self._values}
        return {**self._saved, **{keys[phase]: save(value) for phase, value in self._values.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; what was there before is gone.

        Args:
            state: From `state_dict`.
        """
        phases = list(self._values)
        self._values, self._saved = {}, dict(state)
        for phase in phases:
            self.begun(phase)

    def _fresh(self, phase: Any) -> T:
        """What a phase begins with. A phase is known by its name alone until it is seen."""
        if isinstance(phase, type):
            raise TypeError(f"{phase.__name__} is the class of a phase; write [{phase.__name__}()] instead.")
        key = self._saved_as(phase)
        return self._make(phase) if key is None else self._load(phase, self._saved[key])

    def _saved_as(self, phase: Any) -> str | None:
        return next((name for name in (_long_name(phase), _name(phase)) if name in self._saved), None)


def _name(phase: Any) -> str:
    return str(getattr(phase, "name", "") or type(phase).__name__)


def _long_name(phase: Any) -> str:
    """For phases of different classes that have one name."""
    return f"{_name(phase)}.{type(phase).__name__}"
