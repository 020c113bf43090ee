from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam

from fabric_lite.checkpoint.optimizers import (
    for_optimizers,
    is_named,
    keys_of,
    name_parameters,
    number_as_they_come,
    number_parameters,
    parameter_names,
)


def module() -> nn.Module:
    return nn.Sequential(*(nn.Linear(1, 1) for _ in range(3)))


def trained(model: nn.Module, order: list[int], sizes: list[int]) -> Adam:
    """Adam that got the parameters in an order, in groups of some sizes, and has made a step."""
    parameters = list(model.parameters())
    left = [parameters[index] for index in order]
    groups = [{"params": [left.pop() for _ in range(size)], "lr": 0.1 * (i + 1)} for i, size in enumerate(sizes)]
    optimizer = Adam(groups)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    return optimizer


@given(st.permutations(range(6)), st.permutations(range(6)), st.sampled_from([[6], [2, 4], [3, 3], [1, 2, 3]]))
def test_names_survive_another_order(order: list[int], other: list[int], sizes: list[int]) -> None:
    model = module()
    names = parameter_names({"models": [model]})
    optimizer = trained(model, order, sizes)
    saved = name_parameters(optimizer, names)
    assert is_named(saved)
    fresh = trained(model, other, sizes)
    fresh.state.clear()
    fresh.load_state_dict(number_parameters(saved, fresh, names))
    for parameter in model.parameters():
        assert torch.equal(fresh.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] for group in optimizer.param_groups]
    # without a module that tells the names, the order counts
    assert number_as_they_come([saved])[0] == optimizer.state_dict()
    assert number_parameters(saved, optimizer, {}) == optimizer.state_dict()
    assert number_parameters(optimizer.state_dict(), fresh, names) == optimizer.state_dict()


def test_names_that_do_not_tell_apart() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    names = parameter_names((first, second))
    both = SGD([*first.parameters(), *second.parameters()])
    assert list(keys_of(both, names)) == ["0", "1", "2", "3"]
    assert list(keys_of(SGD(first.parameters()), names)) == ["weight", "bias"]
    assert list(keys_of(SGD([torch.ones(1, requires_grad=True)]), names)) == ["0"]
    saved = name_parameters(both, names)
    assert number_parameters(saved, both, names) == both.state_dict()


def test_the_other_parameters() -> None:
    model = module()
    saved = name_parameters(SGD(model.parameters()), parameter_names(model))
    names = parameter_names(model)
    some = SGD(list(model.parameters())[:5])
    with pytest.raises(KeyError, match=r"The checkpoint and `SGD` do not have the same parameters: '2\.bias' are in"):
        number_parameters(saved, some, names)
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(9)))
    with pytest.raises(KeyError, match=r"'3\.bias', '3\.weight', '4\.bias', '4\.weight', '5\.bias' and 7 more"):
        number_parameters(saved, SGD(many.parameters()), parameter_names(many))
    groups = SGD([{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}])
    with pytest.raises(ValueError, match="The checkpoint has 1 groups of parameters, `SGD` has 2"):
        number_parameters(saved, groups, names)


def test_optimizers_anywhere() -> None:
    optimizer = SGD(module().parameters())

    def convert(_: Any, saved: Any) -> Any:
        return {**saved, "seen": True}

    saved = {"a": [{"x": 1}, {"x": 2}], "b": {"c": {"x": 3}}, "d": {"x": 4}, "e": 5}
    objects = {"a": [optimizer, None], "b": {"c": optimizer, "missing": optimizer}, "d": "plain", "e": optimizer}
    assert for_optimizers(saved, objects, convert) == {
        "a": [{"x": 1, "seen": True}, {"x": 2}],
        "b": {"c": {"x": 3, "seen": True}},
        "d": {"x": 4},
        "e": 5,
    }
    assert saved["b"] == {"c": {"x": 3}}
    assert for_optimizers([1], [optimizer, optimizer], convert) == [1]
