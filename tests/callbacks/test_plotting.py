from __future__ import annotations

import sys

import pytest
from matplotlib.image import imread

from fabric_lite.callbacks.plotting import plot_metrics
from fabric_lite.cli import main
from fabric_lite.cli.plot import read, split
from fabric_lite.events import TrainingPhase
from fabric_lite.loggers import CSVLogger

CURVES = {
    TrainingPhase(): {"Loss": [(1, 3.0), (2, 2.0)], "accuracy": [(1, 0.5)]},
    "validation": {"Loss": [(1, 4.0), (2, 3.0)], "empty": []},
}


def test_a_panel_for_each_metric_with_a_line_for_each_phase(tmp_path):
    figure = plot_metrics(CURVES, tmp_path / "curves.png")
    loss, accuracy = figure.axes
    assert (loss.get_title(), loss.get_xlabel(), accuracy.get_title()) == ("Loss", "epoch", "accuracy")
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert [line.get_label() for line in accuracy.lines] == ["train"]
    assert [[*line.get_ydata()] for line in loss.lines] == [[3.0, 2.0], [4.0, 3.0]]
    image = imread(tmp_path / "curves.png")
    assert image.shape[:2] == (360, 960)
    assert len({tuple(pixel) for pixel in image.reshape(-1, image.shape[2]).round(1).tolist()}) > 5
    assert figure.canvas.manager is None  # not one of those that pyplot keeps


def test_nothing_to_draw():
    with pytest.raises(ValueError, match=r"^There are no values to draw yet\. Plot after the first epoch"):
        plot_metrics({"train": {"Loss": []}})


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'needs the package matplotlib: pip install "torch-fabric-lite\[plot\]"\.$'
    ):
        plot_metrics(CURVES)


@pytest.mark.parametrize(
    "column, phase, metric",
    [
        ("train/Loss", "train", "Loss"),
        ("validation/Loss", "validation", "Loss"),
        ("train/epoch/Loss", "train", "epoch/Loss"),
        ("epoch/Valid/Loss", "validation", "epoch/Loss"),
        ("train_loss", "train", "loss"),
        ("val_accuracy", "validation", "accuracy"),
        ("test.f1", "test", "f1"),
        ("lr", "value", "lr"),
        ("trainable_share", "value", "trainable_share"),
        ("train", "value", "train"),
    ],
)
def test_the_phase_is_read_off_the_name_of_a_column(column, phase, metric):
    assert split(column) == (phase, metric)


def test_the_command_draws_what_a_logger_wrote(tmp_path, capsys):
    logger = CSVLogger(tmp_path, name="run", version="a")
    for step in range(3):
        logger.log_metrics({"train/Loss": 3.0 - step, "lr": 0.1}, step=10 * step)
    logger.log_metrics({"validation/Loss": float("nan"), "note": "x"}, step=20)
    logger.log_metrics({"validation/Loss": 1.5}, step=30)
    logger.finalize("success")
    file = tmp_path / "run" / "a" / "metrics.csv"
    assert read(file) == {
        "train": {"Loss": [(0, 3.0), (10, 2.0), (20, 1.0)]},
        "value": {"lr": [(0, 0.1), (10, 0.1), (20, 0.1)]},
        "validation": {"Loss": [(30, 1.5)]},
    }
    assert main(["plot", str(file)]) == 0
    assert capsys.readouterr().out == f"{file.with_suffix('.png')}\n"
    assert imread(file.with_suffix(".png")).std() > 0.01
    assert main(["plot", str(file), "--out", str(tmp_path / "other.svg")]) == 0
    assert "<svg" in (tmp_path / "other.svg").read_text()


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    empty = tmp_path / "empty.csv"
    empty.write_text("step,note\n1,a\n")
    good = tmp_path / "good.csv"
    good.write_text("train_loss\n1.0\n")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    for arguments, message in [
        ([str(tmp_path / "none.csv")], "cannot read"),
        ([str(empty)], "has no columns of numbers to draw; log some with `fabric.log_dict(...)`."),
        ([str(binary)], "is no CSV file"),
        ([str(good), "--out", str(tmp_path / "no" / "such.png")], "cannot write"),
        ([str(good), "--out", str(tmp_path / "curves.what")], "what"),
    ]:
        assert main(["plot", *arguments]) == 2
        assert message in capsys.readouterr().err
