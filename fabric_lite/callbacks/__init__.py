"""Callbacks that work in any loop that passes its ``learner``: with a `Learner`, or in one written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

from fabric_lite.utilities.lazy import names_on_demand as _names_on_demand

if _TYPE_CHECKING:
    from fabric_lite.callbacks.checkpointer import Checkpointer
    from fabric_lite.callbacks.criteria import (
        GL,
        PQ,
        InvalidValue,
        Never,
        NumberLimit,
        NumberSinceBest,
        Patience,
        Threshold,
        TimeLimit,
    )
    from fabric_lite.callbacks.criterion import Criterion, Warmup
    from fabric_lite.callbacks.custom import CustomCallback
    from fabric_lite.callbacks.defaults import default_callbacks
    from fabric_lite.callbacks.early_stopping import EarlyStopping
    from fabric_lite.callbacks.ema import EMA
    from fabric_lite.callbacks.garbage_collect import GarbageCollect
    from fabric_lite.callbacks.gradient_norm import GradientNorm
    from fabric_lite.callbacks.hook_profiler import HookProfiler
    from fabric_lite.callbacks.hyperparameters import Attribute, HyperParameter, LearningRate, Momentum, WeightDecay
    from fabric_lite.callbacks.log_histograms import LogHistograms
    from fabric_lite.callbacks.log_hyperparams import LogHyperParams
    from fabric_lite.callbacks.log_metrics import LogMetrics
    from fabric_lite.callbacks.log_run import LogRun
    from fabric_lite.callbacks.log_throughput import LogThroughput
    from fabric_lite.callbacks.log_visualization import LogVisualization
    from fabric_lite.callbacks.metric import Metric, SmoothLoss
    from fabric_lite.callbacks.metrics import Metrics
    from fabric_lite.callbacks.metrics_printer import MetricsPrinter
    from fabric_lite.callbacks.progress import ProgressPrinter
    from fabric_lite.callbacks.recorder import History, Recorder
    from fabric_lite.callbacks.sanity_check import SanityCheck, SanityCheckException
    from fabric_lite.callbacks.scheduler import Scheduler
    from fabric_lite.callbacks.schedules import Constant, Cosine, Exponential, Linear, Polynomial, Schedule, onecycle
    from fabric_lite.callbacks.series import Series
    from fabric_lite.callbacks.stop_on_nan import StopOnNaNLoss
    from fabric_lite.callbacks.timer import Timer
    from fabric_lite.callbacks.to_device import ToDevice, ToGPU
    from fabric_lite.callbacks.traces import LogTraces, Traces

__all__ = [
    "EMA",
    "GL",
    "PQ",
    "Attribute",
    "Checkpointer",
    "Constant",
    "Cosine",
    "Criterion",
    "CustomCallback",
    "EarlyStopping",
    "Exponential",
    "GarbageCollect",
    "GradientNorm",
    "History",
    "HookProfiler",
    "HyperParameter",
    "InvalidValue",
    "LearningRate",
    "Linear",
    "LogHistograms",
    "LogHyperParams",
    "LogMetrics",
    "LogRun",
    "LogThroughput",
    "LogTraces",
    "LogVisualization",
    "Metric",
    "Metrics",
    "MetricsPrinter",
    "Momentum",
    "Never",
    "NumberLimit",
    "NumberSinceBest",
    "Patience",
    "Polynomial",
    "ProgressPrinter",
    "Recorder",
    "SanityCheck",
    "SanityCheckException",
    "Schedule",
    "Scheduler",
    "Series",
    "SmoothLoss",
    "StopOnNaNLoss",
    "Threshold",
    "TimeLimit",
    "Timer",
    "ToDevice",
    "ToGPU",
    "Traces",
    "Warmup",
    "WeightDecay",
    "default_callbacks",
    "onecycle",
]

_HOMES = {
    "Attribute": "hyperparameters",
    "Checkpointer": "checkpointer",
    "Constant": "schedules",
    "Cosine": "schedules",
    "Criterion": "criterion",
    "CustomCallback": "custom",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "Exponential": "schedules",
    "GL": "criteria",
    "GarbageCollect": "garbage_collect",
    "GradientNorm": "gradient_norm",
    "History": "recorder",
    "HookProfiler": "hook_profiler",
    "HyperParameter": "hyperparameters",
    "InvalidValue": "criteria",
    "LearningRate": "hyperparameters",
    "Linear": "schedules",
    "LogHistograms": "log_histograms",
    "LogHyperParams": "log_hyperparams",
    "LogMetrics": "log_metrics",
    "LogRun": "log_run",
    "LogThroughput": "log_throughput",
    "LogTraces": "traces",
    "LogVisualization": "log_visualization",
    "Metric": "metric",
    "Metrics": "metrics",
    "MetricsPrinter": "metrics_printer",
    "Momentum": "hyperparameters",
    "Never": "criteria",
    "NumberLimit": "criteria",
    "NumberSinceBest": "criteria",
    "PQ": "criteria",
    "Patience": "criteria",
    "Polynomial": "schedules",
    "ProgressPrinter": "progress",
    "Recorder": "recorder",
    "SanityCheck": "sanity_check",
    "SanityCheckException": "sanity_check",
    "Schedule": "schedules",
    "Scheduler": "scheduler",
    "Series": "series",
    "SmoothLoss": "metric",
    "StopOnNaNLoss": "stop_on_nan",
    "Threshold": "criteria",
    "TimeLimit": "criteria",
    "Timer": "timer",
    "ToDevice": "to_device",
    "ToGPU": "to_device",
    "Traces": "traces",
    "Warmup": "criterion",
    "WeightDecay": "hyperparameters",
    "default_callbacks": "defaults",
    "onecycle": "schedules",
}

__getattr__ = _names_on_demand(__name__, _HOMES)
