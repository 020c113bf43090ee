from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric, Learner, State, __version__
from fabric_lite.callbacks import EarlyStopping, HookProfiler, LogRun, Metrics, NumberLimit
from fabric_lite.utilities.rank_zero import rank_zero_only


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "log_run.json").read_text("utf-8"))
    return found


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)), batch_size=2)


def fabric(*callbacks: Any) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, callbacks=list(callbacks))


def learner(*callbacks: Any, lossfn: Callable[..., Any] | None = None) -> Learner:
    loaders = (data(), data())
    return Learner(nn.Linear(2, 1), lossfn or nn.MSELoss(), data=loaders, callbacks=callbacks, fabric=fabric())


def test_a_learner(tmp_path: Path) -> None:
    learner(LogRun(tmp_path, {"lr": 0.1}), HookProfiler()).fit(2)
    run = written(tmp_path)
    assert (run["outcome"], run["config"]) == ("finished", {"lr": 0.1})
    assert run["started"] <= run["updated"] <= run["ended"]

    environment = run["environment"]
    assert {name: environment[name] for name in ("device", "precision", "strategy", "processes")} == {
        "device": "cpu",
        "precision": "32-true",
        "strategy": "SingleDeviceStrategy",
        "processes": 1,
    }
    assert (environment["torch"], environment["fabric_lite"]) == (torch.__version__, __version__)
    assert Path(sys.executable).name in environment["command"]

    names = [callback["name"] for callback in run["graph"]["callbacks"]]
    guarded = {callback["name"]: callback["guarded"] for callback in run["graph"]["callbacks"]}
    assert (guarded["LogRun"], guarded["HookProfiler"]) == (True, False)
    edges = {(names[e["before"]], names[e["after"]]): e["reason"] for e in run["graph"]["edges"]}
    assert edges["Metrics", "MetricsPrinter"] == "Metrics creates cbstate.metricsepoch, which MetricsPrinter reads"
    timings = {(row["callback"], row["hook"]): row for row in run["timings"]}
    assert timings["LogRun", "on_train_epoch_end"]["calls"] == 2


def test_how_fitting_was_cancelled(tmp_path: Path) -> None:
    learner(LogRun(tmp_path), EarlyStopping(NumberLimit(1)), Metrics()).fit(2)
    assert "NumberLimit" in written(tmp_path)["outcome"]


def test_how_it_failed_and_that_it_goes_on(tmp_path: Path) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("no loss")

    broken = learner(LogRun(tmp_path), lossfn=fails)
    with pytest.raises(ValueError, match="no loss"):
        broken.fit(1)
    assert written(tmp_path)["outcome"] == "ValueError: no loss"
    broken.lossfn = nn.MSELoss()
    broken.callbacks.on("on_epoch_begin", lambda: seen.append(written(tmp_path)["outcome"]))
    seen: list[Any] = []
    broken.fit(1)
    assert (seen[0], written(tmp_path)["outcome"]) == (None, "finished")


def test_a_loop_that_calls_nothing_for_it(tmp_path: Path) -> None:
    loop = fabric(LogRun(tmp_path / "new", every=0.0))
    net = nn.Linear(2, 1)
    model, optimizer = loop.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    first = written(tmp_path / "new")
    assert (first["environment"]["device"], first["ended"], first["timings"]) == ("cpu", None, None)
    loop.callbacks.on("on_after_optimizer_step", lambda: None)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert [c["name"] for c in written(tmp_path / "new")["graph"]["callbacks"]] == ["LogRun", "_Function"]
    del loop, model, optimizer
    gc.collect()
    last = written(tmp_path / "new")
    assert (last["ended"] is not None, last["outcome"]) == (True, None)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_epoch_end", "on_validation_epoch_end", "on_fit_begin"])
def test_a_loop_that_passes_what_it_likes(tmp_path: Path, hook: str) -> None:
    loop = fabric(LogRun(tmp_path))
    loop.call(hook, epoch=3, loss=0.5)
    assert "graph" not in written(tmp_path)
    loop.call(hook, learner=State(fabric=loop, loss=0.5))
    assert written(tmp_path)["environment"]["precision"] == "32-true"
    loop.call("on_exception", exception=KeyboardInterrupt())
    assert written(tmp_path)["outcome"] == "KeyboardInterrupt"


def test_write(tmp_path: Path) -> None:
    loop = fabric(log_run := LogRun(tmp_path))
    log_run.write(loop)
    assert len(written(tmp_path)["graph"]["callbacks"]) == 1


@dataclass
class Settings:
    layers: dict[str, int]
    path: Path = Path("data")


@pytest.mark.parametrize(
    "config, expected",
    [
        (None, {}),
        (Namespace(lr=0.1, sizes=[1, 2]), {"lr": 0.1, "sizes": "[1, 2]"}),
        (Settings({"deep": 2}), {"layers/deep": 2, "path": "data"}),
        ({"a": {"b": None}, 1: torch.ones(2)}, {"a/b": "None", "1": "tensor([1., 1.])"}),
    ],
)
def test_configurations(tmp_path: Path, config: Any, expected: dict[str, Any]) -> None:
    LogRun(tmp_path, config).write()
    assert written(tmp_path)["config"] == expected


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`LogRun\(config=0.1\)`: pass a mapping.*config=vars\(args\)"):
        LogRun(tmp_path, 0.1)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    rank_zero_only.rank = 1
    log_run = LogRun(tmp_path)
    log_run.write()
    log_run.on_fit_end()
    assert list(tmp_path.iterdir()) == []


def test_copies_are_on_their_own(tmp_path: Path) -> None:
    log_run = LogRun(tmp_path, {"lr": 1})
    log_run.write(fabric(log_run))
    for other in (copy.deepcopy(log_run), pickle.loads(pickle.dumps(log_run))):
        other.on_fit_end()
    log_run.write()
    assert written(tmp_path)["ended"] is None


def test_a_folder_that_was_removed_stays_so(tmp_path: Path) -> None:
    log_run = LogRun(tmp_path / "gone")
    log_run.write()
    (tmp_path / "gone" / "log_run.json").unlink()
    del log_run
    gc.collect()
    assert not (tmp_path / "gone" / "log_run.json").exists()


def test_a_fabric_is_freed_at_once(tmp_path: Path) -> None:
    gc.disable()
    try:
        loop = fabric(LogRun(tmp_path))
        loop.setup(nn.Linear(1, 1))
        del loop
        assert written(tmp_path)["ended"] is not None  # the callback went with it, without a collection
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_end_of_a_process(tmp_path: Path, how: str) -> None:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\nfrom fabric_lite import Fabric\nfrom fabric_lite.callbacks import LogRun\n"
        "fabric = Fabric(accelerator='cpu', callbacks=LogRun('run', {'seed': 1}))\nfabric.call('on_epoch_end')\n"
        "os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == 'kill' else None\n"
    )
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q -m a --allow-empty"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, env=env, timeout=60)
    done = subprocess.run([sys.executable, str(script), how], cwd=tmp_path, timeout=60)
    assert done.returncode == (0 if how == "exit" else -signal.SIGKILL)
    run = written(tmp_path / "run")
    assert (run["config"], run["ended"] is not None) == ({"seed": 1}, how == "exit")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run["environment"]["commit"] == head.stdout.strip()
    assert run["environment"]["command"].endswith(f"{script} {how}")
