"""Who waits long in a save says who is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.testing import run_distributed


def saves(folder: Path) -> dict[str, Any]:
    """What happens in each of two processes."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    store = torch.distributed.distributed_c10d._get_default_store()
    torch.manual_seed(fabric.global_rank)
    model = fabric.setup(nn.Linear(2, 2))
    # All come: nobody complains, though one comes late.
    fabric.save(folder / "a", {"model": model, "rank": fabric.global_rank})
    future = fabric.save_async(folder / "b", {"model": model, "rank": fabric.global_rank})
    loaded = fabric.load(folder / "b")
    # The first one cannot write: all are told.
    (folder / "file").touch()
    with pytest.raises((OSError, RuntimeError)) as info:
        fabric.save(folder / "file" / "a", {"step": 1})
    # One does not come, until the other one has said that it waits.
    heard = folder / "heard"
    if fabric.global_rank == 0:
        import contextlib
        import io

        class Listening(io.StringIO):
            def flush(self) -> None:
                heard.write_text(self.getvalue())
                store.set("heard", "1")

        with contextlib.redirect_stderr(Listening()):
            fabric.save(folder / "c", {"step": 1})
    else:
        store.wait(["heard"])
        fabric.save(folder / "c", {"step": 1})
    return {"done": future.done(), "rank": loaded["rank"], "heard": heard.read_text(), "failure": repr(info.value)}


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_LITE_SAVE_WARN_SECONDS", "1")
    results = run_distributed(saves, 2, tmp_path)
    assert [result["done"] for result in results] == [True, True]
    assert [result["rank"] for result in results] == [0, 0]  # the first one writes
    assert results[0]["failure"].startswith("FileExistsError(17")
    assert re.match(r"RuntimeError\(.*file/a' was not written. Rank 0 says: FileExistsError", results[1]["failure"])
    for result in results:
        assert result["heard"].startswith(
            "fabric-lite: rank 0 has waited 1 s in `fabric.save`. Rank 1 did not call it yet. All ranks have to call"
        )
        assert "`if rank == 0:`" in result["heard"]
        assert result["heard"].count("fabric-lite:") == 1
    assert (tmp_path / "a").exists()
    assert torch.load(tmp_path / "c") == {"step": 1}
