"""Reading and writing the folders of `torch.distributed.checkpoint`. Imported where it is used: it takes half a second.

torch unpickles what it finds there. Here, only what such a folder is made of is admitted, unless the user trusts it.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from typing_extensions import override

from fabric_lite.utilities.imports import _NUMPY_AVAILABLE
from fabric_lite.utilities.plain_types import plain_types_admitted
from fabric_lite.utilities.shard_checksums import Checksum, SummedFile

_ADMITTED = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "collections": ("OrderedDict",),
}


class _MetadataUnpickler(pickle.Unpickler):
    """Admits what the index of such a folder is made of."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in _ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(
                f"it would import `{module}.{name}`, which is no part of a checkpoint. If you trust it, pass"
                " `weights_only=False`"
            )
        return super().find_class(module, name)


class ShardReader(FileSystemReader):
    """Reads the files of a folder.

    Args:
        folder: The folder.
        weights_only: Whether to refuse everything but tensors and plain values.
    """

    def __init__(self, folder: str | os.PathLike[str], weights_only: bool = True) -> None:
        super().__init__(folder)
        self._weights_only = weights_only
        self._index: Metadata | None = None

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the folder: names, forms and places of what is in it."""
        if self._index is None:
            file = Path(self.path) / ".metadata"
            try:
                with open(file, "rb") as stream:
                    self._index = (_MetadataUnpickler if self._weights_only else pickle.Unpickler)(stream).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, ValueError) as error:
                raise pickle.UnpicklingError(f"The checkpoint {str(self.path)!r} is not loaded: {error}.") from error
            if not isinstance(self._index, Metadata):
                raise pickle.UnpicklingError(f"The file {str(file)!r} is not the index of a sharded checkpoint.")
        return self._index

    def paths(self) -> dict[str, tuple[str | int, ...]]:
        """The names of all that is there, and the keys and indices that lead to it in the nested checkpoint."""
        index = self.read_metadata()
        paths = index.planner_data if isinstance(index.planner_data, dict) else {}
        return {name: paths.get(name, (name,)) for name in index.state_dict_metadata}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name, without their values (on the meta device)."""
        index = self.read_metadata()
        return {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def read(self, targets: Mapping[str, Any], collective: bool = False) -> dict[str, Any]:
        """Read values.

        Args:
            targets: By name, a tensor (sharded or not) to read into; for what is no tensor, anything.
            collective: Whether all processes of the run call this, and an error in one is raised in all.

        Returns:
            The values by name.
        """
        if collective:
            _need_numpy()
        values = dict(targets)
        if values:
            planner = _Planner(self._weights_only)
            _load_state_dict(values, storage_reader=self, planner=planner, no_dist=not collective)
        return values


class _Planner(DefaultLoadPlanner):
    def __init__(self, weights_only: bool) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._weights_only = weights_only

    @override
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        with plain_types_admitted():
            self.state_dict[name] = torch.load(value, map_location="cpu", weights_only=self._weights_only)


def nested(values: Mapping[str, Any], paths: Mapping[str, tuple[str | int, ...]]) -> dict[str, Any]:
    """Put values back where they were in nested dictionaries and lists.

    Args:
        values: By name.
        paths: The keys and indices that lead to each.

    Returns:
        The nested dictionary.
    """
    from torch.distributed.checkpoint._traverse import set_element

    root: dict[str, Any] = {}
    for name, value in values.items():
        set_element(cast(Any, root), paths[name], value)
    return root


# -- writing -----------------------------------------------------------------------------------------------------------


def write_shards(sharded: dict[str, Any], folder: Path) -> dict[str, Checksum]:
    """Write the part of this process. All processes have to call it.

    Args:
        sharded: What is sharded, by name.
        folder: The folder.

    Returns:
        The checksums of this process's files, by name.
    """
    _need_numpy()
    writer = FileSystemWriter(folder)
    writer.fs = files = _SummedFiles()
    save(sharded, storage_writer=writer)
    return files.checksums


def serialize_shards(sharded: dict[str, Any], folder: Path) -> dict[str, memoryview]:
    """Do the same as `write_shards`, but keep what is to be written in memory. All processes have to call it.

    Args:
        sharded: What is sharded, by name.
        folder: The folder that it is for.

    Returns:
        The contents of this process's files, by name.
    """
    _need_numpy()
    writer = FileSystemWriter(folder, sync_files=False)
    writer.fs = files = _FilesInMemory()
    save(sharded, storage_writer=writer)
    return {name: stream.getbuffer() for name, stream in files.streams.items()}


def _need_numpy() -> None:
    """Raise in all processes. Else torch does so in one of them, while the others wait for it."""
    if not _NUMPY_AVAILABLE:
        raise ModuleNotFoundError(
            "Sharded checkpoints need the package numpy, by which torch exchanges what each process writes:"
            " pip install numpy",
            name="numpy",
        )


class _SummedFiles(FileSystem):
    """Files on a disk, of which it keeps the checksums."""

    def __init__(self) -> None:
        self.checksums: dict[str, Checksum] = {}

    @override
    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with SummedFile(path, "w") as raw, io.BufferedWriter(raw, 1 << 20) as stream:
            yield stream
        self.checksums[Path(path).name] = raw.checksum

    @override
    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.checksums[Path(new_path).name] = self.checksums.pop(Path(path).name)


class _Stream(io.BytesIO):
    """A file in memory, which outlives its being closed."""

    @override
    def close(self) -> None:
        """Keep the content."""


class _FilesInMemory(FileSystem):
    """Files that have only names; their folder is left alone."""

    def __init__(self) -> None:
        self.streams: dict[str, _Stream] = {}

    @override
    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        self.streams[Path(path).name] = stream = _Stream()
        yield stream

    @override
    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self.streams[Path(new_path).name] = self.streams.pop(Path(path).name)

    @override
    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Nothing is written there yet."""

    @override
    def exists(self, path: str | os.PathLike[str]) -> bool:
        return Path(path).name in self.streams

    @override
    def rm_file(self, path: str | os.PathLike[str]) -> None:
        del self.streams[Path(path).name]
