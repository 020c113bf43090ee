"""Where metrics and hyperparameters are written to."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

from fabric_lite.utilities.lazy import names_on_demand as _names_on_demand

if _TYPE_CHECKING:
    from fabric_lite.loggers.csv_logs import CSVLogger
    from fabric_lite.loggers.logger import Logger
    from fabric_lite.loggers.tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "Logger", "TensorBoardLogger"]

__getattr__ = _names_on_demand(
    __name__, {"CSVLogger": "csv_logs", "Logger": "logger", "TensorBoardLogger": "tensorboard"}
)
