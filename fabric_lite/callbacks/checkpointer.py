"""`Checkpointer`: saves a training, and keeps the best checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from fabric_lite.callbacks._logging import every
from fabric_lite.events import AbstractTrainingPhase, Phase, ValidationPhase
from fabric_lite.permissions import Callback, Read, StateAccess
from fabric_lite.utilities.types import _PATH


class Saved(NamedTuple):
    """A checkpoint that is kept.

    Attributes:
        path: Where it is.
        value: The monitored value; without a monitor, how manieth save it was.
    """

    path: str
    value: float


class Checkpointer(Callback):
    """Saves model, optimizer and callbacks through the learner's `Fabric` at the end of epochs, whole or not at all.

    With a ``monitor``, an epoch is saved as ``epoch-003-Loss-0.123.ckpt`` after its validation, if it is among the
    best; else after its training, as ``epoch-003.ckpt``, and the newest are kept. ``latest.ckpt`` is written each time,
    and once more when fitting ends if something has happened since. An old checkpoint is deleted only when the new one
    is there.

    Give it after callbacks that keep state of their own and write none, so that theirs is up to date when it is saved.
    (Those that write what it reads run before it anyway.)

    Reads ``fabric``, ``model``, ``optimizer`` and ``cbstate``; the loop need not have an optimizer, nor, without a
    monitor, a ``cbstate``.

    Args:
        folder: Where to; a path or fsspec URL.
        monitor: A metric of ``cbstate.metricsepoch``, such as ``"Loss"``.
        mode: Whether the smallest (``"min"``) or the largest (``"max"``) values are best. NaN is worst.
        keep_top_k: How many epochs to keep; None for all.
        latest: Whether to write ``latest.ckpt``.
        every_n_epochs: Save each so manieth epoch; None for none.
        every_n_steps: Save each so manieth training step, too: ``latest.ckpt``, and without a monitor
            ``step-00000100.ckpt``, which count among those that are kept.
        state: More objects to save, by name.
        phase: The phase whose metric is monitored.

    Attributes:
        kept: The checkpoints that are kept, the best first.
        epochs: How many epochs of training there were.
        steps: How many steps of training there were.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        folder: _PATH,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_top_k: int | None = 1,
        latest: bool = True,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        phase: Phase | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"`Checkpointer(mode={mode!r})`: pass 'min' or 'max'.")
        if keep_top_k is not None and keep_top_k < 0:
            raise ValueError(f"`Checkpointer(keep_top_k={keep_top_k!r})`: pass 0 or more, or None to keep all.")
        if reserved := {"model", "optimizer", "callbacks"} & set(state or ()):
            raise ValueError(
                f"`Checkpointer(state=...)` has the name {', '.join(map(repr, sorted(reserved)))}, under which it saves"
                " the learner's own. Choose another name."
            )
        self.folder = str(folder).rstrip("/")
        self.monitor = monitor
        self.mode = mode
        self.keep_top_k = keep_top_k
        self.latest = latest
        self.every_n_epochs = every(every_n_epochs, self, "every_n_epochs")
        self.every_n_steps = every(every_n_steps, self, "every_n_steps")
        self.state = dict(state or {})
        self.phase = ValidationPhase() if phase is None else phase
        self.kept: list[Saved] = []
        self.epochs = self.steps = 0
        self._saves = 0  # how many there were
        self._seen = (0, 0)  # the epoch of the monitored value, and the step, that were saved last

    @property
    def best(self) -> Saved | None:
        """The best checkpoint that is kept."""
        return self.kept[0] if self.kept else None

    @property
    def latest_path(self) -> str:
        """Where the latest checkpoint is, once there is one."""
        return f"{self.folder}/latest.ckpt"

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"fabric": Read(), "model": Read(), "optimizer": Read(), "cbstate": Read()}

    def on_train_step_end(self, learner: Any) -> None:
        """Count the step, and save if it is time.

        Args:
            learner: The learner.
        """
        self.steps += 1
        if self.every_n_steps is not None and self.steps % self.every_n_steps == 0:
            self._save(learner, None if self.monitor else f"step-{self.steps:08d}")

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Count the epoch if it trained, and save if it is time.

        Args:
            learner: The learner.
            phase: The phase.
        """
        trains = isinstance(phase, AbstractTrainingPhase)
        self.epochs += trains
        if self.every_n_epochs is None or self.epochs % self.every_n_epochs:
            return
        if self.monitor is None:
            if trains:
                self._save(learner, f"epoch-{self.epochs:03d}")
        elif phase == self.phase:
            self._save_monitored(learner)

    def on_fit_end(self, learner: Any) -> None:
        """Save what has happened since the last time, as when fitting was cancelled.

        Args:
            learner: The learner.
        """
        if self.monitor is not None and self.every_n_epochs is not None:
            epoch = self._monitored(learner, self.monitor)[0]
            if epoch > self._seen[0]:
                self._save_monitored(learner)
        if self.steps > self._seen[1]:
            self._save(learner, None)

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the checkpoints that are kept."""
        kept = [[path, value] for path, value in self.kept]
        counts = {"epochs": self.epochs, "steps": self.steps, "saves": self._saves, "seen": list(self._seen)}
        return {"kept": kept, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a saved state.

        Args:
            state: From `state_dict`.
        """
        self.kept = [Saved(path, value) for path, value in state["kept"]]
        self.epochs, self.steps, self._saves = state["epochs"], state["steps"], state["saves"]
        self._seen = state["seen"][0], state["seen"][1]

    def _save_monitored(self, learner: Any) -> None:
        """Save an epoch by its value."""
        name = str(self.monitor)
        epoch, value = self._monitored(learner, name)
        if not epoch:
            raise ValueError(
                f"`Checkpointer(monitor={name!r})`: there is no such metric of {self.phase!r}, only"
                f" {', '.join(map(repr, self._metrics(learner))) or 'none'}. Monitor one of these, or add it:"
                " `Metrics(...)`."
            )
        # one process decides what is among the best: all of them have to take part in saving
        value = float(_fabric(learner).broadcast(float(value)))
        self._save(learner, f"epoch-{self.epochs:03d}-{name.replace('/', '-')}-{value:.3f}", value, epoch)

    def _metrics(self, learner: Any) -> Mapping[str, Any]:
        """The metrics of the monitored phase, if it has any yet."""
        metrics = getattr(getattr(learner, "cbstate", None), "metricsepoch", {})
        found: Mapping[str, Any] = metrics.get(self.phase, {})
        return found

    def _monitored(self, learner: Any, name: str) -> tuple[int, Any]:
        """The newest value of the monitored metric, with the number of its epoch; 0 if there is none."""
        metrics = self._metrics(learner)
        return metrics[name][-1] if name in metrics and len(metrics[name]) else (0, None)

    def _save(self, learner: Any, name: str | None, value: float | None = None, epoch: int | None = None) -> None:
        """Save the latest state and, if it is among those to keep, under a name; then delete what is not any more."""
        fabric = _fabric(learner)
        before = self.kept, self._saves, self._seen
        self._saves += 1
        self._seen = self._seen[0] if epoch is None else epoch, self.steps
        new = name and Saved(f"{self.folder}/{name}.ckpt", float(self._saves) if value is None else value)
        if new:
            kept = sorted([new, *(old for old in self.kept if old.path != new.path)], key=self._rank)
            self.kept = kept[: self.keep_top_k]
        paths = [new.path] if new and new in self.kept else []
        try:
            for path in [*paths, *([self.latest_path] if self.latest else [])]:
                fabric.save(path, self._contents(learner, fabric))
        except BaseException:
            self.kept, self._saves, self._seen = before
            raise
        gone = {old.path for old in before[0]} - {still.path for still in self.kept}
        if fabric.is_global_zero:
            for path in gone:
                fabric.strategy.checkpoint_io.remove_checkpoint(path)

    def _rank(self, saved: Saved) -> float:
        """What to sort by, the best first."""
        if math.isnan(saved.value):
            return math.inf
        return saved.value if self.monitor is not None and self.mode == "min" else -saved.value

    def _contents(self, learner: Any, fabric: Any) -> dict[str, Any]:
        contents = {"model": learner.model, "optimizer": getattr(learner, "optimizer", None), **self.state}
        contents = {name: dict(part) if isinstance(part, Mapping) else part for name, part in contents.items()}
        return {**{name: part for name, part in contents.items() if part is not None}, "callbacks": fabric.callbacks}


def _fabric(learner: Any) -> Any:
    fabric = getattr(learner, "fabric", None)
    if fabric is None:
        raise AttributeError(
            "`Checkpointer` saves through `learner.fabric`, which this learner does not have. Write"
            ' `fabric.call("on_epoch_end", learner=State(fabric=fabric, model=model, optimizer=optimizer), ...)`.'
        )
    return fabric
