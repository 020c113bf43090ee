"""Metrics as a CSV file."""

from __future__ import annotations

import csv
import io
import json
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import override

from fabric_lite.loggers.logger import Logger, _at_end, _next_version, rank_zero_experiment
from fabric_lite.utilities.cloud_io import _append, _atomic_open, _files
from fabric_lite.utilities.logger import (
    _add_prefix,
    _convert_json_serializable,
    _convert_params,
    _flatten_dict,
    _sanitize_params,
    _snapshot,
    _to_scalars,
)
from fabric_lite.utilities.rank_zero import rank_zero_only, rank_zero_warn
from fabric_lite.utilities.types import _PATH


class CSVLogger(Logger):
    """Log metrics to ``{root_dir}/{name}/version_{version}/metrics.csv``.

    Rows are held in memory and written by and by: every `flush_logs_every_n_steps`, at `save` and `finalize`, when the
    logger is garbage collected and when the interpreter exits. Tensors are read from their device only then.

    Args:
        root_dir: Folder for all experiments: a local path or an fsspec URL.
        name: Name of the experiment; None leaves this folder level out.
        version: Version of the experiment. None takes the next number that has no folder yet; a string is the name of
            the folder as it is. A metrics file that is there already is deleted.
        prefix: Put before each metric's name, with a dash.
        flush_logs_every_n_steps: Write when this many rows are held, or when a step completes a multiple of this.

    For example:

        logger = CSVLogger("logs", name="my_model")
        logger.log_metrics({"loss": 0.235, "acc": 0.75})
        logger.finalize("success")
    """

    LOGGER_JOIN_CHAR = "-"
    accepts_tensors: bool = True

    def __init__(
        self,
        root_dir: _PATH,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__()
        if flush_logs_every_n_steps < 1:
            raise ValueError(
                f"CSVLogger(flush_logs_every_n_steps={flush_logs_every_n_steps}) must be at least 1:"
                " CSVLogger(..., flush_logs_every_n_steps=1) writes every row at once."
            )
        self._root_dir = os.fspath(root_dir)
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._experiment: _ExperimentWriter | None = None
        self._writes_at_end = False

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
            self._version = _next_version(os.path.join(self._root_dir, self._name))
        return self._version

    @property
    @override
    def root_dir(self) -> str:
        """Folder for all experiments."""
        return self._root_dir

    @property
    @override
    def log_dir(self) -> str:
        """Folder of this version."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self._root_dir, self._name, version)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The object that holds and writes the rows, made at the first access."""
        return self._writer()

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Write hyperparameters to ``hparams.json`` beside the metrics; later calls add to earlier ones.

        Args:
            params: The hyperparameters by name, in any nesting.
        """
        self._writer().log_hparams(_convert_params(params))

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record a row.

        Args:
            metrics: Values by name; a tensor must have one element.
            step: The step to which they belong; if None, the number of rows recorded before.

        Raises:
            ValueError: If a tensor has more or less than one element.
            OSError: If it is time to write and the file cannot be written; the rows are kept for the next time.
        """
        writer = self._writer()
        step = writer.add_row(_add_prefix(_snapshot(metrics), self._prefix, self.LOGGER_JOIN_CHAR), step)
        every = self._flush_logs_every_n_steps
        if (step + 1) % every == 0 or len(writer.metrics) >= every:
            self.save()

    @override
    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are held in memory."""
        self._writer().save()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are held in memory.

        Args:
            status: How the experiment ended; not recorded.
        """
        # a process that never logged leaves no folder behind
        if self._experiment is not None:
            self.save()

    def _writer(self) -> _ExperimentWriter:
        if self._experiment is None:
            self._experiment = _ExperimentWriter(self.log_dir)
        if not self._writes_at_end:
            _at_end(self, self._experiment.save)
            self._writes_at_end = True
        return self._experiment

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writes_at_end": False}


class _ExperimentWriter:
    """Holds the rows of a `CSVLogger` and writes them to its file.

    Args:
        log_dir: Folder of the files.
    """

    NAME_METRICS_FILE = "metrics.csv"
    NAME_HPARAMS_FILE = "hparams.json"

    def __init__(self, log_dir: str) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.metrics_keys: list[str] = []
        self.log_dir = log_dir
        self.metrics_file_path = os.path.join(log_dir, self.NAME_METRICS_FILE)
        self._hparams: dict[str, Any] = {}
        self._rows_seen = 0
        self._fs, folder = _files(log_dir)
        self._file = _files(self.metrics_file_path)[1]
        if self._fs.isdir(folder) and self._fs.ls(folder, detail=False):
            rank_zero_warn(
                f"The log folder {log_dir} is not empty, and its {self.NAME_METRICS_FILE} (if any) is deleted now."
                " To keep it, log to another version: CSVLogger(..., version=None) takes the next free one."
            )
            if self._fs.isfile(self._file):
                self._fs.rm_file(self._file)
        self._fs.makedirs(folder, exist_ok=True)

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Hold a row until `save` is called.

        Args:
            metrics_dict: Values by name; a tensor must have one element.
            step: The step to which they belong; if None, the number of rows recorded before.
        """
        self.add_row(_snapshot(metrics_dict), step)

    def add_row(self, metrics: Mapping[str, Any], step: int | None) -> int:
        """Hold a row whose tensors are nobody else's, and return its step."""
        step = self._rows_seen if step is None else step
        self.metrics.append({**{str(name): value for name, value in metrics.items()}, "step": step})
        self._rows_seen += 1
        return step

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Write these hyperparameters, and those of earlier calls, as JSON."""
        self._hparams.update(_convert_json_serializable(_sanitize_params(_flatten_dict(params))))
        with _atomic_open(os.path.join(self.log_dir, self.NAME_HPARAMS_FILE)) as file:
            file.write((json.dumps(self._hparams, indent=2) + "\n").encode())

    def save(self) -> None:
        """Write the rows that are held; if that fails, they are still held and the file is as it was."""
        if not self.metrics:
            return
        # all rows at once: one transfer, and none again if writing fails
        rows: list[dict[str, Any]] = _to_scalars({"rows": self.metrics})["rows"]
        self.metrics[: len(rows)] = rows
        new_keys = set().union(*rows)
        header = self._header()
        if header is None or not new_keys.issubset(header):
            keys = sorted(new_keys.union(self.metrics_keys, header or ()))
            written = [] if header is None else self._written_rows()
            with _atomic_open(self.metrics_file_path) as file:
                file.write(_render([dict(zip(keys, keys, strict=True)), *written, *rows], keys))
        else:
            keys = header
            _append(self.metrics_file_path, _render(rows, keys))
        self.metrics_keys = keys
        del self.metrics[: len(rows)]

    def _header(self) -> list[str] | None:
        """The columns of the file, None if there is no file. Read anew, for an unpickled copy may have added some."""
        if not self._fs.isfile(self._file):
            return None
        with self._open() as text:
            return next(csv.reader(text), [])

    def _written_rows(self) -> list[dict[str, Any]]:
        with self._open() as text:
            return list(csv.DictReader(text))

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(self._fs.open(self._file, "rb"), "utf-8", newline="")

    def __getstate__(self) -> dict[str, Any]:
        # the rows stay with the one that holds them, or they would be written twice
        return {**self.__dict__, "metrics": []}


def _render(rows: Iterable[dict[str, Any]], keys: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, keys).writerows(rows)
    return text.getvalue().encode()
