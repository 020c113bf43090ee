from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite.utilities.init import (
    _EmptyInit,
    _has_meta_device_parameters_or_buffers,
    _materialize_distributed_module,
    _materialize_meta_tensors,
)

CPU = torch.device("cpu")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(2))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.table, 3.0)  # type: ignore[arg-type]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.Conv1d(2, 2, 3)])
def test_empty_init_draws_no_random_numbers(make: Any) -> None:
    state = torch.get_rng_state()
    with _EmptyInit():
        make()
    assert torch.equal(torch.get_rng_state(), state)
    with _EmptyInit(enabled=False):
        make()
    assert not torch.equal(torch.get_rng_state(), state)


def test_empty_init_returns_the_tensor() -> None:
    x = torch.ones(2)
    with _EmptyInit():
        assert nn.init.constant_(x, 2) is x
        assert nn.init.normal_(tensor=x) is x
    assert x.tolist() == [1, 1]


def test_materializes_with_initial_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), Buffered(), nn.ReLU())
    assert _has_meta_device_parameters_or_buffers(model)
    torch.manual_seed(0)
    _materialize_meta_tensors(model, CPU)
    assert not _has_meta_device_parameters_or_buffers(model)
    torch.manual_seed(0)
    expected = nn.Linear(3, 3)
    assert torch.equal(model[0].weight, expected.weight)
    assert torch.equal(model[0].bias, expected.bias)
    assert model[1].table.tolist() == [3, 3]


def test_what_is_not_on_meta_keeps_its_values() -> None:
    model = nn.Sequential(Plain(), nn.Linear(2, 2, device="meta"))
    weight = model[0].weight
    _materialize_meta_tensors(model, CPU)
    assert model[0].weight is weight
    assert weight.tolist() == [1, 1]


def test_tied_parameters_stay_tied() -> None:
    with torch.device("meta"):
        model = Tied()
    torch.manual_seed(0)
    _materialize_meta_tensors(model, CPU)
    assert model.head.weight is model.embed.weight
    assert len(list(model.parameters())) == 1
    torch.manual_seed(0)
    nn.Embedding(4, 3)  # draws as many random numbers
    expected = nn.Linear(3, 4, bias=False)
    assert torch.equal(model.head.weight, expected.weight)


def test_a_module_that_cannot_initialise_itself() -> None:
    with torch.device("meta"):
        model = Plain()
    with pytest.raises(
        TypeError,
        match=r"Plain has parameters or buffers on the meta device.*Write a method `reset_parameters\(self\)`",
    ):
        _materialize_meta_tensors(model, CPU)


def test_materializes_as_a_whole() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), Buffered(), nn.ReLU())
    _materialize_distributed_module(model, CPU)
    assert not _has_meta_device_parameters_or_buffers(model)
    assert model[1].table.tolist() == [3, 3]
    weight = model[0].weight.clone()
    _materialize_distributed_module(model, CPU)  # there is nothing left to do
    assert torch.equal(model[0].weight, weight)


def test_warns_about_modules_that_stay_uninitialised() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Plain(), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"no method `reset_parameters\(self\)`.*: Plain\. Write the method, or load"):
        _materialize_distributed_module(model, CPU)


def test_meta_parameters_of_an_optimizer() -> None:
    linear = nn.Linear(2, 2)
    assert not _has_meta_device_parameters_or_buffers(torch.optim.SGD(linear.parameters(), lr=0.1))
    optimizer = torch.optim.SGD([*linear.parameters(), nn.Parameter(torch.ones(1, device="meta"))], lr=0.1)
    assert _has_meta_device_parameters_or_buffers(optimizer)


def test_meta_tensors_of_submodules_count_only_when_asked_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    assert _has_meta_device_parameters_or_buffers(model)
    assert not _has_meta_device_parameters_or_buffers(model, recurse=False)
    nothing: Any = "a model"
    with pytest.raises(TypeError, match=r"Expected a `torch\.nn\.Module` or a `torch\.optim\.Optimizer`, got a str"):
        _has_meta_device_parameters_or_buffers(nothing)
