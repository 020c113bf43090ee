"""Hyperparameters: values of a training that a schedule may set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fabric_lite.permissions import StateAccess, Write


class HyperParameter:
    """A value of a training, with a way to get and to set it.

    One of your own overrides the three methods. Two that are equal are the same hyperparameter.
    """

    def stateaccess(self) -> StateAccess:
        """What getting and setting it touches, as in `Callback.stateaccess`."""
        raise NotImplementedError(f"`{type(self).__name__}` has no `stateaccess(self)`: return what it writes.")

    def get(self, learner: Any) -> Any:
        """Its value.

        Args:
            learner: The learner.
        """
        raise NotImplementedError(f"`{type(self).__name__}` has no `get(self, learner)`: return its value.")

    def set(self, learner: Any, value: Any) -> None:
        """Give it a value.

        Args:
            learner: The learner.
            value: The value.
        """
        raise NotImplementedError(f"`{type(self).__name__}` has no `set(self, learner, value)`: set it there.")


@dataclass(frozen=True)
class _OfGroups(HyperParameter):
    """A value that parameter groups of optimizers have.

    Args:
        optimizer: Which optimizer, by name, where there are several; by default, all.
        group: Which parameter group, by number; by default, all.
    """

    optimizer: str | None = None
    group: int | None = None

    keys: ClassVar[tuple[str, ...]] = ()

    def stateaccess(self) -> StateAccess:
        """See `HyperParameter.stateaccess`: it writes the optimizer."""
        return {"optimizer" if self.optimizer is None else f"optimizer.{self.optimizer}": Write()}

    def get(self, learner: Any) -> float:
        """Its value in the first of its groups.

        Args:
            learner: The learner.
        """
        optimizer, group = next(self._groups(learner))
        value = group[self._key(optimizer, group)]
        return float(value[0] if isinstance(value, tuple) else value)

    def set(self, learner: Any, value: float) -> None:
        """Set it in all of its groups.

        Args:
            learner: The learner.
            value: The value.
        """
        for optimizer, group in self._groups(learner):
            key = self._key(optimizer, group)
            before = group[key]
            if isinstance(before, Tensor):
                before.fill_(value)  # a captured or compiled optimizer reads this very tensor
            else:
                group[key] = (value, *before[1:]) if isinstance(before, tuple) else value

    def _groups(self, learner: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        for optimizer in optimizers_of(learner, self.optimizer):
            groups = optimizer.param_groups
            if self.group is not None and not -len(groups) <= self.group < len(groups):
                raise IndexError(f"{self!r}: {type(optimizer).__name__} has {len(groups)} parameter group(s).")
            for group in groups if self.group is None else [groups[self.group]]:
                yield optimizer, group

    def _key(self, optimizer: Any, group: Mapping[str, Any]) -> str:
        """Under which key a group has it."""
        for key in self.keys:
            if key in group:
                return key
        there = ", ".join(repr(key) for key in group if key != "params")
        raise KeyError(
            f"{self!r}: the parameter groups of {type(optimizer).__name__} have no"
            f" {' or '.join(map(repr, self.keys))}, only {there}."
        )


class LearningRate(_OfGroups):
    """The learning rate.

    Args:
        optimizer: Which optimizer, by name, where there are several; by default, all.
        group: Which parameter group, by number; by default, all.
    """

    keys = ("lr",)


class Momentum(_OfGroups):
    """The momentum; of Adam and its kin the first of the two ``betas``.

    Args:
        optimizer: Which optimizer, by name, where there are several; by default, all.
        group: Which parameter group, by number; by default, all.
    """

    keys = ("momentum", "betas")


class WeightDecay(_OfGroups):
    """The weight decay.

    Args:
        optimizer: Which optimizer, by name, where there are several; by default, all.
        group: Which parameter group, by number; by default, all.
    """

    keys = ("weight_decay",)


@dataclass(frozen=True)
class Attribute(HyperParameter):
    """Any attribute, or entry of a mapping, below the learner: ``Attribute("lossfn.label_smoothing")``.

    It must be there, unless it is one of ``step`` or ``cbstate``.

    Args:
        path: Its name, dotted.
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path or not all(self.path.split(".")):
            raise ValueError(f"{self!r}: a path is written like 'lossfn.label_smoothing'.")

    def stateaccess(self) -> StateAccess:
        """See `HyperParameter.stateaccess`: it writes the path."""
        return {self.path: Write()}

    def get(self, learner: Any) -> Any:
        """Its value.

        Args:
            learner: The learner.
        """
        owner, name = self._owner(learner)
        return self._part(owner, name)

    def set(self, learner: Any, value: Any) -> None:
        """Set it.

        Args:
            learner: The learner.
            value: The value.
        """
        owner, name = self._owner(learner)
        if self.path.split(".")[0] not in ("step", "cbstate"):
            self._part(owner, name)  # a new one would be a misspelt one
        if hasattr(owner, name) or not hasattr(type(owner), "__setitem__"):
            setattr(owner, name, value)
        else:
            owner[name] = value

    def _owner(self, learner: Any) -> tuple[Any, str]:
        *above, name = self.path.split(".")
        for part in above:
            learner = self._part(learner, part)
        return learner, name

    def _part(self, owner: Any, name: str) -> Any:
        try:
            return getattr(owner, name)
        except AttributeError as error:
            if hasattr(type(owner), "__contains__") and name in owner:
                return owner[name]
            raise self._missing(name) from error

    def _missing(self, name: str) -> AttributeError:
        return AttributeError(f"{self!r}: the learner has nothing there, {name!r} is missing. Is it misspelt?")


def optimizers_of(learner: Any, name: str | None = None) -> list[Any]:
    """The optimizers of a learner.

    Args:
        learner: The learner.
        name: The name of one, where there are several; by default, all.

    Raises:
        KeyError: If there is none of that name.
    """
    optimizer = learner.optimizer
    if name is None:
        return list(optimizer.values()) if isinstance(optimizer, Mapping) else [optimizer]
    try:
        return [optimizer[name]]
    except (KeyError, TypeError) as error:
        raise KeyError(
            f"There is no optimizer {name!r}: `learner.optimizer` is not a mapping that has one. Leave the name out, or"
            " give the learner optimizers by name."
        ) from error
