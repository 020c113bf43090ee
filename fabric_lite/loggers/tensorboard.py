"""Metrics as TensorBoard event files."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from fabric_lite.loggers.logger import Logger, _at_end, _next_version, rank_zero_experiment
from fabric_lite.utilities.cloud_io import _files
from fabric_lite.utilities.logger import (
    _add_prefix,
    _convert_params,
    _flatten_dict,
    _sanitize_params,
    _snapshot,
    _to_scalars,
)
from fabric_lite.utilities.rank_zero import rank_zero_only, rank_zero_warn
from fabric_lite.utilities.types import _PATH

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# at most so many scalars, and for at most so many seconds (SummaryWriter's own default), are held back
_MAX_BUFFERED = 100
_MAX_SECONDS = 120


class TensorBoardLogger(Logger):
    """Log to ``{root_dir}/{name}/version_{version}[/{sub_dir}]`` in TensorBoard's format.

    Needs the extra ``tensorboard``; tensorboardX serves as well.

    Scalars are handed to the `SummaryWriter` by and by: every 100 of them (`max_queue`, if that is given), when two
    minutes have passed (`flush_secs`), at `save`, `finalize` and each access to `experiment`, when the logger is
    garbage collected and when the interpreter exits. Tensors are read from their device only then.

    Args:
        root_dir: Folder for all experiments; ``~`` and environment variables are replaced.
        name: Name of the experiment; None or an empty string leaves this folder level out.
        version: Version of the experiment. None takes the next number that has no folder yet; a string is the name of
            the folder as it is.
        default_hp_metric: Whether `log_hyperparams` without metrics writes a placeholder ``hp_metric``, without which
            TensorBoard does not show the hyperparameters.
        prefix: Put before each metric's name, with a dash.
        sub_dir: A folder within that of the version.
        kwargs: Further arguments of `SummaryWriter`.

    Raises:
        ModuleNotFoundError: If neither tensorboard nor tensorboardX can be imported.

    For example:

        logger = TensorBoardLogger("logs", name="my_model")
        logger.log_hyperparams({"epochs": 5, "optimizer": "Adam"})
        logger.log_metrics({"acc": 0.75})
        logger.finalize("success")
    """

    LOGGER_JOIN_CHAR = "-"
    accepts_tensors: bool = True

    def __init__(
        self,
        root_dir: _PATH,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: _PATH | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _import_tensorboard()
        self._root_dir = os.fspath(root_dir)
        self._name = name or ""
        self._version = version
        self._default_hp_metric = default_hp_metric
        self._prefix = prefix
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._kwargs = kwargs
        self._calls = 0
        self._buffer: _ScalarBuffer | None = None

    @property
    @override
    def name(self) -> str:
        """Name of the experiment."""
        return self._name

    @property
    @override
    def version(self) -> int | str:
        """Version of the experiment: the one that was given, else the next number."""
        if self._version is None:
            self._version = _next_version(_expand(os.path.join(self._root_dir, self._name)))
        return self._version

    @property
    @override
    def root_dir(self) -> str:
        """Folder for all experiments, as it was given."""
        return self._root_dir

    @property
    @override
    def log_dir(self) -> str:
        """Folder of this run."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        folders = [self._root_dir, self._name, version, *([self._sub_dir] if self._sub_dir else [])]
        return _expand(os.path.join(*folders))

    @property
    def sub_dir(self) -> str | None:
        """Folder within that of the version."""
        return self._sub_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The `SummaryWriter`, with all that has been logged so far; made at the first access."""
        writer: SummaryWriter = self._scalars().drain()
        return writer

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record scalars.

        Args:
            metrics: Values by name; a tensor must have one element, a dict goes into one chart.
            step: The step to which they belong; if None, the number of calls before.

        Raises:
            ValueError: If a value is not a number.
        """
        values = self._prepare(metrics)
        self._scalars().add(values, self._calls if step is None else step)
        self._calls += 1

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, metrics: Any = None, step: int | None = None) -> None:
        """Record hyperparameters, and the metrics by which TensorBoard compares runs.

        Args:
            params: The hyperparameters by name, in any nesting.
            metrics: Values by name, or one value for ``hp_metric``.
            step: The step to which the metrics belong.

        Raises:
            ValueError: If a metric is not a number.
        """
        if metrics is None and self._default_hp_metric:
            metrics = -1
        if metrics is not None and not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        if not metrics:
            return
        self._scalars().add(self._prepare(metrics), step)
        writer = self._scalars().drain()
        _, hparams = _import_tensorboard()
        for summary in hparams(self._sanitize_params(_flatten_dict(_convert_params(params))), metrics):
            writer._get_file_writer().add_summary(summary, step)

    @override
    @rank_zero_only
    def log_graph(self, model: Module, input_array: Tensor | tuple[Any, ...] | None = None) -> None:
        """Record the graph of a model, as `torch.jit.trace` sees it.

        Args:
            model: The model; one that was set up is traced as it is.
            input_array: A tensor, or the tuple of arguments of `forward`; if None, `model.example_input_array`.
        """
        if input_array is None:
            input_array = getattr(model, "example_input_array", None)
        if not isinstance(input_array, (Tensor, tuple)):
            rank_zero_warn(
                f"The graph of {type(model).__name__} is not logged: tracing needs a tensor or a tuple of arguments,"
                f" and got {type(input_array).__name__}. Pass one: log_graph(model, input_array=torch.rand(1, 3))"
            )
            return
        # a LightningModule prepares its batches itself
        if callable(prepare := getattr(model, "_on_before_batch_transfer", None)) and callable(
            transfer := getattr(model, "_apply_batch_transfer_handler", None)
        ):
            input_array = transfer(prepare(input_array))
        self._scalars().drain().add_graph(model, input_array)

    @override
    @rank_zero_only
    def save(self) -> None:
        """Write all that has been logged to disk."""
        self._scalars().flush()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write all that has been logged to disk and close the file.

        Args:
            status: How the experiment ended; not recorded.
        """
        # a process that never logged leaves no folder behind
        if self._buffer is not None:
            self._buffer.close()

    def _prepare(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Check everything now, so that nothing in the buffer can fail later."""
        values = {
            str(name): {str(key): _scalar(item, f"{name}.{key}") for key, item in value.items()}
            if isinstance(value, dict)
            else _scalar(value, name)
            for name, value in _snapshot(metrics).items()
        }
        return dict(_add_prefix(values, self._prefix, self.LOGGER_JOIN_CHAR))

    def _scalars(self) -> _ScalarBuffer:
        if self._buffer is None:
            if self._root_dir:
                fs, folder = _files(_expand(self._root_dir))
                fs.makedirs(folder, exist_ok=True)
            summary_writer, _ = _import_tensorboard()
            self._buffer = _ScalarBuffer(
                summary_writer(log_dir=self.log_dir, **self._kwargs),
                limit=self._kwargs.get("max_queue", _MAX_BUFFERED),
                seconds=self._kwargs.get("flush_secs", _MAX_SECONDS),
            )
            _at_end(self, self._buffer.close)
        return self._buffer

    @staticmethod
    def _sanitize_params(params: dict[str, Any]) -> dict[str, Any]:
        """What TensorBoard can show: numbers, strings, and tensors of one dimension."""
        params = _sanitize_params(params)
        for name, value in params.items():
            if isinstance(value, Tensor) and value.ndim != 1:
                params[name] = value.item() if value.ndim == 0 else str(value)
        return params

    def __getstate__(self) -> dict[str, Any]:
        # the copy opens a file of its own
        return {**self.__dict__, "_buffer": None}


class _ScalarBuffer:
    """Scalars on their way to a `SummaryWriter`.

    Args:
        writer: Where they go.
        limit: How many to hold.
        seconds: How long to hold them.
    """

    def __init__(self, writer: Any, limit: int, seconds: float) -> None:
        self.writer = writer
        self._limit = limit
        self._seconds = seconds
        self._entries: list[tuple[dict[str, Any], int | None, float]] = []
        self._count = 0

    def add(self, metrics: dict[str, Any], step: int | None) -> None:
        """Hold metrics, and hand over all that is held if it is time."""
        now = time.time()
        self._entries.append((metrics, step, now))
        self._count += sum(len(value) if isinstance(value, dict) else 1 for value in metrics.values())
        if now - self._entries[0][2] >= self._seconds:
            self.flush()
        elif self._count >= self._limit:
            self.drain()

    def drain(self) -> Any:
        """Hand over all that is held, and return the writer."""
        values = _to_scalars({"entries": [metrics for metrics, _, _ in self._entries]})["entries"]
        entries, self._entries, self._count = self._entries, [], 0
        for metrics, (_, step, moment) in zip(values, entries, strict=True):
            for name, value in metrics.items():
                add = self.writer.add_scalars if isinstance(value, dict) else self.writer.add_scalar
                add(name, value, step, walltime=moment)
        return self.writer

    def flush(self) -> None:
        """Write all that is held to disk."""
        self.drain().flush()

    def close(self) -> None:
        """Write all that is held to disk and close the file; what comes later opens another one."""
        self.flush()
        self.writer.close()


def _scalar(value: Any, name: str) -> Any:
    """A number as TensorBoard stores it, or the tensor that holds one."""
    if isinstance(value, Tensor):
        return value
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"The metric {name!r} is {value!r}, which TensorBoard cannot show as a scalar. Log a number, a one-element"
            f" tensor or a dict of them, or use the writer itself: logger.experiment.add_text({name!r}, ...)"
        ) from error


def _expand(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))


def _import_tensorboard() -> tuple[Any, Callable[..., Any]]:
    """The class `SummaryWriter` and the function `hparams`, of whichever package is there."""
    cause: ImportError | None = None
    for package in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return import_module(package).SummaryWriter, import_module(f"{package}.summary").hparams
        except ImportError as error:
            cause = cause or error
    raise ModuleNotFoundError(
        'TensorBoardLogger needs the package tensorboard: pip install "torch-fabric-lite[tensorboard]"'
    ) from cause
