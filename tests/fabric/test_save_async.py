"""Saving in the background: a consistent copy, one at a time, and no error is lost."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.plugins import TorchCheckpointIO


class Slow(TorchCheckpointIO):
    """Writes when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.done: list[str] = []
        self.threads: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.started.set()
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(20)
        super().save_checkpoint(checkpoint, path, storage_options)
        self.done.append(f"saved {Path(path).name}")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.done.append(f"loading {Path(path).name}")
        return super().load_checkpoint(path, *args, **kwargs)


@pytest.fixture
def io() -> Slow:
    return Slow()


@pytest.fixture
def fabric(io: Slow) -> Fabric:
    return Fabric(accelerator="cpu", plugins=io)


def soon(io: Slow) -> threading.Timer:
    """Let it write when this thread waits for it already."""
    timer = threading.Timer(0.05, io.go.set)
    timer.start()
    return timer


def test_it_writes_the_state_of_the_moment_of_the_call(fabric: Fabric, io: Slow, tmp_path: Path) -> None:
    model, optimizer = fabric.setup(net := nn.Linear(3, 2), torch.optim.Adam(net.parameters()))
    fabric.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "log": [1], "best": torch.zeros(1)}
    before = model.weight.detach().clone()
    future = fabric.save_async(tmp_path / "a", state)
    assert io.started.wait(20)
    assert not future.done()
    optimizer.step()
    state["log"].append(2)
    state["best"] += 1
    io.go.set()
    assert future.result() is None
    loaded = fabric.load(tmp_path / "a")
    assert torch.equal(loaded["model"]["weight"], before)
    assert not torch.equal(model.weight, before)
    assert loaded["optimizer"]["state"][0]["step"] == 1
    assert (loaded["log"], loaded["best"]) == ([1], 0)
    assert io.threads == {"fabric-lite-save"}


def test_the_same_file_as_save(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu")
    state = {"model": nn.Linear(3, 2), "step": 1, "whole": (whole := torch.ones(9)), "part": whole[2:]}
    fabric.save(tmp_path / "a", state)
    fabric.save_async(tmp_path / "b", state).result()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_filter(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu")
    fabric.save_async(tmp_path / "a", {"m": nn.Linear(1, 1)}, filter={"m": lambda key, value: key == "bias"}).result()
    assert list(fabric.load(tmp_path / "a")["m"]) == ["bias"]
    with pytest.raises(ValueError, match="names 'x', but the state has 'm'"):
        fabric.save_async(tmp_path / "a", {"m": 1}, filter={"x": lambda key, value: True})


@pytest.mark.parametrize("second", ["save", "save_async", "load", "load_raw"])
def test_what_comes_later_waits(second: str, fabric: Fabric, io: Slow, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    torch.save(model.state_dict(), tmp_path / "raw")
    fabric.save_async(tmp_path / "a", {"step": 1})
    timer = soon(io)
    if second == "load":
        assert fabric.load(tmp_path / "a") == {"step": 1}
    elif second == "load_raw":
        fabric.load_raw(tmp_path / "raw", model)
    elif second == "save":
        fabric.save(tmp_path / "b", {"step": 2})
    else:
        fabric.save_async(tmp_path / "b", {"step": 2}).result()
    timer.join()
    expected = {"load": "loading a", "load_raw": "loading raw"}.get(second, "saved b")
    assert io.done == ["saved a", expected]


def test_another_fabric_waits_for_the_same_path(fabric: Fabric, io: Slow, tmp_path: Path) -> None:
    fabric.save_async(tmp_path / "a", {"step": 1})
    timer = soon(io)
    assert Fabric(accelerator="cpu").load(tmp_path / "a") == {"step": 1}
    timer.join()


def test_the_last_one_wins(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu")
    for step in range(5):
        fabric.save_async(tmp_path / "a", {"step": step})
    assert fabric.load(tmp_path / "a") == {"step": 4}


class Failing(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if Path(path).name == "bad":
            raise OSError(28, "No space left on device", str(path))
        super().save_checkpoint(checkpoint, path, storage_options)


@pytest.fixture
def failing() -> Fabric:
    return Fabric(accelerator="cpu", plugins=Failing())


class TestErrors:
    @pytest.mark.parametrize("ask", [Future.result, Future.exception])
    def test_they_are_the_futures_first(self, ask: Callable[..., Any], failing: Fabric, tmp_path: Path) -> None:
        future = failing.save_async(tmp_path / "bad", {})
        if ask is Future.result:
            with pytest.raises(OSError, match="No space left"):
                future.result()
        else:
            assert isinstance(future.exception(), OSError)
        failing.save(tmp_path / "good", {})  # who was asked has told

    @pytest.mark.parametrize("again", ["save", "save_async"])
    def test_the_next_save_raises_them_when_its_own_work_is_done(
        self, again: str, failing: Fabric, tmp_path: Path
    ) -> None:
        failing.save_async(tmp_path / "bad", {})
        with pytest.raises(OSError, match=r"No space left.*bad") as info:
            getattr(failing, again)(tmp_path / "good", {"step": 2})
        if sys.version_info >= (3, 11):
            (note,) = info.value.__notes__
            assert "in the background, to `fabric.save_async('" in note
            assert note.endswith("good' is not concerned.")
        assert failing.load(tmp_path / "good") == {"step": 2}
        failing.save(tmp_path / "good", {"step": 3})

    def test_a_load_of_the_same_path_raises_them(self, failing: Fabric, tmp_path: Path) -> None:
        torch.save({"old": 1}, tmp_path / "bad")
        torch.save({"old": 1}, tmp_path / "other")
        failing.save_async(tmp_path / "bad", {})
        assert failing.load(tmp_path / "other") == {"old": 1}
        with pytest.raises(OSError, match="No space left"):
            failing.save(tmp_path / "good", {})
        failing.save_async(tmp_path / "bad", {})
        with pytest.raises(OSError, match="No space left"):
            failing.load(tmp_path / "bad")
        assert failing.load(tmp_path / "bad") == {"old": 1}

    def test_an_error_keeps_no_copy_of_the_state(self, failing: Fabric, tmp_path: Path) -> None:
        class Big:
            pass

        big = Big()
        future = failing.save_async(tmp_path / "bad", {"big": big})
        kept = weakref.ref(big)
        error = future.exception()
        del big
        gc.collect()
        assert kept() is None
        frame = error.__traceback__.tb_next
        while frame is not None:
            assert "checkpoint" not in frame.tb_frame.f_locals
            frame = frame.tb_next

    def test_what_cannot_be_copied_is_said_at_once(self, fabric: Fabric, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="lock"):
            fabric.save_async(tmp_path / "a", {"lock": threading.Lock()})
        assert fabric._saver.settle(tmp_path) is None


def test_it_keeps_no_fabric_alive(io: Slow, tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", plugins=io)
    future = fabric.save_async(tmp_path / "a", {"step": 1})
    kept = weakref.ref(fabric)
    del fabric
    assert kept() is None
    io.go.set()
    future.result()
    assert torch.load(tmp_path / "a") == {"step": 1}


def script(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    begin = "import sys, threading\nfrom fabric_lite import Fabric\n"
    file.write_text(f"{begin}folder = {str(tmp_path)!r}\n{textwrap.dedent(code)}")
    return subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=100)


class TestExit:
    def test_it_is_waited_for(self, tmp_path: Path) -> None:
        done = script(
            """
            before = threading.active_count()
            fabric = Fabric(accelerator="cpu")
            assert threading.active_count() == before == 1
            import torch
            open(folder + "/file", "w").close()
            try:
                fabric.save_async(folder + "/file/a", {}).result()
            except OSError:
                print("asked")  # so that it is not reported once more
            fabric.save_async(folder + "/a", {"w": torch.ones(3_000_000)})
            """,
            tmp_path,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "asked\n", "")
        assert len(torch.load(tmp_path / "a")["w"]) == 3_000_000

    def test_an_error_that_nobody_asked_for(self, tmp_path: Path) -> None:
        done = script(
            """
            import multiprocessing

            def train(name):
                fabric = Fabric(accelerator="cpu")
                open(folder + "/file", "w").close()
                fabric.save_async(folder + "/file/" + name, {})

            if __name__ == "__main__":
                for start in "spawn", "fork":
                    process = multiprocessing.get_context(start).Process(target=train, args=[start])
                    process.start()
                    process.join()
                    print(start, process.exitcode)
                train("main")
                print("trained")
            """,
            tmp_path,
        )
        spawned, forked, trained = done.stdout.splitlines()
        assert trained == "trained"
        assert spawned not in ("spawn 0", "spawn None")
        assert forked not in ("fork 0", "fork None")
        assert done.returncode == 120
        for name in ("spawn", "fork", "main"):
            assert f"file/{name}' was not saved in the background:\nTraceback" in done.stderr
        assert done.stderr.count("FileExistsError: [Errno 17] File exists") >= 3
        assert "CheckpointError: a checkpoint was not saved in the background" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_waits_for_nobody(fabric: Fabric, io: Slow, tmp_path: Path) -> None:
    """Such as the worker of a dataloader: in it, nobody writes what was begun before."""
    future = fabric.save_async(tmp_path / "a", {"step": 1})
    (pid := os.fork()) or os._exit(fabric._saver.settle(tmp_path / "a") is not None)
    assert os.waitpid(pid, 0)[1] == 0
    io.go.set()
    future.result()


def test_a_strategy_with_a_way_of_its_own_to_save(tmp_path: Path) -> None:
    from fabric_lite.strategies import SingleDeviceStrategy

    class Own(SingleDeviceStrategy):
        def save_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> None:
            saved.append(threading.current_thread() is threading.main_thread())
            super().save_checkpoint(path, *args, **kwargs)

    saved: list[bool] = []
    fabric = Fabric(strategy=Own())
    assert fabric.save_async(tmp_path / "a", {"step": 1}).done()
    assert saved == [True]
    assert fabric.load(tmp_path / "a") == {"step": 1}
