"""A snapshot is what would have been saved, and stays so."""

from __future__ import annotations

import io
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite.checkpoint.snapshot import Memory, snapshot


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def trained() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "parameter": model[0].weight, "step": 3}


VALUES: dict[str, Any] = {
    "trained": trained(),
    "nothing": {},
    "containers": {
        "o": OrderedDict(b=1, a=[2]),
        "d": defaultdict(list, a=[1]),
        "c": Counter("aab"),
        "t": (1, [torch.ones(2)]),
    },
    "an object": {"args": Namespace(x=[1], t=torch.ones(3))},
    "dtypes": [torch.ones(3, dtype=dtype) for dtype in (torch.bfloat16, torch.bool, torch.int8, torch.complex64)],
    "strides": [torch.arange(6).reshape(2, 3).t(), torch.arange(10)[::2], torch.tensor(1.5), torch.empty(0, 3)],
    "gradients": [torch.ones(2, requires_grad=True)],
}


@pytest.mark.parametrize("name", VALUES)
def test_the_same_file(name: str) -> None:
    assert saved(snapshot(VALUES[name])) == saved(VALUES[name])


def test_memory_that_is_shared_stays_shared() -> None:
    whole = torch.arange(10.0)
    first, second, third = snapshot([whole, whole[2:4], whole.clone()])
    first[2] = 77
    assert second[0] == 77
    assert third[2] == 2
    assert whole[2] == 2


def test_it_does_not_change_when_what_was_copied_does() -> None:
    state = trained()
    state["list"] = [1, {"a": [2]}]
    before = saved(state)
    copied = snapshot(state)
    for tensor in [*state["model"].values(), state["parameter"]]:
        tensor.data.fill_(7)
    state["list"][1]["a"].append(3)
    state["optimizer"]["state"][0]["exp_avg"].zero_()
    state["optimizer"]["param_groups"][0]["lr"] = 5
    assert saved(copied) == before
    assert saved(state) != before


OTHERS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.ones(3).to_sparse(),
    "meta": lambda: torch.ones(3, device="meta"),
    "conjugated": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_other_tensors(kind: str) -> None:
    tensor = OTHERS[kind]()
    copied = snapshot({"t": tensor})["t"]
    assert type(copied) is type(tensor)
    assert (copied.layout, copied.is_quantized) == (tensor.layout, tensor.is_quantized)
    if kind == "meta":
        assert copied.is_meta
        return
    assert copied is not tensor
    if kind == "quantized":
        copied, tensor = copied.dequantize(), tensor.dequantize()
    assert torch.equal(copied.to_dense(), tensor.to_dense())


def test_what_is_attached_to_a_tensor_comes_along() -> None:
    tensor = torch.ones(2)
    tensor.name_of_mine = ["x"]  # type: ignore[attr-defined]
    copied = snapshot([tensor])[0]
    assert copied.name_of_mine == ["x"]
    assert copied.name_of_mine is not tensor.name_of_mine  # type: ignore[attr-defined]


def test_memory_is_used_again_when_nobody_else_does() -> None:
    memory = Memory()
    first = snapshot([torch.ones(1000)], memory)
    place = first[0].data_ptr()
    second = snapshot([torch.zeros(1000)], memory)
    assert second[0].data_ptr() != place
    assert bool((first[0] == 1).all())
    kept, place = second[0][:1], second[0].data_ptr()
    del second
    third = snapshot([torch.zeros(1000)], memory)
    assert third[0].data_ptr() != place
    assert kept == 0
    place = third[0].data_ptr()
    del third
    assert snapshot([torch.ones(10), torch.ones(500)], memory)[0].data_ptr() == place
    assert snapshot([torch.ones(2000)], memory)[0].shape == (2000,)
    assert isinstance(pickle.loads(pickle.dumps(memory)), Memory)
