"""Stop when a metric says so."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, Literal

from fabric_lite.callbacks.criteria import AnyOf, Criterion, Patience
from fabric_lite.events import AbstractTrainingPhase, Phase, ValidationPhase
from fabric_lite.permissions import Callback, CancelFittingException, Read, StateAccess


class AllOthers(ABC):  # noqa: B024 - a rule about types, nobody derives from it
    """Every type of callback but `EarlyStopping`, for its ``runafter``."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return not issubclass(kind, EarlyStopping)


class EarlyStopping(Callback):
    """Cancels fitting when one of several criteria says so.

        EarlyStopping(3)  # or patience=3: after 3 epochs in a row, each with a higher loss than the one before
        EarlyStopping(NumberSinceBest(5), InvalidValue())
        EarlyStopping(Warmup(GL(5.0), n=10) | TimeLimit(3600), monitor="accuracy", mode="max")

    At the end of each epoch of its phase, the criteria see the metric. If the phase does not train, they see that of
    the training epochs, too, as ``training=True``, which `PQ` needs. It decides for all processes: one that would stop
    is enough. It runs after all other callbacks, so that none of them misses the end of the last epoch.

    State access: reads ``cbstate.metricsepoch`` and ``fabric``. In a hand-written loop, ``fabric`` may be missing, and
    `CancelFittingException` is the loop's to catch.

    Args:
        *criteria: When to stop; one number stands for `Patience`.
        patience: The same as the number.
        monitor: Name of the metric.
        phase: The phase whose metric it is.
        mode: Whether the metric is good when it is low, or ``"max"``, when it is high: the criteria see it negated,
            then.

    Raises:
        TypeError: If a criterion is none.
        ValueError: If there is no criterion, or the mode is something else.
    """

    def __init__(
        self,
        *criteria: Criterion | int,
        patience: int | None = None,
        monitor: str = "Loss",
        phase: Phase | type[Phase] = ValidationPhase,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        given = [*criteria] if patience is None else [*criteria, patience]
        if not given:
            raise ValueError("`EarlyStopping()` would never stop. Say when: `EarlyStopping(patience=3)`.")
        if mode not in ("min", "max"):
            raise ValueError(f"`EarlyStopping(mode={mode!r})`: choose 'min' or 'max'.")
        chosen = [Patience(one) if isinstance(one, int) else one for one in given]
        for one in chosen:
            if not isinstance(one, Criterion):
                raise TypeError(f"`EarlyStopping({one!r})`: pass a criterion, such as `Patience(3)`, or a number.")
        self.criterion = chosen[0] if len(chosen) == 1 else AnyOf(*chosen)
        self.monitor = monitor
        self.phase = phase if isinstance(phase, type) else type(phase)
        self.mode = mode
        self._seen: dict[str, int] = {}

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"cbstate": {"metricsepoch": Read()}, "fabric": Read()}

    def runafter(self) -> tuple[type, ...]:
        """All others: what it raises would keep the end of the epoch from those that come later."""
        return (AllOthers,)

    def on_fit_begin(self) -> None:
        """Let the time run, for a limit of it."""
        self.criterion.start()

    def on_epoch_end(self, learner: Any, phase: Any) -> None:
        """Look at the metric.

        Args:
            learner: The learner.
            phase: The phase.

        Raises:
            CancelFittingException: If it is time to stop.
            KeyError: If the phase has no such metric.
        """
        mine = isinstance(phase, self.phase)
        if not mine and (issubclass(self.phase, AbstractTrainingPhase) or not isinstance(phase, AbstractTrainingPhase)):
            return
        metrics = learner.cbstate.metricsepoch[phase]
        if self.monitor in metrics:
            values = self._unseen(metrics[self.monitor], "own" if mine else "training")
            sign = -1 if self.mode == "max" else 1
            done = any(self.criterion.update(sign * value, training=not mine) for value in values)
        elif mine:
            raise KeyError(
                f"`EarlyStopping(monitor={self.monitor!r})` looks at a metric that {phase!r} does not have, only"
                f" {', '.join(map(repr, metrics)) or 'none'}."
            )
        else:
            done = False
        fabric = getattr(learner, "fabric", None)
        if fabric is not None and fabric.world_size > 1:
            done = fabric.strategy.reduce_boolean_decision(done, all=False)
        if done:
            why = self.criterion.message or "another process decided to stop"
            raise CancelFittingException(f"early stopping on {self.monitor!r} of {phase.name!r}: {why}")

    def _unseen(self, series: Any, which: str) -> list[float]:
        """The values that the criteria have not seen.

        A checkpoint is written before this callback, the last one, has seen the epoch's value; when training resumes
        from it, the value is in the series.
        """
        seen, (step, value) = self._seen.get(which), series[-1]
        self._seen[which] = step
        if seen is None or seen > step:  # it joins a training under way, or the series has begun anew
            return [float(value)]
        return [float(value) for step, value in series if step > seen]

    def state_dict(self) -> dict[str, Any]:
        """What the criteria have seen."""
        return {"criterion": self.criterion.state_dict(), "seen": dict(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.criterion.load_state_dict(state["criterion"])
        self._seen = {"own": 0, "training": 0, **state["seen"]}
