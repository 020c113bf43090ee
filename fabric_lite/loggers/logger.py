"""The base class of loggers, and how metrics reach them."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import Module

from fabric_lite.utilities.cloud_io import _files, _is_dir
from fabric_lite.utilities.logger import _Snapshot, _snapshot, _to_scalars
from fabric_lite.utilities.rank_zero import rank_zero_only

_Experiment = TypeVar("_Experiment")


class Logger(ABC):
    """Base class for loggers of experiments.

    Attributes:
        accepts_tensors: Whether `log_metrics` takes tensors as they are. If False, `Fabric.log_dict` gives it Python
            numbers, for which it has to wait until the device has computed them. If True, it gives detached copies of
            the tensors, still on their device: the logger keeps them, and reads their values when it writes.
    """

    accepts_tensors: bool = False

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Name of the experiment."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Version of the experiment."""

    @property
    def root_dir(self) -> str | None:
        """Folder in which all versions of an experiment are saved, None if nothing is saved locally."""
        return None

    @property
    def log_dir(self) -> str | None:
        """Folder in which this version of the experiment is saved, None if nothing is saved locally."""
        return None

    @property
    def group_separator(self) -> str:
        """What separates the parts of a metric's name for this logger to group by."""
        return "/"

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics.

        Args:
            metrics: Values by name.
            step: The step to which they belong; if None, the logger counts.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters.

        Args:
            params: The hyperparameters by name.
            args: Further arguments of the particular logger.
            kwargs: Further arguments of the particular logger.
        """

    def log_graph(self, model: Module, input_array: Tensor | None = None) -> None:
        """Record the graph of a model.

        Args:
            model: The model.
            input_array: An input to trace its `forward` with.
        """

    def save(self) -> None:
        """Write down what is still in memory."""

    def finalize(self, status: str) -> None:
        """End the experiment.

        Args:
            status: How it ended, for example ``"success"``, ``"failed"`` or ``"aborted"``.
        """
        self.save()


class _DummyExperiment:
    """Stands in for the experiment on all ranks but the first: takes every call, does nothing."""

    def nop(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return self.nop

    def __getitem__(self, _: Any) -> _DummyExperiment:
        return self

    def __setitem__(self, *_: Any) -> None:
        pass


def rank_zero_experiment(fn: Callable[[Any], _Experiment]) -> Callable[[Any], _Experiment | _DummyExperiment]:
    """Make the property `experiment` of a logger return a dummy on all ranks but the first.

    Args:
        fn: The method that returns the real experiment.

    Returns:
        The method to turn into a property.
    """

    @wraps(fn)
    def experiment(self: Any) -> _Experiment | _DummyExperiment:
        return _DummyExperiment() if getattr(rank_zero_only, "rank", 0) > 0 else fn(self)

    return experiment


def log_to_all(loggers: Sequence[Any], metrics: Mapping[str, Any], step: int | None = None) -> None:
    """Give the same metrics to several loggers.

    Tensors are copied at most once for the loggers that accept tensors, and read from their device at most once, all
    together, for those that do not.

    Args:
        loggers: Objects with a method `log_metrics(metrics=, step=)`; those with `accepts_tensors = True` get tensors.
        metrics: Values by name: numbers, one-element tensors, or dicts of them.
        step: The step to which they belong; if None, each logger counts.

    Raises:
        ValueError: If a tensor has more or less than one element.
    """
    copies: _Snapshot | None = None
    numbers: dict[str, Any] | None = None
    for logger in loggers:
        if getattr(logger, "accepts_tensors", False) is True:
            copies = _snapshot(metrics) if copies is None else copies
            logger.log_metrics(metrics=_Snapshot(copies), step=step)
        else:
            numbers = _to_scalars(copies or metrics) if numbers is None else numbers
            logger.log_metrics(metrics=dict(numbers), step=step)


def _next_version(versions_dir: str) -> int:
    """One more than the highest number among the folders ``version_<number>``."""
    fs, folder = _files(versions_dir)
    if not _is_dir(fs, folder, strict=True):
        return 0
    names = [os.path.basename(path.rstrip("/")) for path in fs.ls(folder, detail=False) if _is_dir(fs, path)]
    numbers = [name.split("_")[1] for name in names if name.startswith("version_")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def _at_end(owner: object, function: Callable[[], None]) -> None:
    """Call the function when the owner is garbage collected, or at the exit of the interpreter."""
    weakref.finalize(owner, _call_in_process, os.getpid(), function)


def _call_in_process(pid: int, function: Callable[[], None]) -> None:
    # a forked process inherits the duty, but what there is to write belongs to its parent
    if os.getpid() == pid:
        function()
