from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fabric_lite import Fabric, ProtectedException, Read, State
from fabric_lite.callbacks.log_visualization import LogVisualization
from fabric_lite.callbacks.recorder import Recorder
from fabric_lite.events import TrainingPhase, ValidationPhase
from fabric_lite.loggers import CSVLogger, TensorBoardLogger


def images(logger: TensorBoardLogger) -> dict[str, list[tuple[int, Any]]]:
    """Step and pixels (H, W, C) by tag."""
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    return {
        tag: [
            (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")))
            for event in events.Images(tag)
        ]
        for tag in events.Tags()["images"]
    }


def run(callback: LogVisualization, learner: Any, steps: int = 1) -> None:
    fabric = Fabric(callbacks=[callback, Recorder()], guard="strict")
    for phase in (TrainingPhase(), ValidationPhase()):
        fabric.call("on_epoch_begin", learner=learner, phase=phase)
        for _ in range(steps):
            fabric.call("on_step_end", learner=learner, phase=phase)
        fabric.call("on_epoch_end", learner=learner, phase=phase)


PIXELS = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)


@pytest.mark.parametrize(
    "picture, pixels",
    [
        (PIXELS, PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255, PIXELS),
        (torch.from_numpy(PIXELS[:, :, 0].copy()), PIXELS[:, :, :1].repeat(3, axis=2)),
    ],
)
def test_arrays_and_tensors(tmp_path: Path, picture: Any, pixels: Any) -> None:
    logger = TensorBoardLogger(tmp_path)
    run(
        LogVisualization(lambda learner: learner.step.xs, logger, name="batch"),
        State(step=State(xs=picture), cbstate=State()),
    )
    found = images(logger)
    assert list(found) == ["train/batch", "validation/batch"]
    for ((step, shown),) in found.values():
        assert step == 1
        np.testing.assert_allclose(shown, pixels, atol=1)


def test_figures_at_training_steps(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")

    def curve(learner: Any) -> Any:
        figure = matplotlib.Figure(figsize=(2, 1), dpi=50)
        figure.subplots().plot([1, 2], [3, 4])
        return figure

    logger = TensorBoardLogger(tmp_path)
    run(LogVisualization(curve, logger, freq=2), State(cbstate=State()), steps=5)
    found = images(logger)
    assert {tag: [(step, shown.shape) for step, shown in shots] for tag, shots in found.items()} == {
        "train/curve": [(2, (50, 100, 3)), (4, (50, 100, 3))]
    }
    assert all(shown.min() < 128 for _, shown in found["train/curve"]), "something is drawn"


def test_figures_of_pyplot_are_closed(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    loggers = [TensorBoardLogger(tmp_path, name=name) for name in "ab"]
    run(
        LogVisualization(lambda learner: plt.subplots(figsize=(1, 1))[0], *loggers, name="plot"), State(cbstate=State())
    )
    assert plt.get_fignums() == []
    one, two = (images(logger)["train/plot"][0][1] for logger in loggers)
    np.testing.assert_array_equal(one, two)


def test_nothing_to_show(tmp_path: Path) -> None:
    run(LogVisualization(lambda learner: None, CSVLogger(tmp_path)), State(cbstate=State()))
    assert list(tmp_path.iterdir()) == []


def test_no_picture(tmp_path: Path) -> None:
    def odd(learner: Any) -> Any:
        return learner.step.xs

    callback = LogVisualization(odd, TensorBoardLogger(tmp_path))
    with pytest.raises(ValueError, match=r"`odd` returned a `Tensor` of the shape \(2, 2, 2\). Return a tensor or"):
        run(callback, State(step=State(xs=torch.zeros(2, 2, 2)), cbstate=State()))
    with pytest.raises(ValueError, match=r"`odd` returned a `float`. Return a tensor or array"):
        run(callback, State(step=State(xs=1.0), cbstate=State()))
    with pytest.raises(TypeError, match="cannot log to `CSVLogger`: the `experiment` there has no `add_image`"):
        run(LogVisualization(odd, CSVLogger(tmp_path)), State(step=State(xs=torch.zeros(2, 2)), cbstate=State()))


def test_what_the_function_reads(tmp_path: Path) -> None:
    def data(learner: Any) -> Any:
        return learner.data

    learner = State(data=torch.zeros(2, 2), cbstate=State())
    with pytest.raises(ProtectedException, match=r"Read access to State.data disallowed"):
        run(LogVisualization(data, TensorBoardLogger(tmp_path)), learner)
    logger = TensorBoardLogger(tmp_path)
    run(LogVisualization(data, logger, access={"data": Read()}), learner)
    assert list(images(logger)) == ["train/data", "validation/data"]
