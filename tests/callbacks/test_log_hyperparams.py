from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fabric_lite import Fabric, State
from fabric_lite.callbacks.log_hyperparams import LogHyperParams
from fabric_lite.events import TrainingPhase
from fabric_lite.learner import Learner
from fabric_lite.loggers import CSVLogger


class Rows:
    def __init__(self) -> None:
        self.params: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None:
        self.params.append(params)


def sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=torch.tensor(0.5), momentum=0.9)


def test_what_a_learner_shows() -> None:
    logger = Rows()
    fabric = Fabric(loggers=logger, guard="strict")
    model = torch.nn.Linear(1, 1)
    learner = Learner(
        model,
        torch.nn.functional.mse_loss,
        data=([],),
        optimizer=sgd,
        callbacks=LogHyperParams(params={"batch": 8, "lossfn": "mine"}),
        fabric=fabric,
        usedefaultcallbacks=False,
    )
    learner.fit(1)
    (params,) = logger.params
    optimizer = params.pop("optimizer")
    assert params == {"model": "Linear", "lossfn": "mine", "batch": 8}
    assert {"name": "SGD", "lr": 0.5, "momentum": 0.9}.items() <= optimizer.items()
    assert None not in optimizer.values()


def test_several_models() -> None:
    logger = Rows()
    models = {"one": torch.nn.Linear(1, 1), "two": torch.nn.Identity()}
    optimizers = State(one=torch.optim.Adam(models["one"].parameters()))
    fabric = Fabric(callbacks=LogHyperParams(logger))
    fabric.call("on_fit_begin", learner=State(model=models, optimizer=optimizers, lossfn=torch.nn.MSELoss()))
    (params,) = logger.params
    assert params["model"] == {"one": "Linear", "two": "Identity"}
    assert params["lossfn"] == "MSELoss"
    assert params["optimizer"]["one"]["name"] == "Adam"


def test_a_loop_without_a_beginning_of_fitting(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fabric = Fabric(callbacks=LogHyperParams(logger, params={"lr": 0.1}))
    for _ in range(2):
        fabric.call("on_epoch_begin", learner=SimpleNamespace(), phase=TrainingPhase())
    logger.save()
    assert json.loads((Path(logger.log_dir) / "hparams.json").read_text()) == {"lr": 0.1}
