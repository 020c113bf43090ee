"""Read-only views: what a callback gets that declared `Read` on a container.

A view shows the live object, and whatever comes out of it is a view again, so that it stays read-only however deep one
goes. How each way of reaching into the object is kept from writing:

- assigning, deleting and ``+=`` raise;
- methods and properties written in Python run with the view in the place of ``self``, so they read through it and fail
  when they write;
- methods written in C (``list.append``) would see the object itself; those that only read are offered by the view, all
  others raise.

``copy.deepcopy`` of a view is an independent copy of the object, ``copy.copy`` is the view again, and pickling raises.
"""

from __future__ import annotations

import copy
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache, partialmethod
from types import FunctionType, MethodDescriptorType, new_class
from typing import Any, NoReturn

from fabric_lite.permissions.access import Path
from fabric_lite.permissions.errors import ProtectedException
from fabric_lite.permissions.holder import Holder

_new = object.__new__

#: What looks like a container but is a value.
_VALUES = (str, bytes, bytearray, memoryview, range, array, type)
#: Class attributes that run Python code, which can be given the view as ``self``.
_PYTHON = (FunctionType, property, classmethod, staticmethod, partialmethod)


class View:
    """Base of the read-only views. It hides its own slots: every attribute is one of the object behind."""

    __slots__ = ("__weakref__", "holder", "path", "target")
    _own: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        cls._own = frozenset(dir(cls))

    def __getattribute__(self, name: str) -> Any:
        if name in type(self)._own:
            return object.__getattribute__(self, name)
        return _attribute(self, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """The class of the object behind, so that ``isinstance`` sees a dataclass or a `State`.

        What derives from a builtin is not passed off as one: C code would read past the view.
        """
        target = _target(self)
        return type(self) if isinstance(target, (dict, list, set)) else type(target)

    def __repr__(self) -> str:
        return repr(_target(self))

    def __str__(self) -> str:
        return str(_target(self))

    def __eq__(self, other: object) -> bool:
        target = _target(self)
        if isinstance(other, View):
            return bool(target == _target(other))
        # Any other type could keep what it is compared with.
        if type(other) in (dict, list, tuple, set, frozenset, type(target)):
            return bool(target == other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(_target(self))

    def __dir__(self) -> Iterable[str]:
        return dir(_target(self))

    def __copy__(self) -> View:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(_target(self), memo)

    def __reduce_ex__(self, *args: object) -> NoReturn:
        where = _holder(self).dotted(_path(self))
        raise ProtectedException(
            f"A read-only view of {where} cannot be pickled; pickle copy.deepcopy(...) of it, a copy of its own."
        )

    __reduce__ = __reduce_ex__

    def __setattr__(self, name: str, value: object) -> None:
        raise _denied(self, name)

    def __delattr__(self, name: str) -> None:
        raise _denied(self, name)

    def __setitem__(self, key: object, value: object) -> None:
        raise _denied(self, key)

    def __delitem__(self, key: object) -> None:
        raise _denied(self, key)

    def _in_place(self, other: object) -> NoReturn:
        raise _denied(self)

    __iadd__ = __isub__ = __imul__ = __ior__ = __iand__ = __ixor__ = _in_place


# The slots are reached through these alone. Their names are taken off the class: a field may be called "target".
_target: Callable[[View], Any] = View.__dict__["target"].__get__
_holder: Callable[[View], Holder] = View.__dict__["holder"].__get__
_path: Callable[[View], Path] = View.__dict__["path"].__get__
_set_target, _set_holder, _set_path = (View.__dict__[name].__set__ for name in ("target", "holder", "path"))
for _name in ("holder", "path", "target"):
    delattr(View, _name)


class MappingView(View, Mapping[Any, Any]):
    """A read-only view of a mapping."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        target = _target(self)
        if isinstance(target, defaultdict) and key not in target:
            raise _denied(self, key, did="looked up a missing key, which a defaultdict adds,")
        return _below(self, key, target[key])

    def __iter__(self) -> Iterator[Any]:
        return iter(_target(self))

    def __len__(self) -> int:
        return len(_target(self))

    def __contains__(self, key: object) -> bool:
        return key in _target(self)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self[key] if key in self else default  # noqa: SIM401 - this is that get

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return {**other, **self}


class SequenceView(View, Sequence[Any]):
    """A read-only view of a sequence."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        value = _target(self)[index]
        return view(value, _holder(self), _path(self)) if isinstance(index, slice) else _below(self, index, value)

    def __iter__(self) -> Iterator[Any]:
        for index, value in enumerate(_target(self)):
            yield value if viewer(type(value)) is None else _below(self, index, value)

    def __len__(self) -> int:
        return len(_target(self))

    def __contains__(self, value: object) -> bool:
        return value in _target(self)

    def __add__(self, other: Iterable[Any]) -> list[Any]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Any]) -> list[Any]:
        return [*other, *self]


class SetView(View, Set[Any]):
    """A read-only view of a set."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        for value in _target(self):
            yield view(value, _holder(self), _path(self))

    def __len__(self) -> int:
        return len(_target(self))

    def __contains__(self, value: object) -> bool:
        return value in _target(self)

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        return set(it)


class DataclassView(View):
    """A read-only view of a dataclass instance."""

    __slots__ = ()


def view(value: Any, holder: Holder, path: Path) -> Any:
    """The value as a callback may see it that declared `Read`: a container as a view, everything else as it is."""
    make = viewer(type(value))
    return value if make is None else make(value, holder, path)


def _viewer(cls: type) -> Callable[[Any, Holder, Path], Any] | None:
    """What makes the view of an instance of ``cls``; None if its instances come as they are."""
    # Tensor-like containers (TensorDict) are tensors first. Known by their protocol: no torch in this package.
    if issubclass(cls, (View, *_VALUES)) or hasattr(cls, "__torch_function__"):
        return None
    if issubclass(cls, (tuple, frozenset)):
        return _frozen
    base: type[View]
    if issubclass(cls, Mapping):
        base = MappingView
    elif issubclass(cls, Sequence):
        base = SequenceView
    elif issubclass(cls, Set):
        base = SetView
    elif hasattr(cls, "__dataclass_fields__"):
        base = DataclassView
    else:
        return None
    kind = _with_operators(base, cls)

    def make(value: Any, holder: Holder, path: Path) -> View:
        made = _new(kind)
        _set_target(made, value)
        _set_holder(made, holder)
        _set_path(made, path)
        return made

    return make


#: `_viewer`, remembered for each class: the hot path asks it.
viewer: Callable[[type], Callable[[Any, Holder, Path], Any] | None] = lru_cache(maxsize=1024)(_viewer)


def is_state(cls: type) -> bool:
    """Whether instances of ``cls`` hold state under names: a mapping (`State` is one) or a dataclass."""
    make = viewer(cls)
    return make is not None and (issubclass(cls, Mapping) or hasattr(cls, "__dataclass_fields__"))


def _with_operators(base: type[View], cls: type) -> type[View]:
    """``base`` with the operators that ``cls`` defines in Python (``__len__``, ``__call__`` …), run on the view.

    Python looks these up on the type; attribute access alone would not find them. The fields of a dataclass belong to
    this, too: `dataclasses.asdict` and ``match`` read them from the type.
    """
    found: dict[str, Any] = {}
    for name in dir(cls):
        if name.startswith("__") and _static(base, name) is None and name != "__getattr__":
            attribute = _static(cls, name)
            if isinstance(attribute, FunctionType) or name in ("__dataclass_fields__", "__match_args__"):
                found[name] = attribute
    if not found:
        return base
    return new_class(f"ReadOnly{cls.__name__}", (base,), exec_body=lambda body: body.update(found, __slots__=()))


def _frozen(value: Any, holder: Holder, path: Path) -> Any:
    """A tuple or frozenset, itself if there is nothing in it to protect, else with views in the places of containers.

    It stays a tuple, which cannot be written to anyway: torch takes sizes and named tuples as such.
    """
    if all(viewer(type(element)) is None for element in value):
        return value
    elements = [view(element, holder, (*path, index)) for index, element in enumerate(value)]
    if isinstance(value, frozenset):
        return frozenset(elements)
    return type(value)._make(elements) if hasattr(value, "_make") else tuple(elements)


def _below(self: View, key: object, value: Any) -> Any:
    """An element of the object behind, protected in its turn."""
    make = viewer(type(value))
    return value if make is None else make(value, _holder(self), (*_path(self), key))


def _looked_up(cls: type, name: str) -> Any:
    """The class attribute as it is written, or None."""
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None


_static: Callable[[type, str], Any] = lru_cache(maxsize=4096)(_looked_up)


def _attribute(self: View, name: str) -> Any:
    """An attribute of the object behind a view."""
    target = _target(self)
    found = _static(type(target), name)
    if found is not None and name not in getattr(target, "__dict__", ()):
        if isinstance(found, _PYTHON):
            return found.__get__(self, type(target))
        if isinstance(found, MethodDescriptorType):
            return _c_method(self, target, name)
    return _below(self, name, getattr(target, name))


def _c_method(self: View, target: Any, name: str) -> Callable[..., Any]:
    """A method of a builtin container: on a copy if it only reads, else one that raises."""
    if isinstance(target, set) and hasattr(frozenset, name):
        copied: Callable[..., Any] = getattr(set(iter(self)), name)
        return copied
    if name == "copy":
        return lambda: dict(self) if isinstance(target, dict) else list(self)

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise _denied(self, did=f"called .{name}()")

    return refuse


def _denied(self: View, *key: object, did: str | None = None) -> ProtectedException:
    """The exception for writing through a view, at a key below it or at the object itself."""
    # The elements of a slice have no path of their own.
    return _holder(self).denied("Write", (*_path(self), *(k for k in key if not isinstance(k, slice))), did)
