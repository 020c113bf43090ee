from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from fabric_lite import loggers
from fabric_lite.loggers import Logger
from fabric_lite.loggers.logger import _next_version, log_to_all, rank_zero_experiment
from fabric_lite.utilities.rank_zero import rank_zero_only


class Recording(Logger):
    """The least that a logger has to be."""

    name = "recording"
    version = 0

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.calls.append((metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.calls.append(params)

    def save(self) -> None:
        self.calls.append("save")

    @property
    @rank_zero_experiment
    def experiment(self) -> list[Any]:
        return self.calls


class RecordingTensors(Recording):
    accepts_tensors = True


def test_exports_are_sorted() -> None:
    assert loggers.__all__ == sorted(loggers.__all__)


def test_defaults_of_a_logger() -> None:
    logger = Recording()
    assert logger.root_dir is logger.log_dir is None
    assert logger.group_separator == "/"
    assert logger.accepts_tensors is False
    logger.log_graph(torch.nn.Linear(1, 1))
    logger.finalize("success")
    assert logger.calls == ["save"], "finalize saves"


def test_a_logger_must_be_able_to_log() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Logger()  # type: ignore[abstract]


def test_experiment_of_the_other_ranks_takes_everything() -> None:
    logger = Recording()
    assert logger.experiment is logger.calls
    rank_zero_only.rank = 1
    logger.experiment.add_image("a", step=1)
    logger.experiment[0].add_image("a")
    logger.experiment["a"] = 1
    assert logger.calls == []


def test_log_to_all_gives_tensors_to_those_that_accept_them() -> None:
    numbers, tensors = Recording(), RecordingTensors()
    duck = Mock()  # which has any attribute, and accepts tensors no more for that
    loss = torch.tensor(1.5, requires_grad=True)
    log_to_all([numbers, tensors, duck], {"loss": loss, "lr": 0.1, "parts": {"a": torch.tensor(2)}}, 3)
    plain = {"loss": 1.5, "lr": 0.1, "parts": {"a": 2}}
    assert numbers.calls == [(plain, 3)]
    duck.log_metrics.assert_called_once_with(metrics=plain, step=3)
    [(metrics, step)] = tensors.calls
    assert step == 3
    assert isinstance(metrics["loss"], torch.Tensor)
    assert isinstance(metrics["parts"]["a"], torch.Tensor)
    assert not metrics["loss"].requires_grad
    with torch.no_grad():
        loss.fill_(9)
    assert metrics == {"loss": 1.5, "lr": 0.1, "parts": {"a": 2}}


def test_a_logger_that_changes_what_it_gets_disturbs_nobody() -> None:
    class Greedy:
        def log_metrics(self, metrics: dict[str, Any], step: int | None) -> None:
            metrics.clear()

    metrics = {"a": 1}
    last = Recording()
    log_to_all([Greedy(), last], metrics)
    assert last.calls == [({"a": 1}, None)]
    assert metrics == {"a": 1}


def test_log_to_all_without_loggers_looks_at_nothing() -> None:
    log_to_all([], {"a": torch.zeros(3)})


@pytest.mark.parametrize("logger", [Recording(), RecordingTensors()])
def test_log_to_all_names_the_metric_that_is_no_number(logger: Recording) -> None:
    with pytest.raises(ValueError, match=r"'outputs' is a tensor of shape \(2, 3\).*log\('outputs', value\.mean\(\)\)"):
        log_to_all([logger], {"loss": torch.tensor(1.0), "outputs": torch.zeros(2, 3)})
    assert logger.calls == []


def test_next_version_on_other_filesystems() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    fs = MemoryFileSystem()
    try:
        assert _next_version("memory://logs/run") == 0
        for name in ("version_3/x", "version_x/x", "version_11"):
            fs.pipe_file(f"/logs/run/{name}", b"")
        assert _next_version("memory://logs/run") == 4
    finally:
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]
