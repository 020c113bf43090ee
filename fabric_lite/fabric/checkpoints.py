"""The part of `Fabric` that saves and loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from fabric_lite.checkpoint.background import BackgroundSaver, raise_earlier
from fabric_lite.checkpoint.by_rank import of_each_rank
from fabric_lite.checkpoint.state import keep_plain_values, validate_filter
from fabric_lite.connector import Plan
from fabric_lite.fabric.setup import _Setup
from fabric_lite.fabric.waiting import said_who_is_missing
from fabric_lite.hooks import Callbacks
from fabric_lite.utilities.types import _PATH, _Stateful
from fabric_lite.wrappers import _unwrap_objects

_Filter = Mapping[str, Callable[[str, Any], bool]]


class _Checkpoints(_Setup):
    """Saves and loads the state of a training.

    Args:
        plan: What the run consists of.
        callbacks: The callbacks.
    """

    def __init__(self, plan: Plan, callbacks: Callbacks) -> None:
        self._saver = BackgroundSaver()
        self._saves_in_background = False  # in some process; the same in all of them
        super().__init__(plan, callbacks)

    def save(self, path: _PATH, state: dict[str, Any], filter: _Filter | None = None) -> None:
        """Write a checkpoint. All processes have to call it.

        A process that is killed leaves the old checkpoint or the new one, whole.

        Args:
            path: Where; a path or fsspec URL. Missing folders are made.
            state: Objects by name. Modules, optimizers and everything else with a ``state_dict`` are saved by it,
                other values as they are.
            filter: For a name, a function ``(key, value) -> bool`` that says what of its state is saved.

        Raises:
            TypeError: If the filter is no dictionary of functions.
            ValueError: If it has a name that the state has not.
            OSError: If it cannot be written. What was there before is untouched.
        """
        if filter is not None:
            validate_filter(filter, state)
        with said_who_is_missing("fabric.save", self.global_rank, self.world_size):
            failed = self._saver.settle(path)
            error: Exception | None = None
            try:
                bare = self._bare(state)
                self._strategy.save_checkpoint(path=path, state=bare, filter=filter)
            except Exception as exception:
                error = exception
                if self.world_size == 1:
                    raise
            self._saves_in_background = False
            self.barrier("fabric.save")
        self._fail_together(error, path)
        if failed is not None:
            raise_earlier(failed, path)

    def _bare(self, state: Any) -> Any:
        """What the strategy saves and loads: without wrappers, except those of dataloaders, which know the position."""
        strategy = self._strategy
        bare = _unwrap_objects(state, dataloaders=False)
        return of_each_rank(bare, strategy.global_rank, strategy.world_size, strategy.gather_objects)

    def _fail_together(self, error: Exception | None, path: _PATH) -> None:
        """If the first process could not write, raise in all: otherwise they would wait for it at the next barrier."""
        if self.world_size == 1:
            return
        cause = self.broadcast(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if cause is not None:
            raise RuntimeError(f"The checkpoint {str(path)!r} was not written. Rank 0 says: {cause}")

    def save_async(self, path: _PATH, state: dict[str, Any], filter: _Filter | None = None) -> Future[None]:
        """Write a checkpoint in the background. All processes have to call it.

        When it returns, all of the state has been copied, and may change. One checkpoint is written at a time: if there
        is an earlier one still, this waits for it first. `save`, `load` and the end of the program wait, too.

        Args:
            path: Where; a path or fsspec URL. Missing folders are made.
            state: Objects by name, as for `save`.
            filter: As for `save`.

        Returns:
            Its ``result()`` waits, and raises what went wrong. If nobody calls it, the next save raises it, or else the
            program ends with its traceback and a status that is not 0. In processes that write nothing, it is done at
            once.

        Raises:
            TypeError: If the filter is no dictionary of functions.
            ValueError: If it has a name that the state has not.
        """
        if filter is not None:
            validate_filter(filter, state)
        failed = self._saver.settle(path)
        write = self._strategy.snapshot_checkpoint(path=path, state=self._bare(state), filter=filter)
        self._saves_in_background = True
        future = self._saver.start(path, write)
        if failed is not None:
            raise_earlier(failed, path)
        return future

    def load(
        self, path: _PATH, state: dict[str, Any] | None = None, strict: bool = True, *, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, and give objects their state back. All processes have to call it.

        All of it is read and checked first: if this raises one of the errors below, nothing was changed.

        Args:
            path: Where it is.
            state: Objects by name. What has no ``load_state_dict`` is replaced in the dictionary.
            strict: Whether each name must be in the checkpoint, and the keys of modules must match. If not, what did
                not match is logged.
            weights_only: Whether to refuse everything but tensors and plain values. None means True.

        Returns:
            What of the checkpoint no object took; without a state, all of it.

        Raises:
            FileNotFoundError: If it is not there.
            CheckpointError: If it is damaged, or no checkpoint.
            KeyError: If a name of the state is not in it, and ``strict`` is set.
            RuntimeError: If the state of a module does not fit.
            ValueError: If that of an optimizer does not fit.
        """
        self._await_background(path)
        bare = None if state is None else {name: self._bare(obj) for name, obj in state.items()}
        remainder = self._strategy.load_checkpoint(path=path, state=bare, strict=strict, weights_only=weights_only)
        self.barrier("fabric.load")
        if state is not None and bare is not None:
            keep_plain_values(state, bare)
        return remainder

    def load_raw(self, path: _PATH, obj: Any, strict: bool = True, *, weights_only: bool | None = None) -> None:
        """Load a file that holds the state of one module or optimizer and nothing else.

        Args:
            path: Where it is.
            obj: The module or optimizer, or another object with ``load_state_dict``.
            strict: Whether the keys of a module must match.
            weights_only: Whether to refuse everything but tensors and plain values. None means True.

        Raises:
            TypeError: If the object has no ``load_state_dict``.
            CheckpointError: If the file is damaged, or no checkpoint.
        """
        bare = _unwrap_objects(obj)
        if not isinstance(bare, _Stateful):
            raise TypeError(
                f"`fabric.load_raw({str(path)!r}, {obj!r})`: pass a module or optimizer, or another object"
                " with `load_state_dict`. To read a checkpoint as it is, use `fabric.load(path)`."
            )
        self._await_background(path)
        self._strategy.load_checkpoint(path=path, state=bare, strict=strict, weights_only=weights_only)

    def _await_background(self, path: _PATH) -> None:
        """Wait until no process is writing any more."""
        self._saver.wait(path)
        if self._saves_in_background:
            self._saves_in_background = False
            self.barrier("fabric.load")
