"""How a strategy that shards modules writes and reads checkpoints: folders to which each process adds its shards."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fabric_lite.checkpoint.folder import beside, finish, found, prepare, write_parts
from fabric_lite.checkpoint.optimizers import (
    Names,
    for_optimizers,
    keys_of,
    modules_in,
    name_parameters,
    parameter_names,
)
from fabric_lite.checkpoint.sharded import reading, writing
from fabric_lite.checkpoint.snapshot import snapshot
from fabric_lite.checkpoint.state import Filter, _validate_keys_for_strict_loading, collect, restore
from fabric_lite.plugins.io import CheckpointIO
from fabric_lite.strategies.parallel import ParallelStrategy
from fabric_lite.utilities.apply_func import apply_to_tensors
from fabric_lite.utilities.cloud_io import _local_path
from fabric_lite.utilities.distributed import _is_dtensor
from fabric_lite.utilities.load import _is_sharded_checkpoint, _load_metadata
from fabric_lite.utilities.shard_checksums import verify_folder
from fabric_lite.utilities.types import _PATH, _Stateful

if TYPE_CHECKING:
    from fabric_lite.utilities.shards import ShardReader

_Path = tuple[str | int, ...]


class _ShardedCheckpointing(ParallelStrategy):
    """Saves and loads the state of objects, some of which are sharded."""

    _saves_shards: bool = True
    _to_save_one_file: str = ""

    @property
    @override
    def checkpoint_io(self) -> CheckpointIO:
        """How checkpoints that are one file are kept."""
        return super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        if self._saves_shards:
            raise NotImplementedError(
                f"`{type(self).__name__}` writes a folder, to which each process adds its shards, so it takes no"
                f" {io!r}. Leave it out, or save one file: `{type(self).__name__}({self._to_save_one_file})`."
            )
        self._checkpoint_io = io

    # -- saving --------------------------------------------------------------------------------------------------

    @override
    def save_checkpoint(
        self,
        path: _PATH,
        state: dict[str, nn.Module | Optimizer | Any],
        storage_options: Any | None = None,
        filter: Filter | None = None,
    ) -> None:
        path = self.broadcast(path)
        if not self._saves_shards:
            whole = self._collect_whole(state, filter)
            self._first_does(lambda: self._write_file(whole, path, storage_options), path)
            return
        if storage_options is not None:
            raise TypeError(
                f"`{type(self).__name__}` writes shards without a `CheckpointIO`, and has no use for the storage"
                f" options {storage_options!r}. Leave them out."
            )
        folder = self._folder(path)
        sharded, rest = self._collect_shards(state, filter)
        self._prepare_together(folder)
        from fabric_lite.utilities.shards import write_shards

        with writing(path):
            written = write_shards(sharded, beside(folder, "tmp"))
        checksums = {name: each for part in self.gather_objects(written) for name, each in part.items()}
        self._first_does(lambda: finish(folder, rest, checksums), path)

    @override
    def snapshot_checkpoint(
        self, path: _PATH, state: dict[str, nn.Module | Optimizer | Any], filter: Filter | None = None
    ) -> Callable[[], None] | None:
        if type(self).save_checkpoint is not _ShardedCheckpointing.save_checkpoint:
            return super().snapshot_checkpoint(path, state, filter)
        path = self.broadcast(path)
        if not self._saves_shards:
            whole = snapshot(self._collect_whole(state, filter), self._snapshot_memory)
            return partial(self._write_file, whole, path) if self.is_global_zero else None
        folder = self._folder(path)
        sharded, rest = self._collect_shards(state, filter)
        from fabric_lite.utilities.shards import serialize_shards

        with writing(path):
            contents = serialize_shards(sharded, beside(folder, "tmp"))
        copied = snapshot(rest, self._snapshot_memory) if self.is_global_zero else None
        self._prepare_together(folder)
        return partial(write_parts, folder, self.global_rank, self.world_size, contents, copied)

    def _collect_whole(self, state: dict[str, Any], filter: Filter | None) -> dict[str, Any]:
        saved = collect(state, filter or {}, self.get_module_state_dict, self.get_optimizer_state)
        whole: dict[str, Any] = apply_to_tensors(saved, self._whole)
        return whole

    def _collect_shards(self, state: dict[str, Any], filter: Filter | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What of a state is sharded, and the rest."""
        names = _names_of_shards(state)
        saved = collect(state, filter or {}, self.get_module_state_dict, partial(name_parameters, names=names))
        sharded = {name: saved.pop(name) for name in list(saved) if _is_spread(state[name], saved[name])}
        return sharded, saved

    def _folder(self, path: _PATH) -> Path:
        local = _local_path(path)
        if local is None:
            raise ValueError(
                f"`fabric.save({str(path)!r})`: shards are written to local and shared disks. Pass a path, or save one"
                f" file: `{type(self).__name__}({self._to_save_one_file})`."
            )
        return Path(local)

    def _prepare_together(self, folder: Path) -> None:
        self.barrier("fabric.save")  # no process is still writing an earlier one in the background
        self._first_does(lambda: prepare(folder), folder)

    def _whole(self, tensor: Tensor) -> Tensor | None:
        """A tensor with all of its shards, on the CPU of the first process; None on the others."""
        if _is_dtensor(tensor):
            whole: Tensor = tensor.to(self.root_device).full_tensor()  # type: ignore[attr-defined]
            return whole.cpu() if self.is_global_zero else None
        return tensor.detach().cpu() if self.is_global_zero else None

    def _first_does(self, action: Callable[[], None], path: _PATH) -> None:
        """Let the first process do something; if it fails, all of them do."""
        problem: str | None = None
        error: Exception | None = None
        if self.is_global_zero:
            try:
                action()
            except Exception as exception:
                problem, error = f"{type(exception).__name__}: {exception}", exception
        problem = self.broadcast(problem)
        if error is not None:
            raise error
        if problem is not None:
            raise RuntimeError(f"The checkpoint {str(path)!r} was not written. Rank 0 says: {problem}")

    # -- loading -------------------------------------------------------------------------------------------------

    @override
    def load_checkpoint(
        self,
        path: _PATH,
        state: nn.Module | _Stateful[Any] | dict[str, nn.Module | _Stateful[Any] | Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        path = self.broadcast(path)
        if (local := _local_path(path)) is not None:
            path = found(Path(local))
        if not isinstance(state, dict) or not state or not _is_sharded_checkpoint(path):
            return super().load_checkpoint(path, state, strict=strict, weights_only=weights_only)
        from fabric_lite.utilities.shards import ShardReader

        with reading(path):
            self._verify_together(Path(path))
            reader = ShardReader(Path(path), weights_only=weights_only is not False)
            rest = _load_metadata(Path(path), weights_only)
            there = {str(way[0]) for way in reader.paths().values()} | rest.keys()
            _validate_keys_for_strict_loading(state, there, strict=strict)
            checkpoint = {**_read_shards(reader, state), **rest}
        checkpoint = for_optimizers(checkpoint, state, partial(self._optimizer_state, names=_names_of_shards(state)))
        return restore(checkpoint, state, strict, load_module=partial(self.load_module_state_dict, strict=strict))

    def _verify_together(self, folder: Path) -> None:
        """Check the checksums of a folder, each process those of some files; if one does not fit, raise in all."""
        problem: Exception | None = None
        try:
            verify_folder(folder, self.global_rank, self.world_size)
        except (OSError, pickle.UnpicklingError) as error:
            problem = error
        problems = [each for each in self.gather_objects(problem) if each is not None]
        if problems:
            raise problems[0]

    @override
    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        own = module.state_dict()
        super().load_module_state_dict(
            module, {name: _spread_as(value, own.get(name)) for name, value in state_dict.items()}, strict=strict
        )

    @override
    def _optimizer_state(self, optimizer: Optimizer, saved: dict[str, Any], names: Names) -> dict[str, Any]:
        state = super()._optimizer_state(optimizer, saved, names)
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state.get("param_groups", ()) for number in group["params"]]
        for number, parameter in zip(numbers, own, strict=False):
            if slots := state["state"].get(number):
                like = _slots_like(optimizer, parameter)
                state["state"][number] = {slot: _spread_as(value, like(slot, value)) for slot, value in slots.items()}
        return state


def _names_of_shards(state: Mapping[str, Any]) -> dict[int, str]:
    """The names of the parameters that optimizers hold.

    A forward without a backward, as in a validation, leaves whole parameters in their place until the next one.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in modules_in(state):
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
    return parameter_names(state)


def _is_spread(obj: Any, saved: Any) -> bool:
    """Whether what is saved of an object has tensors, of which each process may have a part."""
    if isinstance(obj, (dict, list, tuple)):
        parts = zip(obj.values(), saved.values()) if isinstance(obj, dict) else zip(obj, saved)  # noqa: B905
        return any(_is_spread(*part) for part in parts)
    found: list[Tensor] = []
    apply_to_tensors(saved, lambda tensor: found.append(tensor) if _is_dtensor(tensor) else None)
    # Of what is empty, shards would leave no trace.
    return bool(found) or (isinstance(obj, (nn.Module, Optimizer)) and bool(saved))


def _spread_as(value: Any, like: Any) -> Any:
    """A whole tensor with the shards of another one; whatever else, and a tensor of another shape, as it is."""
    if not _is_dtensor(like) or not isinstance(value, Tensor) or _is_dtensor(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Each process has the values, so that none has to be sent.
    return distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)


def _slots_like(optimizer: Optimizer, parameter: Tensor) -> Callable[[str, Any], Any]:
    """Says how what an optimizer keeps of a parameter is sharded: as it is now, or else as the parameter."""

    def like(slot: str, value: Any) -> Any:
        now = optimizer.state[parameter].get(slot) if parameter in optimizer.state else None
        return now if _is_dtensor(now) and now.shape == getattr(value, "shape", None) else parameter

    return like


def _read_shards(reader: ShardReader, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder has for the objects of a state; each process reads its part."""
    from fabric_lite.utilities.shards import nested

    forms = reader.tensors()
    paths = {name: way for name, way in reader.paths().items() if way[0] in state}
    likes = dict(_likes(state, (), _names_of_shards(state)))
    targets: dict[str, Any] = {}
    for name, way in paths.items():
        like = likes.get(way) or likes.get(way[:-1])
        targets[name] = None if name not in forms else _empty(forms[name], like and like(way[-1], forms[name]))
    return nested(reader.read(targets, collective=True), paths)


def _likes(obj: Any, way: _Path, names: Names) -> Iterator[tuple[_Path, Callable[[Any, Any], Any]]]:
    """Where the tensors of objects are in a checkpoint, and what says how each of them is sharded."""
    if isinstance(obj, Optimizer):
        for key, parameter in keys_of(obj, names).items():
            yield (*way, "state", key), _slots_like(obj, parameter)
    elif isinstance(obj, Tensor):
        yield way, lambda *_: obj
    elif isinstance(obj, (list, tuple)):
        for index, part in enumerate(obj):
            yield from _likes(part, (*way, index), names)
    else:
        parts = obj if isinstance(obj, Mapping) else obj.state_dict() if isinstance(obj, _Stateful) else {}
        for key, part in parts.items():
            yield from _likes(part, (*way, str(key)), names)


def _empty(form: Tensor, like: Any) -> Tensor:
    """Memory for a tensor, or for the part of it that this process keeps; on the CPU, until all has been read."""
    if _is_dtensor(like) and like.shape == form.shape:
        return torch.empty_like(like.detach(), dtype=form.dtype, device="cpu")
    return torch.empty(form.shape, dtype=form.dtype)
