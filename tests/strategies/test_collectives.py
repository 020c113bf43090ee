"""Two real processes speak to each other: any nesting, any operation, and what goes wrong is told to all."""

from __future__ import annotations

import os
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fabric_lite import Fabric
from fabric_lite.testing import run_distributed
from fabric_lite.utilities import is_shared_filesystem
from fabric_lite.utilities.types import ReduceOp

Results = list[dict[str, Any]]
Pair = namedtuple("Pair", "a b")


def connected() -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    return fabric


def error_of(function: Any, *args: Any, **kwargs: Any) -> str:
    try:
        function(*args, **kwargs)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def nested(rank: int) -> dict[str, Any]:
    return OrderedDict(
        tensor=torch.arange(2.0) + rank,
        pair=Pair(torch.full((2, 1), rank), [rank, 0.5 + rank, bool(rank)]),
        array=np.array([rank, 7]),
        transposed=(torch.arange(6.0).reshape(2, 3) + rank).t(),
        text=f"of {rank}",
        none=None,
    )


# -- in each of two processes ----------------------------------------------------------------------------------------


def gathers(fabric: Fabric) -> dict[str, Any]:
    rank = fabric.global_rank
    leaf = torch.full((2,), rank + 1.0, requires_grad=True)
    gathered = fabric.all_gather({"x": leaf}, sync_grads=True)["x"]
    fabric.backward((gathered * torch.tensor([[1.0], [10.0]]) * (rank + 1)).sum())
    return {
        "nested": fabric.all_gather(nested(rank)),
        "number": fabric.all_gather(rank),
        "of a group": fabric.all_gather(torch.tensor(rank), group=torch.distributed.group.WORLD),
        "gradient": leaf.grad,
        "requires grad": (gathered.requires_grad, fabric.all_gather(leaf).requires_grad),
        "empty": fabric.all_gather(torch.zeros(0, 3)),
    }


OPERATIONS = ["mean", "avg", "AVG", "sum", "SUM", "max", "min", "product", "band", "bor", "bxor"]


def reduces(fabric: Fabric) -> dict[str, Any]:
    rank = fabric.global_rank
    results: dict[str, Any] = {
        name: fabric.all_reduce(torch.tensor([3, 4 + rank, 6 - rank]), reduce_op=name) for name in OPERATIONS
    }
    in_place = torch.tensor([rank + 1.0])
    return {
        **results,
        "default": fabric.all_reduce(torch.tensor([rank + 1.0])),
        "none": fabric.all_reduce(torch.tensor([rank + 1.0]), reduce_op=None),
        "operation": fabric.all_reduce(rank + 1, reduce_op=ReduceOp.MAX),  # type: ignore[arg-type]
        "nested": fabric.all_reduce(nested(rank), reduce_op="sum"),
        "in place": fabric.all_reduce(in_place) is in_place,
        "unknown": error_of(fabric.all_reduce, torch.ones(1), reduce_op="median"),
    }


def broadcasts(fabric: Fabric) -> dict[str, Any]:
    rank = fabric.global_rank
    unpicklable = lambda: None  # noqa: E731
    return {
        "text": fabric.broadcast(f"of {rank}"),
        "from the other": fabric.broadcast(f"of {rank}", src=1),
        "nested": fabric.broadcast(
            {"path": Path(f"/{rank}"), "tensors": [torch.full((2,), rank)], "none": None}, src=1
        ),
        "module": fabric.broadcast(nn.Linear(1, 1).requires_grad_(False) if rank == 0 else None).weight,  # type: ignore[union-attr]
        "only the sender's counts": fabric.broadcast("fine" if rank == 0 else unpicklable),
    }


def decides(fabric: Fabric) -> dict[str, Any]:
    decide = fabric.strategy.reduce_boolean_decision
    votes = {"nobody": False, "the first": fabric.global_rank == 0, "all": True}
    return {name: (decide(vote, all=True), decide(vote, all=False), decide(vote)) for name, vote in votes.items()}


def meets(fabric: Fabric) -> dict[str, Any]:
    rank = fabric.global_rank
    unchecked = error_of(fabric.barrier, f"door {rank}")  # as costs nothing, nothing is noticed
    os.environ["FABRIC_LITE_DEBUG"] = "1"
    try:
        results = {
            "same": error_of(fabric.barrier, "door"),
            "no name": error_of(fabric.barrier),
            "other": error_of(fabric.barrier, f"door {rank}"),
            "one has none": error_of(fabric.barrier, "door" if rank else None),
            "shape": error_of(fabric.all_gather, torch.zeros(1 + rank)),
            "type": error_of(fabric.all_reduce, {"x": rank if rank else 0.5}),
            "another call": error_of(fabric.barrier if rank else fabric.broadcast, "door"),
            "sender": error_of(fabric.broadcast, 1, src=rank),
            "afterwards": error_of(fabric.barrier, "door"),
            "result": lists(fabric.all_gather(torch.tensor(rank), group=torch.distributed.group.WORLD)),
        }
    finally:
        del os.environ["FABRIC_LITE_DEBUG"]
    return {**results, "unchecked": unchecked}


def goes_first(fabric: Fabric, folder: Path) -> dict[str, Any]:
    rank = fabric.global_rank
    results: dict[str, Any] = {}
    for local in (False, True):
        file = folder / f"order-{local}"
        with fabric.rank_zero_first(local=local):
            file.write_text((file.read_text() if file.exists() else "") + str(rank))
            order = file.read_text()
        results[f"order {local}"] = order

    ran: list[str] = []

    def fails(of: tuple[int, ...]) -> None:
        with fabric.rank_zero_first():
            ran.append(f"{of}")
            if rank in of:
                raise KeyError(f"no data for {rank}")

    results["first fails"] = error_of(fails, (0,))
    results["second fails"] = error_of(fails, (1,))
    results["both fail"] = error_of(fails, (0, 1))
    results["nobody fails"] = error_of(fails, ())
    results["ran"] = ran
    return results


def everything(folder: Path) -> dict[str, Any]:
    fabric = connected()
    results = {each.__name__: each(fabric) for each in (gathers, reduces, broadcasts, decides, meets)}
    own = folder / f"of-rank-{fabric.global_rank}"
    own.mkdir()
    return {
        **results,
        "goes_first": goes_first(fabric, folder),
        "shared": (is_shared_filesystem(fabric.strategy, folder), is_shared_filesystem(fabric.strategy, own)),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_distributed(everything, 2, tmp_path_factory.mktemp("shared"))


# -- what they found -------------------------------------------------------------------------------------------------


def lists(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def test_gathers_any_nesting(ranks: Results) -> None:
    for each in ranks:
        found = each["gathers"]
        nesting = found["nested"]
        assert list(nesting) == list(nested(0))
        assert lists(nesting["tensor"]) == [[0, 1], [1, 2]]
        assert isinstance(nesting["pair"], Pair)
        assert lists(nesting["pair"].a) == [[[0], [0]], [[1], [1]]]
        assert [lists(x) for x in nesting["pair"].b] == [[0, 1], [0.5, 1.5], [0, 1]]
        assert lists(nesting["array"]) == [[0, 7], [1, 7]]
        assert nesting["transposed"].shape == (2, 3, 2)
        assert lists(nesting["transposed"][1]) == [[1, 4], [2, 5], [3, 6]]
        assert lists(found["number"]) == lists(found["of a group"]) == [0, 1]
        assert found["empty"].shape == (2, 0, 3)
    assert [each["gathers"]["nested"]["text"] for each in ranks] == ["of 0", "of 1"]
    assert [each["gathers"]["nested"]["none"] for each in ranks] == [None, None]


def test_gradients_flow_back_to_their_process_if_asked_for(ranks: Results) -> None:
    # each process has used both tensors, the second one with twice the weight
    assert [lists(each["gathers"]["gradient"]) for each in ranks] == [[3, 3], [30, 30]]
    assert [each["gathers"]["requires grad"] for each in ranks] == [(True, False)] * 2


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mean", [3, 4, 5]), ("avg", [3, 4, 5]), ("AVG", [3, 4, 5]), ("sum", [6, 9, 11]), ("SUM", [6, 9, 11]),
        ("max", [3, 5, 6]), ("min", [3, 4, 5]), ("product", [9, 20, 30]),
        ("band", [3, 4, 4]), ("bor", [3, 5, 7]), ("bxor", [0, 1, 3]),
        ("default", [1.5]), ("none", [3.0]), ("operation", 2),
    ],
)  # fmt: skip
def test_reduces_by_every_operation(name: str, expected: Any, ranks: Results) -> None:
    assert [lists(each["reduces"][name]) for each in ranks] == [expected, expected]


def test_reduces_any_nesting_in_place(ranks: Results) -> None:
    for rank, each in enumerate(ranks):
        nesting = each["reduces"]["nested"]
        assert lists(nesting["tensor"]) == [1, 3]
        assert [lists(x) for x in nesting["pair"].b] == [1, 2.0, 1]
        assert lists(nesting["array"]) == [1, 14]
        assert lists(nesting["transposed"]) == [[1, 7], [3, 9], [5, 11]]
        assert (nesting["text"], nesting["none"]) == (f"of {rank}", None)
        assert each["reduces"]["in place"]
        assert each["reduces"]["unknown"].startswith("ValueError: There is no reduce operation 'median'. Choose one of")


def test_broadcasts_any_object(ranks: Results) -> None:
    for each in ranks:
        found = each["broadcasts"]
        assert (found["text"], found["from the other"]) == ("of 0", "of 1")
        assert found["nested"]["path"] == Path("/1")
        assert lists(found["nested"]["tensors"][0]) == [1, 1]
        assert found["only the sender's counts"] == "fine"
    assert torch.equal(ranks[0]["broadcasts"]["module"], ranks[1]["broadcasts"]["module"])


def test_decides_together(ranks: Results) -> None:
    for each in ranks:
        assert each["decides"] == {
            "nobody": (False, False, False),
            "the first": (False, True, False),
            "all": (True, True, True),
        }


def test_barriers_of_other_names_are_noticed_on_all_ranks(ranks: Results) -> None:
    for each in ranks:
        found = each["meets"]
        assert [found[name] for name in ("same", "no name", "afterwards", "unchecked")] == ["no error"] * 4
        assert found["other"].startswith(
            "RuntimeError: `fabric.barrier('door 0')` was reached on rank 0, `fabric.barrier('door 1')` on rank 1. All"
        )
        assert "`fabric.barrier(None)` was reached on rank 0, `fabric.barrier('door')` on" in found["one has none"]


def test_calls_that_do_not_fit_are_noticed_on_all_ranks(ranks: Results) -> None:
    """In the process group they would end the process, or wait for ever."""
    for each in ranks:
        found = each["meets"]
        for name, first, second in (
            ("shape", "all_gather(<float32 of shape (1,)>)", "all_gather(<float32 of shape (2,)>)"),
            ("type", "all_reduce(<float32 of shape ()>)", "all_reduce(<int32 of shape ()>)"),
            ("another call", "broadcast(..., src=0)", "barrier('door')"),
            ("sender", "broadcast(..., src=0)", "broadcast(..., src=1)"),
        ):
            assert f"`fabric.{first}` was reached on rank 0, `fabric.{second}` on rank 1." in found[name]
        assert found["result"] == [0, 1]


def test_the_first_goes_first(ranks: Results) -> None:
    assert [each["goes_first"]["order False"] for each in ranks] == ["0", "01"]
    assert [each["goes_first"]["order True"] for each in ranks] == ["0", "01"]


def test_when_one_fails_in_its_turn_the_others_fail_instead_of_waiting(ranks: Results) -> None:
    first, second = (each["goes_first"] for each in ranks)
    assert first["first fails"] == "KeyError: 'no data for 0'"
    assert second["first fails"] == (
        "RuntimeError: Rank 0 failed in the block of `fabric.rank_zero_first()`, so that this rank does not go on:"
        " KeyError: 'no data for 0'. The traceback of rank 0 says where."
    )
    assert second["second fails"] == "KeyError: 'no data for 1'"
    assert first["second fails"].startswith("RuntimeError: Rank 1 failed in the block of `fabric.rank_zero_first()`")
    assert first["both fail"] == "KeyError: 'no data for 0'"
    assert second["both fail"].startswith("RuntimeError: Rank 0 failed")
    assert (first["nobody fails"], second["nobody fails"]) == ("no error", "no error")
    assert first["ran"] == ["(0,)", "(1,)", "(0, 1)", "()"]
    assert second["ran"] == ["(1,)", "()"]


def test_whether_files_are_shared(ranks: Results) -> None:
    assert [each["shared"] for each in ranks] == [(True, False)] * 2
