"""The same calls on Lightning's loggers and on ours, and what they leave on disk."""

from __future__ import annotations

import copy
import tempfile
import warnings
import zipfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.fabric.loggers as theirs
import lightning.fabric.utilities.cloud_io as their_cloud_io
import lightning.fabric.utilities.logger as their_utilities
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

import fabric_lite.loggers as ours
import fabric_lite.utilities.cloud_io as our_cloud_io
import fabric_lite.utilities.logger as our_utilities
from fabric_lite.plugins.io.torch_io import _write


@dataclass
class Config:
    lr: float = 0.1
    layers: tuple[int, ...] = (1, 2)


def fails() -> None:
    raise RuntimeError


def makes_function() -> Any:
    return fails


KEYS = st.text(alphabet="ab/_ü", max_size=3)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.sampled_from([
        Config(), Config, Namespace(a=1, b={"c": 2}), torch.nn.ReLU, torch.nn.ReLU(), len, fails, makes_function, int,
        lambda: 5, {1}, (1, 2), b"x", 1j, 10**400, np.float32(0.5), np.int64(3), np.bool_(True), np.ones(2),
        torch.ones(2),
    ])
)  # fmt: skip
PARAMS = st.dictionaries(
    KEYS | st.integers(0, 3),
    st.recursive(VALUES, lambda x: st.lists(x, max_size=2) | st.dictionaries(KEYS, x, max_size=2), max_leaves=6),
    max_size=4,
)


@pytest.mark.parametrize(
    "name",
    ["_convert_params", "_sanitize_callable_params", "_flatten_dict", "_sanitize_params", "_convert_json_serializable"],
)
@given(params=PARAMS)
def test_params(name: str, params: dict[Any, Any]) -> None:
    expected = getattr(their_utilities, name)(copy.deepcopy(params))
    result = getattr(our_utilities, name)(params)
    assert repr(result) == repr(expected)


@given(PARAMS, KEYS, KEYS)
def test_flattening_with_a_delimiter_and_prefix(params: dict[Any, Any], delimiter: str, parent: str) -> None:
    arguments = (copy.deepcopy(params), delimiter, parent)
    assert repr(our_utilities._flatten_dict(*arguments)) == repr(their_utilities._flatten_dict(*arguments))
    assert our_utilities._add_prefix(params, parent, delimiter).keys() == (
        their_utilities._add_prefix(params, parent, delimiter).keys()
    )


@given(VALUES)
def test_json_serializable(value: Any) -> None:
    assert our_utilities._is_json_serializable(value) == their_utilities._is_json_serializable(value)


@pytest.mark.parametrize("path", ["", "a", "file://a", "memory://a", "s3://a/b", "zip://a::memory://b", "C:\\a", "a:b"])
def test_local_protocol(path: str) -> None:
    assert our_cloud_io._is_local_file_protocol(path) == their_cloud_io._is_local_file_protocol(path)


def without_checksum(file: Path) -> bytes:
    """The bytes of a file, but for the comment of a zip file and its length."""
    data = file.read_bytes()
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(file) as archive:
        return data[: len(data) - len(archive.comment) - 2]


@pytest.mark.parametrize("path", ["x.ckpt", "folder/x.ckpt", "file", "file/x.ckpt"])
def test_checkpoint_files(tmp_path: Path, path: str) -> None:
    outcomes = []
    for save, root in ((their_cloud_io._atomic_save, tmp_path / "theirs"), (_write, tmp_path / "ours")):
        (root / "folder").mkdir(parents=True)
        (root / "file").write_text("there before")
        try:
            save({"w": torch.arange(5), "epoch": 1}, root / path)
        except OSError:
            outcomes.append("OSError")
        else:
            outcomes.append({str(p.relative_to(root)): without_checksum(p) for p in root.rglob("*") if p.is_file()})
    assert outcomes[0] == outcomes[1]


METRIC_VALUES = (
    st.none()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(alphabet='a",;\n é', max_size=4)
    | st.sampled_from(
        [torch.tensor(0.1), torch.tensor([2]), torch.tensor(0.1, dtype=torch.float64), torch.tensor(True)]
    )
)
ROWS = st.tuples(
    st.dictionaries(st.sampled_from(["b", "a", "val/c", "step", 'quo"te,', "e e"]), METRIC_VALUES, max_size=4),
    st.integers(0, 9),
)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@settings(max_examples=60)
@given(st.lists(ROWS | st.just("save"), max_size=12), st.integers(1, 4), st.sampled_from(["", "train"]))
def test_csv_files(operations: list[Any], flush_every: int, prefix: str) -> None:
    written = []
    for package in (theirs, ours):
        with tempfile.TemporaryDirectory() as root:
            logger = package.CSVLogger(root, prefix=prefix, flush_logs_every_n_steps=flush_every)
            for operation in operations:
                if operation == "save":
                    logger.save()
                else:
                    logger.log_metrics(*operation)
            logger.finalize("success")
            written.append(files(Path(root)))
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["lightning_logs", None, "", "mine"])
@pytest.mark.parametrize("version", [None, 3, "text"])
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_folders_and_versions(tmp_path: Path, logger: str, name: str | None, version: Any) -> None:
    seen = []
    for package in (theirs, ours):
        root = tmp_path / package.__name__
        for folder in ("version_0", "version_7", "version_x", "version_8_old", "other"):
            (root / (name or "") / folder).mkdir(parents=True)
        (root / (name or "") / "version_20").touch()
        made = getattr(package, logger)(root, name=name, version=version)
        seen.append([made.name, made.version, str(Path(made.log_dir).relative_to(root)), Path(made.root_dir) == root])
        before = set(root.rglob("*"))
        made.log_metrics({"a": 1}, 0)
        made.finalize("success")
        seen[-1].append(sorted(path.name.split(".")[0] for path in set(root.rglob("*")) - before))
    assert seen[0] == seen[1]


def test_csv_folder_that_is_not_empty(tmp_path: Path) -> None:
    outcomes = []
    for package in (theirs, ours):
        root = tmp_path / package.__name__
        folder = root / "lightning_logs" / "version_1"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("old")
        (folder / "notes.txt").write_text("kept")
        logger = package.CSVLogger(root, version=1)
        with pytest.warns(UserWarning, match="is not empty") as caught:
            logger.log_metrics({"a": 1}, 0)
        logger.save()
        outcomes.append((len(caught), files(root)))
    assert outcomes[0] == outcomes[1]


def events(root: Path) -> dict[str, list[bytes]]:
    """All events by folder, but for when and by which version of TensorBoard they were written."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(root.rglob("*tfevents*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.HasField("summary"):
                event.wall_time = 0
                content = event.SerializeToString(deterministic=True)
                found.setdefault(str(path.parent.relative_to(root)), []).append(content)
    return found


@pytest.mark.parametrize("options", [{}, {"prefix": "train"}, {"sub_dir": "sub"}, {"max_queue": 2}])
def test_tensorboard_scalars(tmp_path: Path, options: dict[str, Any]) -> None:
    written = []
    for package in (theirs, ours):
        root = tmp_path / package.__name__
        logger = package.TensorBoardLogger(root, **options)
        for step in range(5):
            logger.log_metrics(
                {"loss": torch.tensor(float(step)), "acc": 0.5, "n": 3, "ok": True, "x": torch.tensor([2])}, step
            )
        logger.log_metrics({"both": {"a": 1.5, "b/c": torch.tensor(2.5)}}, 7)
        logger.log_metrics({"np": np.float32(0.5), "np/array": np.array([0.25])}, 8)
        logger.experiment.add_scalar("own", 1.0, 9)
        logger.log_metrics({"loss": 4}, 10)
        logger.finalize("success")
        written.append(events(root))
    assert written[0] == written[1]
    assert sum(len(folder) for folder in written[0].values()) == 31


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (None, 3),
        (0.5,),
        ({"acc": torch.tensor(0.5), "loss": 1}, 2),
        ({},),
    ],
)
@pytest.mark.parametrize("default", [True, False])
def test_tensorboard_hyperparameters(tmp_path: Path, arguments: tuple[Any, ...], default: bool) -> None:
    params = {
        "lr": 0.1, "epochs": 3, "name": "x", "flag": True, "layers": [1, 2], "none": None, "config": Config(),
        "nested": {"a": Namespace(b=1)}, "scale": torch.tensor([2.0]), "weights": torch.ones(2, 2),
        "np": np.float32(0.5),
    }  # fmt: skip
    written = []
    for package in (theirs, ours):
        root = tmp_path / package.__name__
        logger = package.TensorBoardLogger(root, default_hp_metric=default, prefix="p")
        logger.log_hyperparams(Namespace(**copy.deepcopy(params)), *arguments)
        logger.log_metrics({"a": 1}, 1)
        logger.finalize("success")
        written.append(events(root))
    assert written[0] == written[1]


def test_tensorboard_graph(tmp_path: Path) -> None:
    graphs = []
    for package in (theirs, ours):
        root = tmp_path / package.__name__
        logger = package.TensorBoardLogger(root)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about tracing
            logger.log_graph(torch.nn.Linear(3, 1), torch.ones(2, 3))
        logger.finalize("success")
        [path] = root.rglob("*tfevents*")
        graphs.append([e.graph_def for e in LegacyEventFileLoader(str(path)).Load() if e.HasField("graph_def")])
    assert graphs[0] == graphs[1]
    assert len(graphs[0]) == 1


@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_signatures(name: str) -> None:
    import inspect

    their, our = (inspect.signature(getattr(package, name)) for package in (theirs, ours))
    assert [(p.name, p.kind, p.default) for p in our.parameters.values()] == [
        (p.name, p.kind, p.default) for p in their.parameters.values()
    ]


def test_public_names_of_the_base_class() -> None:
    public = {name for name in dir(theirs.Logger) if not name.startswith("_")}
    assert public <= set(dir(ours.Logger))
