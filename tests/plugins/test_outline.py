"""The structure of a checkpoint is read without its code being run or its tensors being read."""

from __future__ import annotations

import io
import os
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite.plugins.io.outline import Foreign, TensorOutline, foreign_parts, read_outline


def outline_of(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    return read_outline(file)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint16]
)
def test_tensors(dtype: torch.dtype) -> None:
    outline = outline_of({"a": torch.zeros(2, 3, dtype=dtype), "b": nn.Parameter(torch.ones(4)), "c": torch.tensor(1)})
    assert outline["a"] == TensorOutline(dtype, (2, 3), "0")
    assert outline["a"].nbytes == 6 * dtype.itemsize
    assert (outline["b"].shape, outline["c"].shape) == ((4,), ())


def test_views_share_their_storage() -> None:
    whole = torch.zeros(10)
    outline = outline_of([whole, whole[2:4]])
    assert [(part.shape, part.storage) for part in outline] == [((10,), "0"), ((2,), "0")]


def test_plain_values() -> None:
    value = {"n": 1, "t": (1, "x", None, 2.5), "l": [True, {"a": b"b"}], "o": OrderedDict(a=1), "s": {1, 2}, "z": 1j}
    assert outline_of(value) == value
    assert outline_of({"size": torch.Size([1, 2]), "dtype": torch.float16}) == {"size": (1, 2), "dtype": torch.float16}


def test_other_objects() -> None:
    outline = outline_of({"args": Namespace(lr=0.1, more=[Path("x")]), "x": 1})
    assert isinstance(outline["args"], Foreign)
    assert repr(outline) == "{'args': <argparse.Namespace>, 'x': 1}"
    places = list(foreign_parts({"a": [outline]}, frozenset(["argparse.Namespace"])))
    assert places == [("['a'][0]['args']", "argparse.Namespace")]


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_no_code_is_run(tmp_path: Path) -> None:
    outline = outline_of({"x": [Evil(tmp_path / "evil")], "weight": torch.ones(2)})
    assert not (tmp_path / "evil").exists()
    assert outline["weight"].shape == (2,)
    ((place, name),) = foreign_parts(outline, frozenset([f"{os.name}.mkdir"]))
    assert (place, name) == ("['x'][0]", f"{os.name}.mkdir")


def test_a_large_tensor_costs_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.empty(1).expand(1)}, tmp_path / "a")
    small = torch.zeros(1)
    assert outline_of({"w": small.expand(1_000_000_000)})["w"].nbytes == 4_000_000_000


@pytest.mark.parametrize("data", [b"", b"text", b"PK\3\4 more"])
def test_what_has_no_structure(data: bytes) -> None:
    with pytest.raises(ValueError, match="it has no structure that can be read"):
        read_outline(io.BytesIO(data))
