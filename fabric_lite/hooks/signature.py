"""What a callable takes, read once per function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary


class Accepted(NamedTuple):
    """The part of a signature that the bus needs.

    Attributes:
        positional: Names of the parameters that a positional argument can land on, in order.
        keywords: Names that may be passed by keyword.
        everything: Whether any keyword may be passed (``**kwargs``, or a signature that cannot be read).
    """

    positional: tuple[str, ...]
    keywords: frozenset[str]
    everything: bool

    def select(self, names: Mapping[str, Any]) -> tuple[str, ...]:
        """The names, in the given order, that the callable takes by keyword."""
        return tuple(names) if self.everything else tuple(name for name in names if name in self.keywords)


# A bound method is made anew at every access, so what is remembered is its function. The same function is
# remembered apart when it is called unbound: then its first parameter is free.
_of_methods: WeakKeyDictionary[Any, Accepted] = WeakKeyDictionary()
_of_callables: WeakKeyDictionary[Any, Accepted] = WeakKeyDictionary()

if sys.version_info >= (3, 14):  # names in annotations may not exist at run time, and nobody here looks at them
    import annotationlib

    _OPTIONS = {"annotation_format": annotationlib.Format.FORWARDREF}
else:
    _OPTIONS: dict[str, Any] = {}


def accepted(function: Callable[..., Any]) -> Accepted:
    """Read which arguments a callable takes.

    Args:
        function: Any callable: function, bound method, partial, class, object with ``__call__``, builtin.

    Returns:
        Its positional and keyword parameters; where no signature can be read, everything.
    """
    memory, key = (_of_methods, function.__func__) if isinstance(function, MethodType) else (_of_callables, function)
    try:
        found = memory.get(key)
    except TypeError:  # neither hashable nor weakly referable: nothing to remember it by
        return _read(function)
    if found is None:
        found = memory[key] = _read(function)
    return found


def _read(function: Callable[..., Any]) -> Accepted:
    try:
        parameters = inspect.signature(function, **_OPTIONS).parameters.values()
    except (TypeError, ValueError):  # some builtins and C extensions have none
        return Accepted((), frozenset(), everything=True)
    return Accepted(
        positional=tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
        keywords=frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
        everything=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )
