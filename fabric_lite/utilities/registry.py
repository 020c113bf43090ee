"""A dictionary of classes that users can ask for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, overload

_T = TypeVar("_T", bound=Callable[..., Any])


class _Entry(NamedTuple):
    """A registered class and the arguments it will be made with."""

    cls: Callable[..., Any]
    init_params: dict[str, Any]
    description: str


class _Registry(dict[str, _Entry]):
    """Classes (or factories) under the names by which they can be asked for."""

    @overload
    def register(
        self, name: str, cls: _T, description: str | None = ..., override: bool = ..., **init_params: Any
    ) -> _T: ...

    @overload
    def register(
        self, name: str, cls: None = ..., description: str | None = ..., override: bool = ..., **init_params: Any
    ) -> Callable[[_T], _T]: ...

    def register(
        self, name: str, cls: Any = None, description: str | None = "", override: bool = False, **init_params: Any
    ) -> Any:
        """Register a class under a name; without `cls`, as a decorator.

        Args:
            name: The name to ask for it by.
            cls: The class, or any callable that makes the object.
            description: What it is, for people.
            override: Whether a class that already has this name may be replaced.
            **init_params: The arguments that `get` passes to `cls`.

        Returns:
            `cls`, or the decorator that registers a class and returns it.

        Raises:
            TypeError: If the name is not a string.
            ValueError: If the name is taken and `override` is False.
        """
        if not isinstance(name, str):
            raise TypeError(f"The name of a registered class must be a str, got {name!r}. Write `register('name', …)`.")
        if name in self and not override:
            taken_by = getattr(self[name].cls, "__qualname__", repr(self[name].cls))
            raise ValueError(
                f"The name {name!r} is already registered, for {taken_by}."
                f" Choose another one, or write `register({name!r}, …, override=True)` to replace it."
            )

        def add(added: _T) -> _T:
            self[name] = _Entry(added, init_params, description or "")
            return added

        return add if cls is None else add(cls)

    def get(self, name: str, default: Any = None) -> Any:
        """Make an object of the class with this name.

        Args:
            name: The name under which the class was registered.
            default: What to return if there is none.

        Returns:
            The new object, or `default`.

        Raises:
            KeyError: If the name is unknown and there is no default.
        """
        if name in self:
            entry = self[name]
            return entry.cls(**entry.init_params)
        if default is not None:
            return default
        raise self._unknown(name)

    def remove(self, name: str) -> None:
        """Take a name off the registry.

        Raises:
            KeyError: If the name is unknown.
        """
        if name not in self:
            raise self._unknown(name)
        del self[name]

    def available(self) -> list[str]:
        """The names that can be asked for, sorted."""
        return sorted(self)

    def _unknown(self, name: str) -> KeyError:
        return KeyError(f"Nothing is registered as {name!r}. Available: {', '.join(self.available()) or 'nothing'}.")
