from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

from fabric_lite.loggers import TensorBoardLogger
from fabric_lite.utilities.rank_zero import rank_zero_only


class Reads(TorchDispatchMode):
    """Counts how often values are read from tensors: one by one, or many put together."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "_to_copy", "stack")
        return func(*args, **(kwargs or {}))


def scalars(logger: TensorBoardLogger, folder: str = "") -> dict[str, list[tuple[int, float]]]:
    """What has been written so far: step and value by tag."""
    events = EventAccumulator(os.path.join(logger.log_dir, folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardLogger(tmp_path, sub_dir=Path("sub"))
    assert (logger.name, logger.version, logger.root_dir, logger.sub_dir) == ("lightning_logs", 0, str(tmp_path), "sub")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0" / "sub")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "runs")
    logger = TensorBoardLogger("~/$RUNS", name=None, version="mine")
    assert logger.log_dir == str(tmp_path / "runs" / "mine")
    assert os.listdir(tmp_path) == [], "nothing is made before something is logged"


def test_versions_below_expanded_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for version in range(2):
        logger = TensorBoardLogger("$RUNS/logs")
        logger.log_metrics({"a": 1})
        logger.finalize("success")
        assert logger.log_dir == str(tmp_path / "logs" / "lightning_logs" / f"version_{version}")
    assert os.listdir(tmp_path) == ["logs"]


def test_scalars_and_counted_steps(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, prefix="train")
    logger.log_metrics({"a": torch.tensor([0.5]), "b": np.float64(2), "c": np.array([3.0])})
    logger.log_metrics({"a": True}, step=5)
    logger.log_metrics({"a": 4})
    logger.save()
    assert scalars(logger) == {
        "train-a": [(0, 0.5), (5, 1.0), (2, 4.0)],
        "train-b": [(0, 2.0)],
        "train-c": [(0, 3.0)],
    }


def test_several_scalars_in_one_chart(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": {"train": torch.tensor(1.0), "val": 2}}, step=3)
    logger.finalize("success")
    assert scalars(logger, "loss_train") == {"loss": [(3, 1.0)]}
    assert scalars(logger, "loss_val") == {"loss": [(3, 2.0)]}


@pytest.mark.parametrize(
    "metrics, name", [({"a": "many"}, "a"), ({"a": None}, "a"), ({"a": {"b": [1]}}, r"a\.b"), ({"a": np.ones(2)}, "a")]
)
def test_what_is_no_scalar_is_refused_at_once(tmp_path: Path, metrics: dict[str, Any], name: str) -> None:
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(
        ValueError, match=rf"metric '{name}' is .* cannot show as a scalar.*logger\.experiment\.add_text"
    ):
        logger.log_metrics({"fine": 1, **metrics})
    with pytest.raises(ValueError, match=r"metric 'a' is a tensor of shape \(2,\)"):
        logger.log_metrics({"a": torch.zeros(2)})
    logger.save()
    assert scalars(logger) == {}


def test_no_device_is_waited_for_until_the_flush(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    loss, total = torch.tensor(0.5, requires_grad=True), torch.tensor(0)
    with Reads() as reads:
        assert loss.item() == 0.5
        assert reads.count == 1, "a read is noticed"
        for _ in range(33):
            total += 1
            logger.log_metrics({"loss": loss, "nested": {"total": total}})
        assert reads.count == 1
    logger.save()
    assert scalars(logger)["loss"] == [(i, 0.5) for i in range(33)]
    assert scalars(logger, "nested_total")["nested"] == [(i, i + 1) for i in range(33)]


def test_scalars_are_handed_over_when_enough_are_held(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    with Reads() as reads:
        for _ in range(33):
            logger.log_metrics({"a": torch.tensor(1), "b": {"c": torch.tensor(2), "d": 3}})
        assert reads.count == 0
        logger.log_metrics({"a": torch.tensor(1)})
        assert reads.count == 1, "all in one transfer"


@pytest.mark.parametrize("options", [{"max_queue": 1}, {"flush_secs": 0}])
def test_options_of_the_writer_are_respected(tmp_path: Path, options: dict[str, int]) -> None:
    logger = TensorBoardLogger(tmp_path, **options, filename_suffix=".mine")
    with Reads() as reads:
        logger.log_metrics({"a": torch.tensor(1)})
        assert reads.count == 1
    assert [name.endswith(".mine") for name in os.listdir(logger.log_dir)] == [True]


def test_the_experiment_has_all_that_was_logged(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1})
    logger.experiment.flush()
    assert scalars(logger) == {"a": [(0, 1.0)]}


def test_scalars_carry_the_time_at_which_they_were_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric_lite.loggers.tensorboard.time.time", lambda: 1000.0)
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1})
    monkeypatch.undo()
    logger.save()
    [event] = EventAccumulator(logger.log_dir).Reload().Scalars("a")
    assert event.wall_time == 1000.0


def test_logging_goes_on_after_finalize(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1})
    logger.finalize("success")
    logger.log_metrics({"a": 2})
    logger.finalize("success")
    assert scalars(logger) == {"a": [(0, 1.0), (1, 2.0)]}


def test_scalars_are_written_when_the_logger_goes(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": torch.tensor(1)})
    del logger
    gc.collect()
    assert scalars(TensorBoardLogger(tmp_path, version=0)) == {"a": [(0, 1.0)]}


def test_a_copy_writes_a_file_of_its_own(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1})
    other = pickle.loads(pickle.dumps(logger))
    other.log_metrics({"b": 2})
    for each in (logger, other):
        each.finalize("success")
    assert scalars(logger) == {"a": [(0, 1.0)], "b": [(1, 2.0)]}


def test_hyperparameters_do_not_count_as_a_step(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    params = {"lr": 0.1, "layers": [1, 2], "scale": torch.tensor(2), "weights": torch.ones(2, 2)}
    before = dict(params)
    logger.log_hyperparams(params)
    logger.log_metrics({"a": 1})
    logger.save()
    assert scalars(logger) == {"hp_metric": [(0, -1.0)], "a": [(0, 1.0)]}
    assert params == before


def test_graph(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    logger = TensorBoardLogger(tmp_path)
    model = torch.nn.Linear(3, 1)
    logger.log_graph(model, torch.rand(2, 3))
    logger.save()
    assert EventAccumulator(logger.log_dir).Reload().Tags()["graph"]


def test_graph_from_what_the_model_offers(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Model(torch.nn.Linear):
        example_input_array = (torch.rand(2, 3),)

        def _on_before_batch_transfer(self, batch: Any) -> Any:
            return batch

        def _apply_batch_transfer_handler(self, batch: Any) -> Any:
            return tuple(x * 2 for x in batch)

    logger = TensorBoardLogger(tmp_path)
    logger.log_graph(Model(3, 1))
    logger.save()
    assert EventAccumulator(logger.log_dir).Reload().Tags()["graph"]


@pytest.mark.parametrize("example, got", [(None, "NoneType"), ({"x": 1}, "dict")])
def test_graph_without_an_input(tmp_path: Path, example: Any, got: str) -> None:
    logger = TensorBoardLogger(tmp_path / "logs")
    with pytest.warns(UserWarning, match=rf"graph of Linear is not logged.*got {got}.*log_graph\(model, input_array="):
        logger.log_graph(torch.nn.Linear(1, 1), example)
    assert not (tmp_path / "logs").exists()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    rank_zero_only.rank = 1
    logger = TensorBoardLogger(tmp_path / "logs")
    logger.log_metrics({"a": 1})
    logger.log_hyperparams({"a": 1})
    logger.log_graph(torch.nn.Linear(1, 1))
    logger.experiment.add_text("a", "b")
    logger.save()
    logger.finalize("success")
    assert not (tmp_path / "logs").exists()


def test_finalize_without_metrics_leaves_nothing(tmp_path: Path) -> None:
    TensorBoardLogger(tmp_path / "logs").finalize("success")
    assert not (tmp_path / "logs").exists()


def test_without_the_extra() -> None:
    code = """
import sys
sys.modules["tensorboard"] = sys.modules["tensorboardX"] = None
from fabric_lite.loggers import TensorBoardLogger
try:
    TensorBoardLogger("logs")
except ModuleNotFoundError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == 'TensorBoardLogger needs the package tensorboard: pip install "torch-fabric-lite[tensorboard]"\n'


def test_tensorboardx_serves_as_well(tmp_path: Path) -> None:
    """With a stand-in, for the real one is no dependency of ours."""
    package = tmp_path / "tensorboardX"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class SummaryWriter:\n"
        "    def __init__(self, log_dir): print('made')\n"
        "    def add_scalar(self, tag, value, step, walltime): print(tag, value, step)\n"
        "    def flush(self): print('flush')\n"
        "    def close(self): print('close')\n"
    )
    (package / "summary.py").write_text("def hparams(params, metrics): ...")
    code = f"""
import sys
sys.modules["tensorboard"] = None
sys.path.insert(0, {str(tmp_path)!r})
from fabric_lite.loggers import TensorBoardLogger
logger = TensorBoardLogger({str(tmp_path / "logs")!r})
logger.log_metrics({{"a": 1}})
logger.finalize("success")
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split("\n")[:4] == ["made", "a 1.0 0", "flush", "close"]
