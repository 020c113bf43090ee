from __future__ import annotations

import copy
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from fabric_lite.utilities.load import (
    _METADATA_FILENAME,
    _lazy_load,
    _load_distributed_checkpoint,
    _materialize_tensors,
    _move_state_into,
    _NotYetLoadedTensor,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def saved(obj: Any, path: Path) -> Any:
    torch.save(obj, path)
    return _lazy_load(path)


def test_tensors_are_replaced_wherever_they_are(path: Path) -> None:
    lazy = saved({"a": torch.ones(2), "b": [{"c": (torch.zeros(1), "text", 3)}], "d": None}, path)
    assert isinstance(lazy["a"], _NotYetLoadedTensor)
    assert isinstance(lazy["b"][0]["c"][0], _NotYetLoadedTensor)
    assert lazy["b"][0]["c"][1:] == ("text", 3)
    assert lazy["d"] is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.int16).reshape(2, 3),
        torch.randn(4, 4, dtype=torch.bfloat16).t(),
        torch.randn(6)[2:4],
        torch.ones(1).expand(3),
        torch.tensor(3.5),
        torch.empty(0),
        torch.ones(2, requires_grad=True),
        nn.Parameter(torch.ones(2), requires_grad=False),
        nn.Buffer(torch.ones(2)),
        torch.eye(3).to_sparse_coo(),
    ],
)
def test_loads_what_was_saved(tensor: Tensor, path: Path) -> None:
    lazy = saved([tensor], path)[0]
    assert isinstance(lazy, _NotYetLoadedTensor)
    loaded = lazy._load_tensor()
    assert type(loaded) is type(tensor)
    assert loaded.requires_grad == tensor.requires_grad == lazy.requires_grad
    torch.testing.assert_close(loaded, tensor, rtol=0, atol=0)
    assert lazy._load_tensor() is not loaded


def test_knows_its_form_without_loading(path: Path) -> None:
    lazy = saved({"x": torch.ones(2, 3, dtype=torch.float16)}, path)["x"]
    lazy._load_tensor = None  # fails where it is needed
    assert lazy.shape == lazy.size() == (2, 3)
    assert lazy.dtype == torch.float16
    assert lazy.device == torch.device("cpu")
    assert lazy.ndim == 2
    assert lazy.numel() == 6
    assert lazy.grad is None
    assert repr(lazy) == "_NotYetLoadedTensor(shape=(2, 3), dtype=torch.float16)"


def test_torch_functions_load(path: Path) -> None:
    lazy = saved({"x": torch.ones(2, 3)}, path)["x"]
    assert torch.is_tensor(torch.sum(lazy))
    assert torch.equal(torch.cat([lazy, lazy]), torch.ones(4, 3))
    assert torch.equal(torch.add(torch.ones(2, 3), other=lazy), torch.full((2, 3), 2.0))
    assert [chunk.shape for chunk in torch.chunk(lazy, 2)] == [(1, 3), (1, 3)]
    target = torch.zeros(2, 3)
    target.copy_(lazy)
    assert torch.equal(target, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("use", "dtype"),
    [
        (lambda t: t.to(torch.float64), torch.float64),
        (lambda t: t.half(), torch.float16),
        (lambda t: t.data, torch.float32),
        (lambda t: t.contiguous(), torch.float32),
        (lambda t: t.view(-1), torch.float32),
    ],
)
def test_methods_load(use: Any, dtype: torch.dtype, path: Path) -> None:
    result = use(saved([torch.ones(2, 3)], path)[0])
    assert type(result) is Tensor
    assert result.dtype == dtype
    assert result.sum() == 6


def test_what_no_tensor_has(path: Path) -> None:
    lazy = saved([torch.ones(1)], path)[0]
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'sizes'"):
        _ = lazy.sizes
    with pytest.raises(AttributeError, match="'_NotYetLoadedTensor' object has no attribute '__nothing__'"):
        _ = lazy.__nothing__
    assert torch.equal(copy.copy(lazy)._load_tensor(), torch.ones(1))


def test_a_loaded_tensor_does_not_write_to_the_file(path: Path) -> None:
    lazy = saved({"x": torch.zeros(3)}, path)["x"]
    lazy._load_tensor().add_(1)
    lazy.data.add_(1)
    assert torch.equal(lazy._load_tensor(), torch.zeros(3))
    assert torch.equal(torch.load(path)["x"], torch.zeros(3))


def test_the_tensors_stay_readable_when_the_file_is_replaced(path: Path) -> None:
    lazy = saved({"x": torch.zeros(3)}, path)["x"]
    torch.save({"x": torch.ones(3)}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    assert torch.equal(lazy._load_tensor(), torch.zeros(3))


def test_a_module_loads_lazily(path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    lazy = saved({"model": model.state_dict()}, path)["model"]
    assert isinstance(lazy, OrderedDict)
    assert lazy._metadata == model.state_dict()._metadata  # versions of the modules' formats
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    other.load_state_dict(lazy)
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_materializes_a_collection(path: Path) -> None:
    lazy = saved({"x": torch.ones(2), "model": nn.Linear(1, 1).state_dict()}, path)
    loaded = _materialize_tensors({**lazy, "list": [lazy["x"], 3]})
    assert torch.equal(loaded["x"], torch.ones(2))
    assert type(loaded["list"][0]) is Tensor
    assert loaded["list"][1] == 3
    assert loaded["model"]._metadata == nn.Linear(1, 1).state_dict()._metadata
    assert isinstance(lazy["x"], _NotYetLoadedTensor)


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_a_malicious_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    torch.save({"x": torch.ones(1), "y": Malicious()}, path)
    with pytest.raises(pickle.UnpicklingError, match=r"The file '.*checkpoint\.pt' is not loaded\. .*posix\.mkdir"):
        _lazy_load(path)
    assert not Path("harm").exists()


class Config:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


def test_a_class_must_be_allowed(path: Path) -> None:
    torch.save({"config": Config(torch.ones(2))}, path)
    with pytest.raises(pickle.UnpicklingError, match=r"is not loaded\. .*test_load\.Config.*add_safe_globals"):
        _lazy_load(path)
    with torch.serialization.safe_globals([Config]):
        assert torch.equal(_lazy_load(path)["config"].weight, torch.ones(2))


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=rf"There is no file '{path}'\. A checkpoint folder must be consolidated"
        ):
            _lazy_load(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"x": 1})])
def test_a_file_of_another_format(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"The file '.*checkpoint\.pt' is not a checkpoint that `torch\.save` wrote"):
        _lazy_load(path)


def test_a_truncated_file(path: Path) -> None:
    torch.save({"x": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        RuntimeError, match=r"checkpoint\.pt' is not a checkpoint that `torch\.save` wrote, or it is damaged"
    ):
        _lazy_load(path)


class Stateful:
    def __init__(self) -> None:
        self.loaded: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict


def test_moves_a_state_into_objects() -> None:
    stateful = Stateful()
    source = {"a": {"x": 1}, "b": 2, "c": 3}
    destination = {"a": stateful, "b": 0, "z": 9}
    _move_state_into(source, destination)
    assert source == {}
    assert destination == {"a": stateful, "b": 2, "c": 3, "z": 9}
    assert stateful.loaded == {"x": 1}


def test_moves_some_of_a_state() -> None:
    source = {"a": 1, "b": 2}
    destination: dict[str, Any] = {"a": 0}
    _move_state_into(source, destination, keys={"a", "missing"})
    assert source == {"b": 2}
    assert destination == {"a": 1}


def test_loads_a_distributed_checkpoint_as_a_whole(tmp_path: Path) -> None:
    state = {"model": {"weight": torch.arange(4.0)}, "optimizer": {"lr": torch.tensor(0.5)}}
    with pytest.warns(UserWarning, match="save in a single process"):
        dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    assert _METADATA_FILENAME == "meta.pt"
    loaded = _load_distributed_checkpoint(tmp_path)
    assert torch.equal(loaded["model"]["weight"], torch.arange(4.0))
    assert loaded["optimizer"]["lr"] == 0.5
    torch.save({"step": 3}, tmp_path / "meta.pt")
    assert _load_distributed_checkpoint(tmp_path)["step"] == 3
