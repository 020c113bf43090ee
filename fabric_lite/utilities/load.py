"""Reading checkpoints piece by piece, and putting them into objects."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fabric_lite.utilities.types import _PATH, _Stateful

_METADATA_FILENAME = "meta.pt"

_T = TypeVar("_T")

# What a tensor knows without reading its values.
_KNOWN = frozenset(
    [
        "device",
        "dim",
        "dtype",
        "element_size",
        "grad",
        "grad_fn",
        "is_floating_point",
        "is_meta",
        "itemsize",
        "layout",
        "names",
        "nbytes",
        "ndim",
        "numel",
        "output_nr",
        "requires_grad",
        "retains_grad",
        "shape",
        "size",
        "stride",
    ]
)


class _NotYetLoadedTensor:
    """Stands for a tensor in a checkpoint file, which is read when a torch function or `_load_tensor` needs its values.

    The values stay in the file: each use reads them anew, and nothing is kept in memory.
    """

    def __init__(self, mapped: Tensor) -> None:
        self._mapped = mapped

    def _load_tensor(self) -> Tensor:
        """Read the tensor (or the parameter, or whatever subclass of them was saved) into memory."""
        return copy.deepcopy(self._mapped)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*_materialize_tensors(args), **_materialize_tensors(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if (
            name.startswith("__") or name == "_mapped"
        ):  # probed by `copy` and `pickle`, also before there is a `_mapped`
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.")
        return getattr(self._mapped if name in _KNOWN else self._load_tensor(), name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"


def _lazy_load(filename: _PATH) -> Any:
    """Load what `torch.save` wrote, with tensors that are read from the file when they are used.

    torch maps the file into memory, and admits only what its ``weights_only`` loading admits.

    Args:
        filename: The file.

    Returns:
        The saved object, with `_NotYetLoadedTensor` in the place of tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file would import something that is not on torch's list.
        RuntimeError: If the file is of another format, or damaged.
    """
    from fabric_lite.utilities.plain_types import plain_types_admitted

    if not os.path.isfile(filename):
        raise FileNotFoundError(f"There is no file {str(filename)!r}. A checkpoint folder must be consolidated first.")
    try:
        # To the CPU, whatever device the tensors were saved from: it is only there that they can be mapped.
        with plain_types_admitted():
            checkpoint = torch.load(str(filename), map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = (
            error.__context__ or error
        )  # torch advises to switch the check off; what was wrong is in the first error
        raise pickle.UnpicklingError(f"The file {str(filename)!r} is not loaded. {reason}") from error
    except (RuntimeError, EOFError) as error:
        raise RuntimeError(
            f"The file {str(filename)!r} is not a checkpoint that `torch.save` wrote, or it is damaged: {error}"
        ) from error
    return _replace(checkpoint, Tensor, _NotYetLoadedTensor)


def _materialize_tensors(collection: Any) -> Any:
    """Rebuild a collection with all tensors in it loaded."""
    return _replace(collection, _NotYetLoadedTensor, _NotYetLoadedTensor._load_tensor)


def _replace(data: Any, kind: type[_T], function: Callable[[_T], Any]) -> Any:
    """Rebuild nested dictionaries, lists and tuples with a function applied to the members of one type."""
    if isinstance(data, kind):
        return function(data)
    if isinstance(data, dict):
        result = copy.copy(data)  # with what is attached to it: a module's state dict has its `_metadata`
        for key, value in data.items():
            result[key] = _replace(value, kind, function)
        return result
    if type(data) in (list, tuple):
        return type(data)(_replace(value, kind, function) for value in data)
    return data


def _move_state_into(
    source: dict[str, Any], destination: dict[str, Any | _Stateful[str]], keys: set[str] | None = None
) -> None:
    """Move entries of a checkpoint into a state: stateful objects there load theirs, all else is replaced.

    Args:
        source: The checkpoint; what was moved is no longer in it.
        destination: The state.
        keys: Which entries to move, by default all; those that the checkpoint does not have are left alone.
    """
    for key in [key for key in source if keys is None or key in keys]:
        state = source.pop(key)
        target = destination.get(key)
        if isinstance(target, _Stateful):
            target.load_state_dict(state)
        else:
            destination[key] = state


def _load_distributed_checkpoint(checkpoint_folder: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """Load a sharded checkpoint as a whole, in one process and into its CPU memory.

    Args:
        checkpoint_folder: The folder.
        weights_only: Whether to refuse everything but tensors and plain values. None means True.

    Returns:
        What was saved, by name; an optimizer's state with names of parameters.

    Raises:
        FileNotFoundError: If it is no such folder.
        pickle.UnpicklingError: If something else is in it, or it is damaged.
    """
    from fabric_lite.utilities.shard_checksums import verify_folder
    from fabric_lite.utilities.shards import ShardReader, nested

    verify_folder(checkpoint_folder)
    reader = ShardReader(checkpoint_folder, weights_only=weights_only is not False)
    paths, tensors = reader.paths(), reader.tensors()
    targets = {name: torch.empty_like(tensors[name], device="cpu") if name in tensors else None for name in paths}
    checkpoint = nested(reader.read(targets), paths)
    checkpoint.update(_load_metadata(checkpoint_folder, weights_only))
    return checkpoint


def _load_metadata(checkpoint_folder: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """Load what is not sharded of a sharded checkpoint."""
    from fabric_lite.utilities.plain_types import plain_types_admitted

    file = checkpoint_folder / _METADATA_FILENAME
    if not file.is_file():
        return {}
    with plain_types_admitted():
        metadata: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=weights_only is not False)
    return metadata


def _is_sharded_checkpoint(path: _PATH) -> bool:
    """Whether a path is a folder with a checkpoint in it."""
    return os.path.isfile(os.path.join(path, ".metadata")) or os.path.isfile(os.path.join(path, _METADATA_FILENAME))
