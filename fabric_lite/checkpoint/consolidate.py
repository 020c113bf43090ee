"""Turning a sharded checkpoint into one file."""

from __future__ import annotations

from pathlib import Path

from fabric_lite.checkpoint.folder import found
from fabric_lite.checkpoint.optimizers import number_as_they_come
from fabric_lite.checkpoint.sharded import reading
from fabric_lite.plugins.io import TorchCheckpointIO
from fabric_lite.utilities.load import _is_sharded_checkpoint, _load_distributed_checkpoint
from fabric_lite.utilities.types import _PATH


def consolidate_checkpoint(folder: _PATH, output: _PATH | None = None, weights_only: bool | None = None) -> Path:
    """Turn a sharded checkpoint into one file, in this process alone.

    The file is what `Fabric.save` writes on one process, and `torch.load` reads it: modules and optimizers have the
    state dictionaries that torch gives them when nothing is sharded. All of it has to fit into this process's memory.

    Args:
        folder: The checkpoint that was saved on several processes, by fabric-lite or by Lightning Fabric.
        output: The file to write; by default beside the folder, with ``.consolidated`` after its name.
        weights_only: Whether to refuse everything but tensors and plain values. None means True.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is no sharded checkpoint.
        FileExistsError: If the output is there already.
        CheckpointError: If it is damaged.
    """
    source = Path(folder)
    target = source.with_name(source.name + ".consolidated") if output is None else Path(output)
    source = found(source)
    if not source.exists():
        raise FileNotFoundError(f"There is no checkpoint {str(source)!r}.")
    if not _is_sharded_checkpoint(source):
        what = "one file already" if source.is_file() else "a folder without the files of a checkpoint"
        raise ValueError(
            f"{str(source)!r} is {what}. Pass the folder that `fabric.save(...)` wrote on several processes."
        )
    if target.exists():
        raise FileExistsError(f"{str(target)!r} is there already. Remove it, or choose another output.")
    with reading(source):
        whole = number_as_they_come(_load_distributed_checkpoint(source, weights_only))
    TorchCheckpointIO().save_checkpoint(whole, target)
    return target
