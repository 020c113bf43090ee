"""The proxy that holds a guarded callback to what it declared."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, NoReturn, cast

from fabric_lite.permissions.access import Node, Path
from fabric_lite.permissions.holder import Holder
from fabric_lite.permissions.views import is_state, viewer

__all__ = ["Protected"]

_new = object.__new__
_METHODS = frozenset(("get", "items", "keys", "values"))


class Protected:
    """A learner, or a part of it, as a guarded callback sees it: only what the callback declared.

    Attribute and item access obey the same rules: a path that was not declared raises `ProtectedException`, one
    declared as `Read` gives the value (containers as read-only views), one declared as `Write` gives the value and can
    be set and deleted, and a path with entries below it gives a `Protected` again. ``dir``, ``in``, ``len``, iteration,
    ``keys``, ``values`` and ``items`` show declared names alone, and of these the ones that exist. Nothing is copied:
    each access reads the live object.

    It is a guard rail for colleagues, not a sandbox for attackers: it makes an undeclared access impossible by
    accident, and leaves open what takes intent, such as ``object.__getattribute__``, the ``gc`` module, ``__self__`` of
    a bound method, or a tensor that was declared readable and is changed in place (``guard="strict"`` notices that).

    It holds a learner weakly; kept longer than the learner, it raises `ReferenceError`. Two of them are equal if they
    stand for the same object. None is handed out as it is, so ``learner.step is None`` works.
    """

    # A root has no target: it asks the holder, which keeps the learner weakly.
    __slots__ = ("__weakref__", "holder", "node", "target")

    def __new__(cls, *args: object, **kwargs: object) -> Protected:
        """Refused: a proxy without learner and declaration would be of no use."""
        raise TypeError("A Protected is made by the guard when a hook passes a learner; it cannot be made by hand.")

    def __getattribute__(self, name: str) -> Any:
        # The hot path of the whole layer. The node comes first: a declared name wins over a method of the proxy.
        child = _node(self).children.get(name)
        if child is None:
            return _undeclared_attribute(self, name)
        target = _target(self)
        value = getattr(_object(self) if target is None else target, name)
        if child.leaf:
            if child.writable:
                return value
            make = viewer(type(value))
            return value if make is None else make(value, _holder(self), child.path)
        return _nested(value, child, _holder(self))

    def __getitem__(self, key: Any) -> Any:
        node, holder = _node(self), _holder(self)
        child = _child(node, key)
        if child is None:
            return _undeclared(self, key, _get_item)
        value = _get_item(_object(self), key)
        return _as_declared(value, child.writable, holder, child.path) if child.leaf else _nested(value, child, holder)

    def __setattr__(self, name: str, value: object) -> None:
        _check_write(self, name)
        setattr(_object(self), name, value)

    def __delattr__(self, name: str) -> None:
        _check_write(self, name)
        delattr(_object(self), name)

    def __setitem__(self, key: Any, value: object) -> None:
        _check_write(self, key)
        target = _object(self)
        if hasattr(type(target), "__setitem__") or not isinstance(key, str):
            target[key] = value
        else:
            setattr(target, key, value)

    def __delitem__(self, key: Any) -> None:
        _check_write(self, key)
        target = _object(self)
        if hasattr(type(target), "__delitem__") or not isinstance(key, str):
            del target[key]
        else:
            delattr(target, key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a declared key, or the default if it is not there; an undeclared one raises."""
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> KeysView[str]:
        """The declared names that exist."""
        return KeysView(cast("Mapping[str, Any]", self))

    def values(self) -> ValuesView[Any]:
        """The values of the declared names that exist."""
        return ValuesView(cast("Mapping[str, Any]", self))

    def items(self) -> ItemsView[str, Any]:
        """The declared names that exist, with their values."""
        return ItemsView(cast("Mapping[str, Any]", self))

    def __iter__(self) -> Iterator[str]:
        return iter(_names(self))

    def __len__(self) -> int:
        return len(_names(self))

    def __contains__(self, key: object) -> bool:
        return key in _names(self)

    def __bool__(self) -> bool:
        return not isinstance(_object(self), Mapping) or bool(_names(self))

    def __dir__(self) -> list[str]:
        return [name for name in _names(self) if isinstance(name, str)]

    def __repr__(self) -> str:
        node, holder = _node(self), _holder(self)
        modes = {name: "…" if child.mode is None else repr(child.mode) for name, child in node.children.items()}
        rest = {} if node.mode is None else {"everything else" if modes else "everything": repr(node.mode)}
        listed = ", ".join(f"{name} {mode}" for name, mode in {**modes, **rest}.items()) or "nothing declared"
        return f"<Protected {holder.dotted(node.path)}: {listed}>"

    def __eq__(self, other: object) -> bool:
        return _object(self) is _object(other) if isinstance(other, Protected) else NotImplemented

    def __hash__(self) -> int:
        return id(_object(self))

    def _whole(self, *args: object) -> NoReturn:
        raise _holder(self).denied("Read", _node(self).path, "asked for a copy of it")

    __copy__ = __deepcopy__ = __getstate__ = __reduce__ = __reduce_ex__ = _whole


# The slots are reached through these alone. Their names are taken off the class: nothing that is looked up finds them.
_node: Callable[[Protected], Node] = Protected.__dict__["node"].__get__
_holder: Callable[[Protected], Holder] = Protected.__dict__["holder"].__get__
_target: Callable[[Protected], Any] = Protected.__dict__["target"].__get__
_set_node, _set_holder, _set_target = (Protected.__dict__[name].__set__ for name in ("node", "holder", "target"))
for _name in ("holder", "node", "target"):
    delattr(Protected, _name)


def protect(node: Node, holder: Holder, target: object | None = None) -> Protected:
    """A proxy for the holder's learner, or for a part of it.

    Args:
        node: What is allowed.
        holder: Who it is made for.
        target: The part; None for the learner itself.
    """
    proxy = _new(Protected)
    _set_node(proxy, node)
    _set_holder(proxy, holder)
    _set_target(proxy, target)
    return proxy


def unprotected(value: object) -> object:
    """The object behind a proxy, and everything else as it is. For the guard; callbacks have no business with it."""
    return _object(value) if type(value) is Protected else value


def _object(self: Protected) -> Any:
    """The live object behind the proxy."""
    target = _target(self)
    if target is None:
        target = _holder(self).learner()
        if target is None:
            raise _holder(self).gone()
    return target


def _child(node: Node, key: object) -> Node | None:
    """The entry of its own that a key has."""
    return node.children.get(key) if isinstance(key, str) else None


def _as_declared(value: Any, writable: bool, holder: Holder, path: Path) -> Any:
    """A value that is declared as a whole."""
    make = None if writable else viewer(type(value))
    return value if make is None else make(value, holder, path)


def _nested(value: Any, node: Node, holder: Holder) -> Any:
    """A value that has more specific entries below it."""
    # Nothing inside a tensor or a module that is declared itself can be held back; nothing is in None.
    if value is None or (node.mode is not None and viewer(type(value)) is None):
        return value
    return protect(node, holder, value)


def _undeclared_attribute(self: Protected, name: str) -> Any:
    """What is not declared by name: the proxy's own methods, what an entry above covers, or a denial."""
    if name == "__dict__":
        raise _holder(self).denied("Read", _node(self).path, "asked for its __dict__")
    if name in _METHODS or name.startswith("__"):
        # Protocols of Python and of libraries: asked of every object, answered by the proxy itself or not at all.
        return object.__getattribute__(self, name)
    return _undeclared(self, name, getattr)


def _undeclared(self: Protected, key: Any, read: Callable[[Any, Any], Any]) -> Any:
    """A value without an entry of its own: what an entry above allows, or nothing.

    A state container that is not declared comes as an empty proxy: the error is raised at the leaf and names it.
    """
    node, holder, target = _node(self), _holder(self), _object(self)
    path = (*node.path, key)
    if node.mode is not None:
        return _as_declared(read(target, key), node.writable, holder, path)
    try:
        value = read(target, key)
    except Exception as error:
        raise holder.denied("Read", path) from error
    if is_state(type(value)):
        return protect(Node(path), holder, value)
    raise holder.denied("Read", path)


def _check_write(self: Protected, key: object) -> None:
    node = _node(self)
    child = _child(node, key)
    if not (node if child is None else child).writable:
        raise _holder(self).denied("Write", (*node.path, key))


def _get_item(target: Any, key: Any) -> Any:
    """An item, of an object without items the attribute of that name."""
    if hasattr(type(target), "__getitem__") or not isinstance(key, str):
        return target[key]
    try:
        return getattr(target, key)
    except AttributeError as error:
        raise KeyError(key) from error


def _names(self: Protected) -> list[Any]:
    """The names that are declared and exist."""
    node, target = _node(self), _object(self)
    if isinstance(target, Mapping):
        return [key for key in (target if node.mode is not None else node.children) if key in target]
    fields = getattr(type(target), "__dataclass_fields__", ()) if node.mode is not None else ()
    return [name for name in {**dict.fromkeys(fields), **node.children} if hasattr(target, name)]
