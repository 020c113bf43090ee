from __future__ import annotations

import torch
from torch import nn

from fabric_lite.utilities.optimizer import _optimizer_to_device, _optimizers_to_device

META = torch.device("meta")


def stepped(cls: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    weight = nn.Parameter(torch.ones(2))
    optimizer = cls([weight])  # type: ignore[call-arg]
    weight.sum().backward()
    optimizer.step()
    return optimizer


def test_moves_the_state_but_not_the_step() -> None:
    optimizers = [stepped(torch.optim.Adam), stepped(torch.optim.AdamW)]
    _optimizers_to_device(optimizers, META)
    for optimizer in optimizers:
        (state,) = optimizer.state.values()
        assert {name: value.device.type for name, value in state.items()} == {
            "step": "cpu",
            "exp_avg": "meta",
            "exp_avg_sq": "meta",
        }


def test_moves_state_of_any_kind() -> None:
    optimizer = stepped(torch.optim.SGD)
    (parameter,) = optimizer.param_groups[0]["params"]
    optimizer.state[parameter] = [torch.ones(1), "text"]
    _optimizer_to_device(optimizer, META)
    tensor, text = optimizer.state[parameter]
    assert tensor.device == META
    assert text == "text"
