"""Functions that run in several connected processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fabric_lite import Fabric
from fabric_lite.testing import run_distributed
from fabric_lite.utilities.rank_zero import rank_zero_only


def look_around(*args, **kwargs):
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    total = fabric.all_reduce(torch.tensor(float(fabric.global_rank)), reduce_op="sum")
    return {
        "arguments": (args, kwargs),
        "fabric": [fabric.global_rank, fabric.local_rank, fabric.world_size, rank_zero_only.rank],
        "torch": [torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.distributed.get_backend()],
        "variables": [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NEW", "GONE")],
        "total": total,
        "module": sys.modules[__name__].__name__,
        "process": os.getpid(),
    }


def test_each_process_knows_its_place(monkeypatch):
    monkeypatch.setenv("GONE", "before the server starts")
    assert run_distributed(os.getpid, 1) != [os.getpid()]
    monkeypatch.delenv("GONE")
    monkeypatch.setenv("NEW", "since the server has started")
    results = run_distributed(look_around, 2, 1, timeout=100, name="x")
    for rank, result in enumerate(results):
        assert result["arguments"] == ((1,), {"name": "x"})
        assert result["fabric"] == [rank, rank, 2, rank]
        assert result["torch"] == [rank, 2, "gloo"]
        assert result["variables"] == [str(rank), str(rank), "2", "since the server has started", None]
        assert torch.equal(result["total"], torch.tensor(1.0))
        assert result["module"] == __name__
    assert len({os.getpid(), *(result["process"] for result in results)}) == 3
    assert not torch.distributed.is_initialized()
    assert "RANK" not in os.environ


def rank(*_):
    return torch.distributed.get_rank()


def connect_again(*_):
    place = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("gloo")
    return place == (torch.distributed.get_rank(), torch.distributed.get_world_size())


def test_any_number_of_processes():
    assert run_distributed(rank, 1) == [0]
    assert run_distributed(rank, 4) == [0, 1, 2, 3]
    assert run_distributed(connect_again, 2) == [True, True]
    with pytest.raises(ValueError, match=r"`run_distributed\(rank, 0\)`: ask for at least one process"):
        run_distributed(rank, 0)


def fail(what, who):
    if torch.distributed.get_rank() == who:
        if what == "raise":
            raise ValueError("the reason")
        if what == "warn":
            warnings.warn("a warning", UserWarning, stacklevel=1)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(what)
    torch.distributed.barrier()
    torch.distributed.barrier()


@pytest.mark.parametrize("who", [0, 1, 2])
def test_first_failure_is_raised(who):
    with pytest.raises(ProcessRaisedException, match=rf"rank {who} of 3 failed first(.|\n)*ValueError: the reason"):
        run_distributed(fail, 3, "raise", who)
    with pytest.raises(ProcessExitedException, match=rf"rank {who} of 3 \(process \d+\) was ended by SIGKILL"):
        run_distributed(fail, 3, "kill", who)


def test_leaving_is_a_failure_unless_it_is_with_0():
    with pytest.raises(ProcessRaisedException, match=r"rank 1 of 2 failed first(.|\n)*SystemExit: 3"):
        run_distributed(fail, 2, 3, 1)
    assert run_distributed(sys.exit, 2, 0) == [None, None]


def test_filters_of_warnings_are_the_same():
    with pytest.raises(ProcessRaisedException, match="UserWarning: a warning"):
        run_distributed(fail, 2, "warn", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ProcessRaisedException, match="SystemExit: warn"):
            run_distributed(fail, 2, "warn", 1)


def wait_for_others(who):
    if torch.distributed.get_rank() != who:
        torch.distributed.barrier()
    else:
        threading.Event().wait()


def leave_or_wait(who):
    if torch.distributed.get_rank() == who:
        time.sleep(600)


def test_no_end():
    with pytest.raises(TimeoutError) as info:
        run_distributed(wait_for_others, 2, 1, timeout=2)
    text = str(info.value)
    assert text.startswith("`run_distributed(wait_for_others, 2)`: after 2 s not ended: rank 0, 1. Where they are:")
    first, second = text.partition("rank 0:")[2].split("rank 1:")
    assert "barrier" in first
    assert "in wait_for_others" in first
    assert "in wait\n" in second
    assert "in wait_for_others" in second
    with pytest.raises(TimeoutError, match=r"after 1 s not ended: rank 0. Where (.|\n)*in leave_or_wait"):
        run_distributed(leave_or_wait, 2, 0, timeout=1)


def local(value):
    return lambda: value


def test_what_does_not_pickle():
    with pytest.raises(TypeError, match=r"`run_distributed\(local.<locals>.<lambda>, ...\)` cannot send .* Define the"):
        run_distributed(local(1), 2)
    with pytest.raises(TypeError, match=r"`run_distributed\(rank, ...\)` cannot send .*local.*arguments that pickle"):
        run_distributed(rank, 2, local(1))
    with pytest.raises(ProcessRaisedException, match="What rank 0 returns cannot be sent back, a `function`"):
        run_distributed(local, 1, 1)


def share_nothing(tensor):
    tensor += torch.distributed.get_rank() + 1
    torch.distributed.barrier()
    return tensor


def test_arguments_are_copies():
    tensor = torch.zeros(2)
    first, second = run_distributed(share_nothing, 2, tensor)
    assert (first.tolist(), second.tolist(), tensor.tolist()) == ([1, 1], [2, 2], [0, 0])
