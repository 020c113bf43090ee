from __future__ import annotations

import copy
import csv
import gc
import json
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fabric_lite.loggers import CSVLogger
from fabric_lite.utilities.rank_zero import rank_zero_only


class Reads(TorchDispatchMode):
    """Counts how often values are read from tensors: one by one, or many put together."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "_to_copy", "stack")
        return func(*args, **(kwargs or {}))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond the limit fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(os.path.join(logger.log_dir, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_folders(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert (logger.name, logger.version, logger.root_dir) == ("lightning_logs", 0, str(tmp_path))
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert CSVLogger(tmp_path, name=None, version="mine").log_dir == str(tmp_path / "mine")
    assert os.listdir(tmp_path) == [], "nothing is made before something is logged"


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for version in range(2):
        logger = CSVLogger("~/logs")
        logger.log_metrics({"a": 1})
        logger.save()
        assert (tmp_path / "logs" / "lightning_logs" / f"version_{version}" / "metrics.csv").exists()
    assert os.listdir(tmp_path) == ["logs"]


def test_existing_metrics_are_deleted_with_a_warning(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"a": 1})
    first.save()
    second = CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match=r"folder .*version_0 is not empty.*CSVLogger\(\.\.\., version=None\)"):
        second.log_metrics({"b": 2})
    second.save()
    assert rows(second) == [{"b": "2", "step": "0"}]


def test_steps_are_counted_through_flushes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    for value in range(5):
        logger.log_metrics({"a": value})
    logger.finalize("success")
    assert [(row["step"], row["a"]) for row in rows(logger)] == [(str(i), str(i)) for i in range(5)]


@pytest.mark.parametrize("step", [None, 0, 7])
def test_rows_are_written_when_enough_are_held(tmp_path: Path, step: int | None) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    logger.log_metrics({"a": 1}, step)
    logger.log_metrics({"a": 2}, step)
    assert len(logger.experiment.metrics) == 2
    logger.log_metrics({"a": 3}, step)
    assert logger.experiment.metrics == []
    assert len(rows(logger)) == 3


def test_rows_are_written_when_the_step_completes_a_multiple(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=100)
    logger.log_metrics({"a": 1}, 98)
    assert len(logger.experiment.metrics) == 1
    logger.log_metrics({"a": 2}, 99)
    assert [row["step"] for row in rows(logger)] == ["98", "99"]


def test_flush_interval_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CSVLogger\(flush_logs_every_n_steps=0\) must be at least 1"):
        CSVLogger(tmp_path, flush_logs_every_n_steps=0)


def test_columns_that_come_later(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"b": 1})
    logger.log_metrics({"a": 'x, "y"\r\n'})
    logger.log_metrics({"b": 3})
    assert rows(logger) == [
        {"a": "", "b": "1", "step": "0"},
        {"a": 'x, "y"\r\n', "b": "", "step": "1"},
        {"a": "", "b": "3", "step": "2"},
    ]
    assert logger.experiment.metrics_keys == ["a", "b", "step"]


def test_no_device_is_waited_for_until_the_flush(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    loss, total = torch.tensor(0.5, requires_grad=True), torch.tensor(0)
    with Reads() as reads:
        assert loss.item() == 0.5
        assert reads.count == 1, "a read is noticed"
        for _ in range(50):
            total += 1
            logger.log_metrics({"loss": loss, "total": total})
        assert reads.count == 1
    logger.save()
    assert [(row["loss"], row["total"]) for row in rows(logger)] == [("0.5", str(i)) for i in range(1, 51)]


def test_a_tensor_of_several_elements_is_refused_at_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.raises(ValueError, match=r"metric 'a' is a tensor of shape \(2,\)"):
        logger.log_metrics({"a": torch.zeros(2)})
    logger.log_metrics({"a": 1})
    logger.save()
    assert len(rows(logger)) == 1


def test_nested_metrics(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"losses": {"a": torch.tensor(1.5), "b": 2}})
    logger.save()
    assert rows(logger)[0]["losses"] == "{'a': 1.5, 'b': 2}"


@pytest.mark.parametrize("new_column", [False, True])
def test_no_row_is_lost_when_writing_fails(tmp_path: Path, new_column: bool) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    for value in range(2):
        logger.log_metrics({"a": value})
    path = Path(logger.log_dir) / "metrics.csv"
    before = path.read_bytes()
    logger.log_metrics({"b" if new_column else "a": torch.tensor(2)})
    with pytest.raises(OSError, match="File too large"), file_size_limit(len(before) + 2):
        logger.log_metrics({"a": 3})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["metrics.csv"]
    assert len(logger.experiment.metrics) == 2
    logger.save()
    assert [row["step"] for row in rows(logger)] == ["0", "1", "2", "3"]


def test_the_first_write_fails(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": "x" * 200})
    with pytest.raises(OSError, match="File too large"), file_size_limit(100):
        logger.save()
    assert os.listdir(logger.log_dir) == []
    logger.save()
    assert len(rows(logger)) == 1


def test_rows_are_written_when_the_logger_goes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": torch.tensor(1)})
    log_dir = logger.log_dir
    del logger
    gc.collect()
    assert (Path(log_dir) / "metrics.csv").read_text().splitlines() == ["a,step", "1,0"]


def test_rows_are_written_at_exit(tmp_path: Path) -> None:
    code = f"""
import torch
from fabric_lite.loggers import CSVLogger, TensorBoardLogger
csv, board = CSVLogger({str(tmp_path / "csv")!r}), TensorBoardLogger({str(tmp_path / "board")!r})
for logger in (csv, board):
    logger.log_metrics({{"a": torch.tensor(1.0)}})
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3
    assert (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text().splitlines() == ["a,step", "1.0,0"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board/lightning_logs/version_0")).Reload()
    assert [event.value for event in events.Scalars("a")] == [1.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_write_the_rows_of_its_parent(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1})
    path = Path(logger.log_dir) / "metrics.csv"

    def drop() -> None:
        nonlocal logger
        del logger
        gc.collect()

    process = multiprocessing.get_context("fork").Process(target=drop)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not path.exists()
    logger.save()
    assert len(rows(logger)) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_adds_to_the_same_file(tmp_path: Path, duplicate: Any) -> None:
    fresh = duplicate(CSVLogger(tmp_path, prefix="p"))
    fresh.log_metrics({"a": 0})
    fresh.save()
    fresh.log_metrics({"a": 1})
    other = duplicate(fresh)
    other.log_metrics({"b": 2})
    del other
    gc.collect()
    assert [row["step"] for row in rows(fresh)] == ["0", "2"], "the held row belongs to the one that holds it"
    fresh.save()
    assert rows(fresh) == [
        {"p-a": "0", "p-b": "", "step": "0"},
        {"p-a": "", "p-b": "2", "step": "2"},
        {"p-a": "1", "p-b": "", "step": "1"},
    ]


def test_hyperparameters(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    params = {"model": {"layers": [1, 2], "act": torch.nn.ReLU}, "lr": 0.1, "scale": torch.tensor(2.0)}
    before = dict(params)
    logger.log_hyperparams(params)
    logger.log_hyperparams(Namespace(lr=0.2, path=Path("x")))
    assert params == before
    assert json.loads((Path(logger.log_dir) / "hparams.json").read_text()) == {
        "model/layers": "[1, 2]",
        "model/act": "<class 'torch.nn.modules.activation.ReLU'>",
        "lr": 0.2,
        "scale": "tensor(2.)",
        "path": "x",
    }


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    rank_zero_only.rank = 1
    logger = CSVLogger(tmp_path / "logs", flush_logs_every_n_steps=1)
    logger.log_metrics({"a": 1})
    logger.log_hyperparams({"a": 1})
    logger.save()
    logger.finalize("success")
    assert not (tmp_path / "logs").exists()


def test_finalize_without_metrics_leaves_nothing(tmp_path: Path) -> None:
    CSVLogger(tmp_path / "logs").finalize("success")
    assert not (tmp_path / "logs").exists()


def test_writing_through_the_experiment(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    value = torch.tensor(1.0)
    logger.experiment.log_metrics({"a": value})
    value.fill_(5)
    logger.experiment.log_metrics({"a": 2}, step=7)
    logger.experiment.save()
    assert logger.experiment.log_dir == logger.log_dir
    assert logger.experiment.metrics_file_path == os.path.join(logger.log_dir, "metrics.csv")
    assert [(row["a"], row["step"]) for row in rows(logger)] == [("1.0", "0"), ("2", "7")]


def test_in_memory_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.chdir(tmp_path)
    fs = MemoryFileSystem()
    try:
        for version in range(2):
            logger = CSVLogger("memory://logs", flush_logs_every_n_steps=1)
            logger.log_metrics({"a": 1})
            logger.log_metrics({"a": 2})
            logger.log_metrics({"b": 3})
            folder = f"/logs/lightning_logs/version_{version}"
            assert fs.cat_file(f"{folder}/metrics.csv") == b"a,b,step\r\n1,,0\r\n2,,1\r\n,3,2\r\n"
            logger.log_hyperparams({"lr": 1})
            assert sorted(fs.ls(folder, detail=False)) == [f"{folder}/hparams.json", f"{folder}/metrics.csv"]
        with pytest.warns(UserWarning, match="is not empty"):
            CSVLogger("memory://logs", version=1).save()
        assert not fs.exists("/logs/lightning_logs/version_1/metrics.csv")
        assert os.listdir(tmp_path) == [], "no local folder called memory:"
    finally:
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]
