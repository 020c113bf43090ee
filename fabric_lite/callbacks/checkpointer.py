"""`Checkpointer`: saves a training, and keeps the best checkpoints."""

from __future__ import annotations

import math
import time
from abc import ABC
from collections.abc import Mapping, Sequence
from signal import Signals
from typing import Any, Literal, NamedTuple

import torch

from fabric_lite.callbacks._logging import every
from fabric_lite.callbacks._preemption import Preemption
from fabric_lite.callbacks._training_state import training_state
from fabric_lite.callbacks.early_stopping import EarlyStopping
from fabric_lite.checkpoint.latest import find_latest
from fabric_lite.events import AbstractTrainingPhase, Phase, ValidationPhase
from fabric_lite.permissions import Callback, CancelFittingException, Read, StateAccess
from fabric_lite.utilities.types import _PATH


class Saved(NamedTuple):
    """A checkpoint that is kept.

    Attributes:
        path: Where it is.
        value: The monitored value; without a monitor, how manieth save it was.
    """

    path: str
    value: float


_RESERVED = {"model", "optimizer", "callbacks", "callbacks of each rank", "precision", "progress", "data", "rng"}


class AllOthers(ABC):  # noqa: B024 - a rule about types, nobody derives from it
    """Every type of callback but `Checkpointer` and `EarlyStopping`, which runs after it."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return not issubclass(kind, (Checkpointer, EarlyStopping))


class Checkpointer(Callback):
    """Saves a training through the learner's `Fabric`, whole or not at all, so that it can go on where it was.

    Saved are model, optimizer, callbacks, the scaler of the precision, random number generators, the positions of
    dataloaders and how far `Learner.fit` has come: ``learner.fit(epochs, resume="latest")`` goes on from there.

    With a ``monitor``, an epoch is saved as ``epoch-003-Loss-0.123.ckpt`` after its validation, if it is among the
    best; else after its training, as ``epoch-003.ckpt``, and the newest are kept. ``latest.ckpt`` is written each time,
    and once more when fitting ends if something has happened since. An old checkpoint is deleted only when the new one
    is there.

    When the process gets one of the signals by which clusters announce that they take a machine away, it saves at the
    end of the running step, on all processes together, and cancels fitting. A handler that was there is called, too,
    and is back when fitting ends. In a hand-written loop, `CancelFittingException` is the loop's to catch, and signals
    are heeded from ``on_fit_begin`` to ``on_fit_end``.

    It runs after all other guarded callbacks, so that what they keep is up to date when it is saved; only
    `EarlyStopping` comes later, and catches up.

    Reads ``fabric``, ``model``, ``optimizer``, ``data``, ``progress`` and ``cbstate``; the loop need not have the last
    four, unless there is a monitor, which is in ``cbstate``.

    Args:
        folder: Where to; a path or fsspec URL.
        monitor: A metric of ``cbstate.metricsepoch``, such as ``"Loss"``.
        mode: Whether the smallest (``"min"``) or the largest (``"max"``) values are best. NaN is worst.
        keep_top_k: How many epochs to keep; None for all.
        latest: Whether to write ``latest.ckpt``.
        every_n_epochs: Save each so manieth epoch; None for none.
        every_n_steps: Save each so manieth training step, too: ``latest.ckpt``, and without a monitor
            ``step-00000100.ckpt``, which count among those that are kept.
        every_n_minutes: Save after the first training step that ends so many minutes after the last save, too.
        signals: Names of the signals that announce a preemption; none, to leave them alone.
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
        every_n_minutes: float | None = None,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        state: Mapping[str, Any] | None = None,
        *,
        phase: Phase | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"`Checkpointer(mode={mode!r})`: pass 'min' or 'max'.")
        if keep_top_k is not None and keep_top_k < 0:
            raise ValueError(f"`Checkpointer(keep_top_k={keep_top_k!r})`: pass 0 or more, or None to keep all.")
        if reserved := _RESERVED & set(state or ()):
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
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise ValueError(f"`Checkpointer(every_n_minutes={every_n_minutes!r})`: pass more than 0, or None.")
        self.every_n_minutes = every_n_minutes
        self.state = dict(state or {})
        self.phase = ValidationPhase() if phase is None else phase
        self.kept: list[Saved] = []
        self.epochs = self.steps = 0
        self._preemption = Preemption(signals)
        self._saved_at = time.monotonic()
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
        names = ("fabric", "model", "optimizer", "data", "progress", "cbstate")
        return {name: Read() for name in names}

    def runafter(self) -> tuple[type, ...]:
        """All others but `EarlyStopping`: what they keep belongs into the checkpoint."""
        return (AllOthers,)

    def on_fit_begin(self) -> None:
        """Heed the signals, and let the time run."""
        self._preemption.heed()
        self._saved_at = time.monotonic()

    def on_train_step_end(self, learner: Any) -> None:
        """Count the step, save if it is time, and end a training that is preempted.

        Args:
            learner: The learner.

        Raises:
            CancelFittingException: If the process got a signal; after everything has been saved.
        """
        self.steps += 1
        due = self.every_n_steps is not None and self.steps % self.every_n_steps == 0
        name = f"step-{self.steps:08d}" if due and self.monitor is None else None
        self._save_in_epoch(learner, due, name)

    def on_step_end(self, learner: Any) -> None:
        """End a training that is preempted in a step of another phase.

        Args:
            learner: The learner.

        Raises:
            CancelFittingException: If the process got a signal; after everything has been saved.
        """
        self._save_in_epoch(learner, False, None)

    def _save_in_epoch(self, learner: Any, due: bool, name: str | None) -> None:
        """Save if it is time or a signal came."""
        received, is_time = self._agree(_fabric(learner))
        if due or received or is_time:
            self._save(learner, name, latest=self.latest or name is None or bool(received))
        if received:
            reason = f"preempted by {Signals(received).name}"
            raise CancelFittingException(f"{reason}; everything is in {self.latest_path}")

    def _agree(self, fabric: Any) -> tuple[int, bool]:
        """The signal that any process got, and whether any process finds that it is time."""
        minutes = self.every_n_minutes
        is_time = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        received = self._preemption.received
        if fabric.world_size > 1 and (minutes is not None or self._preemption.names):
            votes = fabric.all_reduce(torch.tensor([received, int(is_time)], device=fabric.device), reduce_op="max")
            received, is_time = votes[0].item(), bool(votes[1])
        return received, is_time

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
        self._preemption.release()

    def on_exception(self) -> None:
        """Leave the signals to who had them before."""
        self._preemption.release()

    def find_latest(self) -> str | None:
        """The newest checkpoint in the folder that is whole. One that is damaged is passed over, with a warning.

        Returns:
            Its path; None if there is none.
        """
        return find_latest(self.folder)

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

    def _save(
        self,
        learner: Any,
        name: str | None,
        value: float | None = None,
        epoch: int | None = None,
        latest: bool | None = None,
    ) -> None:
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
            for path in [*paths, *([self.latest_path] if (self.latest if latest is None else latest) else [])]:
                fabric.save(path, training_state(learner, self.state))
        except BaseException:
            self.kept, self._saves, self._seen = before
            raise
        self._saved_at = time.monotonic()
        gone = {old.path for old in before[0]} - {still.path for still in self.kept}
        if fabric.is_global_zero:
            for path in gone:
                fabric.strategy.checkpoint_io.remove_checkpoint(path)

    def _rank(self, saved: Saved) -> float:
        """What to sort by, the best first."""
        if math.isnan(saved.value):
            return math.inf
        return saved.value if self.monitor is not None and self.mode == "min" else -saved.value


def _fabric(learner: Any) -> Any:
    fabric = getattr(learner, "fabric", None)
    if fabric is None:
        raise AttributeError(
            "`Checkpointer` saves through `learner.fabric`, which this learner does not have. Write"
            ' `fabric.call("on_epoch_end", learner=State(fabric=fabric, model=model, optimizer=optimizer), ...)`.'
        )
    return fabric
