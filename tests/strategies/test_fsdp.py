"""FSDP2 on two real processes: the numbers of one process on the whole batch, whatever is asked of it besides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, Optimizer

from fabric_lite import Fabric
from fabric_lite.plugins import FSDPPrecision
from fabric_lite.strategies import FSDPStrategy
from fabric_lite.strategies.fsdp import fsdp_overlap_step_with_backward
from fabric_lite.testing import run_distributed

Weights = dict[str, Tensor]
STEPS, ACCUMULATED = 3, 2


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(size, 6), nn.Linear(6, size)])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.layers[1](torch.tanh(self.layers[0](x)))


class Net(nn.Module):
    """Odd sizes, that no number of processes divides; two parameters are one; one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), Block(5), Block(5))
        self.scale = nn.Parameter(torch.full((5,), 0.5), requires_grad=False)
        self.head = nn.Linear(5, 3, bias=False)
        self.tail = nn.Linear(5, 3, bias=False)
        self.tail.weight = self.head.weight
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        hidden = self.body(x)
        output: Tensor = self.head(hidden * self.scale) + self.tail(hidden)
        return output

    def loss(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).square().mean() + self(x).mean()


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def batches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (STEPS * ACCUMULATED, 8, 3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def share(batch: Tensor, fabric: Fabric) -> Tensor:
    return batch.chunk(fabric.world_size)[fabric.global_rank]


def whole(tensors: dict[str, Any]) -> Weights:
    found = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def train(fabric: Fabric, module: Any, optimizer: Any, clip: dict[str, float] | None = None) -> tuple[Weights, Tensor]:
    """Some steps of accumulated gradients; returns the weights, and the norms of the gradients."""
    norms = []
    for index, (x, y) in enumerate(zip(*batches(), strict=True)):
        last = (index + 1) % ACCUMULATED == 0
        with fabric.no_backward_sync(module, enabled=not last):
            fabric.backward(mse_loss(module(share(x, fabric)), share(y, fabric)) / ACCUMULATED)
        if last:
            norm = fabric.clip_gradients(module, optimizer, **(clip or {"max_norm": 0.4}))
            norms.append(torch.zeros(()) if norm is None else norm)
            optimizer.step()
            optimizer.zero_grad()
    assert {type(norm) for norm in norms} == {Tensor}  # a number on each process, and no shard
    return whole(module.state_dict()), torch.stack(norms)


def trained(
    fabric: Fabric, make: Callable[[], nn.Module] = net, kind: type[Optimizer] = Adam, **kwargs: Any
) -> tuple[Weights, Tensor]:
    module = make()
    optimizer: Any = partial(kind, lr=0.1)
    return train(fabric, *fabric.setup(module, optimizer(module.parameters())), **kwargs)


def one(precision: Any = None, **kwargs: Any) -> tuple[Weights, Tensor]:
    """The numbers of one process."""
    return trained(Fabric(accelerator="cpu", devices=1, precision=precision), **kwargs)


def two(strategy: Any = None, precision: Any = None, **options: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy or FSDPStrategy(**options), precision=precision)
    fabric.launch()
    return fabric


# -- numbers ---------------------------------------------------------------------------------------------------------


def named_policies() -> dict[str, Any]:
    from torch.distributed.fsdp.wrap import CustomPolicy, ModuleWrapPolicy, size_based_auto_wrap_policy

    def blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or isinstance(module, Block)

    return {
        "a set of classes": {Block, nn.Linear},
        "a function": blocks,
        "a policy by size": partial(size_based_auto_wrap_policy, min_num_params=30),
        "a policy of torch": ModuleWrapPolicy({Block}),
        "a policy with settings": CustomPolicy(
            lambda m: {"reshard_after_forward": False} if type(m) is Block else False
        ),
    }


def variants() -> dict[str, tuple[Weights, Tensor]]:
    found = {
        "alone": trained(two("fsdp")),
        "offload": trained(two("fsdp_cpu_offload")),
        "gradients": trained(two(sharding_strategy="SHARD_GRAD_OP", auto_wrap_policy={Block})),
        "reshard": trained(two(reshard_after_forward=True, auto_wrap_policy={Block})),
        "copies": trained(two(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 1), auto_wrap_policy={Block})),
        "one copy": trained(two(sharding_strategy="HYBRID_SHARD")),
        "recomputed": trained(two(auto_wrap_policy={Block}, activation_checkpointing_policy={Block})),
        "plain values": trained(two(auto_wrap_policy={Block}), clip={"clip_val": 0.01}),
        "infinity": trained(two(auto_wrap_policy={Block}), clip={"max_norm": 0.05, "norm_type": float("inf")}),
        "mixed": trained(two(precision="bf16-mixed", auto_wrap_policy={Block})),
        "half": trained(two(precision="bf16-true", auto_wrap_policy={Block}), kind=SGD),
        "scaled": trained(two(FSDPStrategy(precision=FSDPPrecision("16-mixed", device="cpu")))),
    }
    for name, policy in named_policies().items():
        found[name] = trained(two(auto_wrap_policy=policy))
    fabric = two(auto_wrap_policy={Block})
    module = fabric.setup_module(net())
    optimizer = fabric.setup_optimizers(Adam(module.parameters(), lr=0.1))
    found["set up one after the other"] = train(fabric, module, optimizer)
    original = net()
    before = Adam(original.parameters(), lr=0.1)
    module = fabric.setup_module(original)
    found["an optimizer from before"] = train(fabric, module, fabric.setup_optimizers(before))
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
    found["compiled"] = trained(two(auto_wrap_policy={nn.Linear}), make=compiled_net)
    return found


def compiled_net() -> Any:
    torch.manual_seed(1)
    return torch.compile(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), backend="eager")


def test_the_numbers_of_one_process() -> None:
    first, second = run_distributed(variants, 2)
    reference = one()
    references = {
        "plain values": one(clip={"clip_val": 0.01}),
        "infinity": one(clip={"max_norm": 0.05, "norm_type": float("inf")}),
        "mixed": one("bf16-mixed"),
        "half": one("bf16-true", kind=SGD),
        "compiled": one(make=compiled_net),
    }
    for name, (weights, norms) in first.items():
        tolerance = {"mixed": 2e-2, "half": 2e-2, "scaled": 2e-2}.get(name, 1e-5)
        expected, expected_norms = references.get(name, reference)
        assert weights.keys() == expected.keys(), name
        torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(norms, expected_norms, rtol=tolerance, atol=1e-6)
        torch.testing.assert_close(second[name], (weights, norms), rtol=0, atol=0)


# -- what a module is after it was set up -----------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(self.norm(x))
        return output


def a_module() -> dict[str, Any]:
    from torch.distributed.tensor import DTensor

    found: dict[str, Any] = {}
    fabric = two(auto_wrap_policy={Block}, activation_checkpointing_policy={Block})
    torch.manual_seed(10 + fabric.global_rank)  # processes that begin with other values
    original = Net()
    module, optimizer = fabric.setup(original, SGD(original.parameters(), lr=0.1))
    found["the same object"] = module.module is original
    found["keys"] = list(module.state_dict())
    found["names"] = [name for name, _ in module.named_parameters()]
    found["shards"] = all(type(p) is nn.Parameter or isinstance(p, DTensor) for p in module.parameters())
    found["elements here"] = sum(p.to_local().numel() for p in module.parameters())
    held = {p for group in optimizer.param_groups for p in group["params"]}
    found["held"] = held == set(module.parameters())
    found["values"] = whole(module.state_dict())
    fabric.backward(module(torch.ones(2, 3)).sum())
    found["computed"] = original.body[1].calls
    # methods in the place of the forward
    module.mark_forward_method("loss")
    optimizer.zero_grad()
    fabric.backward(module.loss(share(batches()[0][0], fabric)))
    found["by a method"] = whole({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    # what a batch norm keeps stays in 32 bits
    mixed = two(precision="bf16-mixed")
    normed = mixed.setup(Normed())
    output = normed(torch.arange(12.0).view(4, 3))
    mixed.backward(output.sum())
    found["normed"] = (output.dtype, normed.norm.running_mean.dtype, normed.norm.weight.dtype)
    return found


def test_a_module_stays_what_it_is() -> None:
    first, second = run_distributed(a_module, 2)
    original = net()
    assert first["the same object"]
    assert first["keys"] == list(original.state_dict())
    assert first["names"] == [name for name, _ in original.named_parameters()]
    assert first["shards"]
    assert first["held"]
    assert first["elements here"] + second["elements here"] == sum(p.numel() for p in original.parameters())
    torch.manual_seed(10)
    torch.testing.assert_close(first["values"], whole(Net().state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(second["values"], first["values"], rtol=0, atol=0)
    assert first["computed"] == 2  # once more in the backward
    torch.manual_seed(10)
    reference = Net()
    reference(torch.ones(2, 3))
    reference.loss(batches()[0][0]).backward()
    expected = whole({n: p.grad for n, p in reference.named_parameters() if p.grad is not None})
    torch.testing.assert_close(first["by a method"], expected, rtol=0, atol=1e-6)
    assert first["normed"] == (torch.float32, torch.float32, torch.float32)


# -- modules without memory -------------------------------------------------------------------------------------------


class Resettable(Net):
    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 0.5)
        nn.init.zeros_(self.seen)  # type: ignore[arg-type]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def from_nothing() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in {"": {}, "offload": {"cpu_offload": True}}.items():
        fabric = two(auto_wrap_policy={Block}, **options)
        with fabric.init_module(empty_init=True):
            module = Resettable()
        found[f"meta {name}"] = all(p.is_meta for p in module.parameters())
        torch.manual_seed(4 + fabric.global_rank)
        module = fabric.setup_module(module)
        found[f"values {name}"] = whole(module.state_dict())
    with fabric.init_module(empty_init=True):
        plain = Plain()
    with warnings.catch_warnings(record=True) as found["warnings"]:
        warnings.simplefilter("always")
        fabric.setup(plain)
    found["warnings"] = [str(warning.message) for warning in found["warnings"]]
    with fabric.init_module():
        found["with memory"] = next(Plain().parameters()).device.type
    half = two(precision="bf16-true")
    with half.init_module(empty_init=True):
        linear = nn.Linear(3, 3)
    found["dtype"] = half.setup(linear).weight.dtype
    return found


def test_meta_modules_get_the_values_of_one_process() -> None:
    first, second = run_distributed(from_nothing, 2)
    with torch.device("meta"):
        module = Resettable()
    torch.manual_seed(4)
    expected = whole(Fabric(accelerator="cpu", devices=1).setup(module).state_dict())
    for name in ("", "offload"):
        assert first[f"meta {name}"]
        torch.testing.assert_close(first[f"values {name}"], expected, rtol=0, atol=0)
        torch.testing.assert_close(second[f"values {name}"], expected, rtol=0, atol=0)
    assert first["with memory"] == "cpu"
    assert "have no method `reset_parameters(self)`" in first["warnings"][0]
    assert first["dtype"] == torch.bfloat16


# -- optimizers -------------------------------------------------------------------------------------------------------


def optimizers() -> dict[str, Any]:
    found: dict[str, Any] = {}
    # one that has made steps before, and keeps its list of parameters elsewhere, too
    fabric = two(auto_wrap_policy={Block})
    module = net()
    warm = Adam(module.parameters(), lr=0.1)
    mse_loss(module(batches()[0][0]), batches()[1][0]).backward()
    warm.step()
    found["warm"] = train(fabric, *fabric.setup(module, warm))
    # steps during the backward
    module = net()
    parts: list[Optimizer] = [SGD(part.parameters(), lr=0.1) for part in (module.body, module.head)]
    model, *parts = fabric.setup(module, *parts)
    with fsdp_overlap_step_with_backward(parts, model):
        fabric.backward(mse_loss(model(share(batches()[0][0], fabric)), share(batches()[1][0], fabric)))
        found["left"] = [name for name, p in model.named_parameters() if p.grad is not None]
    found["overlapped"] = whole(model.state_dict())
    other = SGD(net().parameters(), lr=0.1)
    refused = pytest.raises(ValueError, match="`SGD` with parameters that are not in the module")
    with refused, fsdp_overlap_step_with_backward([other], model):
        pass
    # a norm that is no number
    optimizer = parts[0]
    for parameter in module.body.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if fabric.global_rank == 1:
        module.body[0].weight.grad.to_local().fill_(float("inf"))
    with pytest.raises(RuntimeError, match=r"The gradients have the norm (inf|nan) and cannot be clipped\. Find out"):
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
    found["accepted"] = fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False).isfinite()
    optimizer.zero_grad()
    found["none"] = fabric.clip_gradients(model, optimizer, max_norm=1.0)
    return found


def test_optimizers() -> None:
    first, _ = run_distributed(optimizers, 2)
    fabric = Fabric(accelerator="cpu", devices=1)
    module = net()
    warm = Adam(module.parameters(), lr=0.1)
    mse_loss(module(batches()[0][0]), batches()[1][0]).backward()
    warm.step()
    warm.zero_grad()
    torch.testing.assert_close(first["warm"], train(fabric, *fabric.setup(module, warm)), rtol=0, atol=1e-5)
    module = net()
    mse_loss(module(batches()[0][0]), batches()[1][0]).backward()
    SGD(module.parameters(), lr=0.1).step()
    assert first["left"] == []
    torch.testing.assert_close(first["overlapped"], whole(module.state_dict()), rtol=0, atol=1e-6)
    assert not first["accepted"]
    assert first["none"] == 0


# -- parts that stay whole, parts that the user has sharded ------------------------------------------------------------


def parts() -> dict[str, Any]:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from torch.distributed.fsdp.wrap import wrap

    found: dict[str, Any] = {}
    module = net()
    fabric = two(ignored_modules=[module.head, module.tail], auto_wrap_policy={nn.Linear})
    fabric.setup(module)
    found["whole"] = [name for name, p in module.named_parameters() if not hasattr(p, "full_tensor")]
    module = net()
    fabric = two(ignored_states=[module.scale])
    fully_shard(module.body[1], mesh=fabric.strategy.device_mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    fabric.setup(module)
    found["sharded"] = [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]
    with fabric.init_module():
        found["wrapped"] = isinstance(wrap(nn.Linear(2, 2)), FSDPModule)
    outside = nn.Linear(2, 2)
    with fabric.no_backward_sync(fabric.setup(outside), enabled=False):
        pass
    found["share"] = fabric.strategy.distributed_sampler_kwargs
    found["mesh"] = (fabric.strategy.device_mesh.mesh_dim_names, tuple(fabric.strategy.device_mesh.shape))
    mesh = fabric.strategy.device_mesh
    found["own mesh"] = two(device_mesh=mesh).strategy.device_mesh is mesh
    return found


def test_parts() -> None:
    first, second = run_distributed(parts, 2)
    assert first["whole"] == ["head.weight"]
    assert first["sharded"] == ["", "body.1"]
    assert first["wrapped"]
    assert [found["share"] for found in (first, second)] == [{"num_replicas": 2, "rank": r} for r in (0, 1)]
    assert first["mesh"] == (("data_parallel",), (2,))
    assert first["own mesh"]
