"""Proves that a training that was killed goes on as if it had not been."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException

from fabric_lite.testing.run import run_distributed

Train = Callable[[Path, Callable[[], None]], Any]


def assert_resume_equal(train: Train, steps: Iterable[int], *, processes: int = 1, timeout: float = 60.0) -> None:
    """Kill a training after some steps, resume it, and compare what comes out with that of one that was left alone.

    Each run is in processes of its own; killed means SIGKILL, in all of them:

        def train(folder, after_step):
            fabric = Fabric(accelerator="cpu", devices=1)
            model, optimizer = fabric.setup(*make_model_and_optimizer())
            state = {"model": model, "optimizer": optimizer, "rng": RNGState(), "step": 0}
            if (folder / "latest.ckpt").exists():
                fabric.load(folder / "latest.ckpt", state)
            while state["step"] < 20:
                train_one_step(fabric, model, optimizer)
                state["step"] += 1
                fabric.save(folder / "latest.ckpt", state)
                after_step()
            return model.state_dict()

        def test_my_training():
            assert_resume_equal(train, steps=range(1, 20))

    Args:
        train: A whole training, at the top of a module. It gets an empty folder for its checkpoints, goes on from what
            it finds there, and calls the function that it gets after each step. It returns what is to be compared: any
            nesting of tensors and plain values.
        steps: After which steps to kill it, each in a run of its own.
        processes: In how many processes it runs, as with `run_distributed`.
        timeout: How many seconds each run may take.

    Raises:
        AssertionError: If what comes out differs in a single bit; the message says where, and after which step.
        ValueError: If a training ended before the step after which it was to be killed.
    """
    with tempfile.TemporaryDirectory(prefix="fabric-lite-") as parent:
        folder = Path(parent) / "whole"
        folder.mkdir()
        expected = run_distributed(_run, processes, train, folder, None, timeout=timeout)
        for step in steps:
            folder = Path(parent) / f"killed-after-{step}"
            folder.mkdir()
            if not _is_killed(train, folder, step, processes, timeout):
                raise ValueError(
                    f"`assert_resume_equal(..., steps=...)`: the training ended before step {step}, or did not call"
                    " `after_step()` after each step. Ask for steps that it has."
                )
            found = run_distributed(_run, processes, train, folder, None, timeout=timeout)
            if differences := list(_differences(expected, found, "")):
                shown = "\n".join(f"  {line}" for line in differences[:10])
                more = f"\n  and {len(differences) - 10} more" if len(differences) > 10 else ""
                where = f"Killed after step {step} and resumed, the training ends with other values (by rank):"
                raise AssertionError(f"{where}\n{shown}{more}")


def _is_killed(train: Train, folder: Path, step: int, processes: int, timeout: float) -> bool:
    """Run a training that is killed after a step; False if it ends before."""
    try:
        run_distributed(_run, processes, train, folder, step, timeout=timeout)
    except ProcessExitedException as error:
        if error.signal_name == "SIGKILL":
            return True
        raise
    return False


def _run(train: Train, folder: Path, kill_after: int | None) -> Any:
    """What each process does."""
    steps = 0

    def after_step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_after:
            for child in multiprocessing.active_children():  # workers of dataloaders, as a machine that dies takes them
                child.kill()
            os.kill(os.getpid(), signal.SIGKILL)

    return train(folder, after_step)


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Where two nestings differ."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            yield f"{path}: {tuple(one.shape)}, {one.dtype} and {tuple(other.shape)}, {other.dtype}"
        elif not torch.equal(_bytes(one), _bytes(other)):
            yield f"{path}: {int((one != other).sum())} of {one.numel()} elements"
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            if (key in one) != (key in other):
                yield f"{path}[{key!r}]: only in {'the first' if key in one else 'the resumed run'}"
            else:
                yield from _differences(one[key], other[key], f"{path}[{key!r}]")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (part, counterpart) in enumerate(zip(one, other, strict=True)):
            yield from _differences(part, counterpart, f"{path}[{index}]")
    elif one != other and not (one != one and other != other):
        yield f"{path}: {one!r} and {other!r}"


def _bytes(tensor: Tensor) -> Tensor:
    """The bits, in which NaN is equal to itself and 0.0 is not -0.0."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
