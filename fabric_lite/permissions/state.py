"""A mapping with attribute access: the container for training state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

__all__ = ["State"]


class State(MutableMapping[str, Any]):
    """A mapping whose entries are attributes, too: ``state.xs`` is ``state["xs"]``.

    Keys are strings; one that is no identifier is reached as an item. A name that `State` has a method for (``items``,
    ``values`` …) cannot name an entry, so that every `State` can be used as the mapping that it is.

    Args:
        entries: A mapping or an iterable of pairs to begin with.
        **more: Further entries.
    """

    def __init__(self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        self.update(entries, **more)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.__dict__[key]
        except KeyError:
            raise KeyError(self._missing(key)) from None

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(
                f"A key of {type(self).__name__} is a string, not {key!r}; use a dict as the entry instead."
            )
        if hasattr(type(self), key):
            raise ValueError(
                f"{type(self).__name__} has an attribute of its own called {key!r}; name the entry otherwise,"
                f" for example {key.strip('_') + '_'!r}."
            )
        self.__dict__[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self.__dict__:
            raise KeyError(self._missing(key))
        del self.__dict__[key]

    def __getattr__(self, name: str) -> Any:
        # Only reached when there is no such entry. What Python looks up behind the scenes needs no suggestion.
        message = self._missing(name) if not name.startswith("__") else f"{type(self).__name__} has no {name!r}."
        raise AttributeError(message, name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self.__dict__:
            raise AttributeError(self._missing(name), name=name, obj=self)
        del self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __contains__(self, key: object) -> bool:
        return key in self.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"

    def copy(self) -> State:
        """A new `State` with the same entries; their values are shared."""
        return State(self)

    def _missing(self, key: object) -> str:
        """The sentence for an entry that is not there, with the nearest one that is."""
        from difflib import get_close_matches  # only errors need it

        near = get_close_matches(str(key), self.__dict__, n=1)
        there = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, self.__dict__)) or 'none'}."
        return f"{type(self).__name__} has no entry {key!r}; {there}"
