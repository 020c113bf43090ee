"""Strict mode: notice what a view cannot, a tensor that was readable only and was changed in place."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from fabric_lite.permissions.access import Node, Path, Write, entries
from fabric_lite.permissions.holder import Holder
from fabric_lite.permissions.views import viewer

__all__ = ["MutationCheck", "checked"]

T = TypeVar("T")

#: Given a value that is no container (a tensor, module, optimizer …), yields for each tensor in it the path from the
#: value to it ("" for the value itself), a key that tensors sharing memory have in common, and its version counter.
#: For anything else it yields nothing. The key need only be unique while the value is alive.
MutationCheck = Callable[[Any], Iterable[tuple[str, Hashable, int]]]

_PLAIN = frozenset((bool, bytes, complex, float, int, str, type(None)))


def checked(call: Callable[[], T], tree: Node, holder: Holder, check: MutationCheck) -> T:
    """Make a call and raise if it changed a tensor in place that was readable only.

    A tensor that is writable by any declared path is writable, also where another name of it is not.

    Args:
        call: The call of one hook of one callback.
        tree: What the callback declared.
        holder: Who it is, with the learner.
        check: Finds tensors and their versions.

    Raises:
        ProtectedException: If there was such a change; it names callback, hook and path.
    """
    learner = holder.learner()
    # Held during the call, so that no key is used again for another tensor.
    readable: list[tuple[Path, Any]] = []
    writable: list[tuple[Path, Any]] = []
    for path, mode in entries(tree):
        (writable if isinstance(mode, Write) else readable).extend(_leaves(_reach(learner, path), path, set()))
    allowed = {key for _, value in writable for _, key, _ in check(value)}
    # Tensors that share memory may count for themselves, so each is compared with itself.
    before = {(path, below, key): version for path, value in readable for below, key, version in check(value)}
    result = call()
    changed: dict[Hashable, Path] = {}
    for path, value in readable:
        for below, key, version in check(value):
            if key not in allowed and before.get((path, below, key), version) != version:
                changed.setdefault(key, _declarable(learner, (*path, *below.split(".")) if below else path))
    if changed:
        where = next(iter(changed.values()))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise holder.denied("Write", where, f"changed it{more} in place")
    return result


def _declarable(learner: Any, path: Path) -> Path:
    """The front part of a path that a declaration can reach: an element of a list cannot be named."""
    if all(isinstance(part, str) for part in path):
        while len(path) > 1 and _reach(learner, path) is None:
            path = path[:-1]
    return path


def _reach(target: Any, path: Path) -> Any:
    """The value at a path, None if it is not there (yet)."""
    try:
        for part in path:
            target = target[part] if isinstance(target, Mapping) else getattr(target, str(part))
    except (AttributeError, LookupError):
        return None
    return target


def _leaves(value: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """What is in a container, however deep, with its path; a value that is none, itself."""
    cls = type(value)
    if viewer(cls) is None:
        if cls not in _PLAIN:
            yield path, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        inside: Iterable[tuple[object, Any]] = value.items()
    elif hasattr(cls, "__dataclass_fields__"):
        inside = [(name, getattr(value, name)) for name in cls.__dataclass_fields__ if hasattr(value, name)]
    else:
        inside = enumerate(value)
    for key, element in inside:
        yield from _leaves(element, (*path, key), seen)
