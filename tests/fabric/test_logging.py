"""Metrics on their way from a Fabric to its loggers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from fabric_lite import Fabric
from fabric_lite.loggers import CSVLogger


class Memory:
    """Any object with `log_metrics` is a logger."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], int | None]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((metrics, step))


def make(loggers: Any = None) -> Fabric:
    return Fabric(accelerator="cpu", loggers=loggers)


class TestGiving:
    def test_one_a_list_or_a_tuple(self) -> None:
        first, second = Memory(), Memory()
        assert make(first).loggers == [first]
        assert make([first, second]).loggers == [first, second]
        assert make((first, second)).loggers == [first, second]
        assert make().loggers == []
        assert make([first, second]).logger is first

    def test_the_list_is_copied(self) -> None:
        given = [Memory()]
        fabric = make(given)
        given.append(Memory())
        fabric.log("a", 1)
        assert (len(fabric.loggers), len(given[0].rows), len(given[1].rows)) == (1, 1, 0)

    def test_the_underscore_name_can_be_assigned(self) -> None:
        first, second = Memory(), Memory()
        fabric = make(first)
        fabric._loggers = [second]
        fabric.log("a", 1)
        assert (first.rows, second.rows) == ([], [({"a": 1}, None)])
        assert fabric.logger is second
        assert fabric.loggers == [second]

    def test_without_one_the_first_is_an_error_and_logging_is_not(self) -> None:
        fabric = make()
        fabric.log("a", 1)
        fabric.log_dict({"a": torch.ones(5)})
        with pytest.raises(IndexError):
            fabric.logger  # noqa: B018


class TestLogging:
    def test_one_and_several_values_for_every_logger(self) -> None:
        loggers = [Memory(), Memory()]
        fabric = make(loggers)
        fabric.log("a", 1.5, step=3)
        fabric.log_dict({"b": 2, "c": True})
        for logger in loggers:
            assert logger.rows == [({"a": 1.5}, 3), ({"b": 2, "c": True}, None)]
        loggers[0].rows[0][0]["a"] = 99
        assert loggers[1].rows[0][0]["a"] == 1.5

    def test_a_logger_of_ones_own_gets_numbers(self) -> None:
        fabric = make(Memory())
        loss = torch.tensor(0.5, requires_grad=True) * 2
        fabric.log_dict({"loss": loss, "one": torch.tensor([3]), "flag": torch.tensor(True), "deep": {"x": loss}})
        (metrics, _) = fabric.logger.rows[0]
        assert metrics == {"loss": 1.0, "one": 3, "flag": True, "deep": {"x": 1.0}}
        assert [type(value) for value in metrics.values()] == [float, int, bool, dict]
        loss.backward()  # the graph is whole

    def test_what_is_passed_is_not_changed(self) -> None:
        fabric = make(Memory())
        metrics = {"a": torch.tensor(1.0)}
        fabric.log_dict(metrics)
        assert isinstance(metrics["a"], torch.Tensor)

    def test_a_tensor_that_changes_afterwards(self, tmp_path: Path) -> None:
        fabric = make([CSVLogger(tmp_path), Memory()])
        value = torch.tensor(1.0)
        fabric.log("a", value, step=0)
        value += 1
        fabric.log("a", value, step=1)
        fabric.logger.finalize("success")
        with open(Path(fabric.logger.log_dir) / "metrics.csv") as file:
            assert [row["a"] for row in csv.DictReader(file)] == ["1.0", "2.0"]
        assert [row["a"] for row, _ in fabric.loggers[1].rows] == [1.0, 2.0]

    def test_several_elements_are_an_error_that_names_the_metric(self) -> None:
        with pytest.raises(ValueError, match=r"metric 'loss'.*\(3,\).*\.mean\(\)"):
            make(Memory()).log("loss", torch.ones(3))

    def test_a_csv_file_counts_by_itself(self, tmp_path: Path) -> None:
        fabric = make(CSVLogger(tmp_path, name="run"))
        for loss in (3.0, 2.0):
            fabric.log_dict({"loss": loss})
        fabric.log("accuracy", torch.tensor(0.5), step=10)
        fabric.logger.save()
        rows = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().split()
        assert rows == ["accuracy,loss,step", ",3.0,0", ",2.0,1", "0.5,,10"]

    def test_an_exception_of_a_logger_comes_out(self) -> None:
        class Failing:
            def log_metrics(self, metrics: Any, step: Any) -> None:
                raise OSError("disk")

        with pytest.raises(OSError, match="disk"):
            make(Failing()).log("a", 1)
