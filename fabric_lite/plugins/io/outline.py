"""What is in a file of `torch.save`, without its tensors being read or any of its code being run."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import IO, Any, NamedTuple
from zipfile import ZipFile

import torch


class TensorOutline(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: Its data type.
        shape: Its shape.
        storage: Name of the bytes in the file, which tensors may share.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: str

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


class Foreign:
    """Stands for an object in a file that is neither a tensor nor a plain value. Takes anything and does nothing.

    Attributes:
        name: Of its class, or of the function that would have made it.
        parts: What it was given.
    """

    name = ""
    parts: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:  # noqa: D102
        self = super().__new__(cls)
        self.parts = [*args, *kwargs.values()]
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    append = add = __setstate__

    def extend(self, items: Any) -> None:
        """Take the items of a list."""
        self.parts.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts.append({key: value})

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def read_outline(file: IO[bytes]) -> Any:
    """Read the structure of a file.

    Args:
        file: The file.

    Returns:
        What was saved, with a `TensorOutline` in the place of each tensor and a `Foreign` in that of other objects.

    Raises:
        ValueError: If it is no zip file of `torch.save`, or damaged.
    """
    try:
        with ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            with archive.open(name) as pickled:
                return _Unpickler(pickled).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"it has no structure that can be read: {type(error).__name__}: {error}") from error


def foreign_parts(outline: Any, names: frozenset[str], where: str = "") -> Iterator[tuple[str, str]]:
    """Find objects by what they are.

    Args:
        outline: From `read_outline`.
        names: Of classes and functions.
        where: What to call the outline itself.

    Yields:
        Where there is one, as ``['key'][0]``, and its name.
    """
    if isinstance(outline, Foreign) or (isinstance(outline, type) and issubclass(outline, Foreign)):
        if outline.name in names:
            yield where, outline.name
            return
        parts: Any = ((where, part) for part in getattr(outline, "parts", ()))
    elif isinstance(outline, Mapping):
        parts = ((f"{where}[{key!r}]", value) for key, value in outline.items())
    elif isinstance(outline, (list, tuple)) and not isinstance(outline, TensorOutline):
        parts = ((f"{where}[{index}]", value) for index, value in enumerate(outline))
    elif isinstance(outline, (set, frozenset)):
        parts = ((where, value) for value in outline)
    else:
        return
    for place, part in parts:
        yield from foreign_parts(part, names, place)


class _Storage(NamedTuple):
    """The bytes of tensors in a file."""

    dtype: torch.dtype
    key: str


class _Unpickler(pickle.Unpickler):
    """Makes nothing but plain values and stand-ins: whatever a pickle names, it gets one of them."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if known := _HARMLESS.get(full.replace("__builtin__.", "builtins.")):
            return known
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        return type("Foreign", (Foreign,), {"name": full})

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        return _Storage(_storage_dtype(kind.name), str(key))


def _storage_dtype(name: str) -> torch.dtype:
    """The data type of ``torch.FloatStorage`` and the like."""
    dtypes: dict[str, torch.dtype] = torch.storage._storage_type_to_dtype_map()
    return dtypes.get(name.rpartition(".")[2], torch.uint8)


def _tensor(storage: _Storage, offset: int, size: Any, *_: Any) -> TensorOutline:
    return TensorOutline(storage.dtype, tuple(size), storage.key)


def _tensor_of_dtype(
    storage: _Storage, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    return TensorOutline(dtype, tuple(size), storage.key)


def _first(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Callable[..., Any], kind: Any, args: Any, state: Any) -> Any:
    return function(*args)


_HARMLESS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # bytes, in the protocol that torch writes
    "collections.Counter": Counter,
    "collections.OrderedDict": OrderedDict,
    "builtins.bytearray": bytearray,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
