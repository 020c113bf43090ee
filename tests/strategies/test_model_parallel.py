"""Tensor parallel on two real processes, and with FSDP2 on four: the numbers of one process on the whole batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Adam

from fabric_lite import Fabric
from fabric_lite.strategies import FSDPStrategy, ModelParallelStrategy
from fabric_lite.testing import run_distributed
from fabric_lite.utilities.distributed import _is_dtensor

STEPS, ACCUMULATED = 2, 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(self.norm(x) + self.down(torch.tanh(self.up(x))))
        return output


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def parallelize(model: Net, device_mesh: Any) -> Net:
    """The linear layers in the middle over the processes that compute together; all over those that do not."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    parallelize_module(model, device_mesh["tensor_parallel"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if device_mesh["data_parallel"].size() > 1:
        fully_shard(model.out, mesh=device_mesh["data_parallel"])
        fully_shard(model, mesh=device_mesh["data_parallel"])
    return model


def in_sequence(model: Net, device_mesh: Any) -> Net:
    """The norm on a part of the sequence in each process: it has a summand of its gradient."""
    from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

    parallelize_module(model, device_mesh["tensor_parallel"], {"norm": SequenceParallel(sequence_dim=0)})
    rank = device_mesh["tensor_parallel"].get_local_rank()
    model.norm.register_forward_pre_hook(lambda module, args: args[0].chunk(2)[rank], prepend=True)
    model.norm.register_forward_hook(lambda module, args, output: output.full_tensor())
    return model


def batches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    count = STEPS * ACCUMULATED
    return torch.randn(count, 8, 4, generator=generator), torch.randn(count, 8, 3, generator=generator)


def connected(devices: int, fn: Any = parallelize, precision: Any = None, **options: Any) -> Fabric:
    # torch says this of a tensor that its own communication returns
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    strategy = ModelParallelStrategy(fn, **options)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def train(fabric: Fabric, module: Any, optimizer: Any, clip: dict[str, float] | None = None) -> dict[str, Any]:
    share = fabric.strategy.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    norms = []
    for index, batch in enumerate(zip(*batches(), strict=True)):
        last = (index + 1) % ACCUMULATED == 0
        x, y = (part.chunk(share["num_replicas"])[share["rank"]] for part in batch)
        with fabric.no_backward_sync(module, enabled=not last):
            fabric.backward(mse_loss(module(x), y) / ACCUMULATED)
        if last:
            norms.append(fabric.clip_gradients(module, optimizer, **(clip or {"max_norm": 0.3})))
            optimizer.step()
            optimizer.zero_grad()
    assert {type(norm) for norm in norms} <= {Tensor, type(None)}
    return {"weights": whole(module.state_dict()), "norms": [n.item() for n in norms if n is not None], "share": share}


def whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    return (value.full_tensor() if _is_dtensor(value) else value).detach().clone()


def trained(fabric: Fabric, **kwargs: Any) -> dict[str, Any]:
    module = net()
    return train(fabric, *fabric.setup(module, Adam(module.parameters(), lr=0.1)), **kwargs)


def made(fabric: Fabric) -> dict[str, Any]:
    module = net()
    model, optimizer = fabric.setup(module, Adam(module.parameters(), lr=0.1))
    return {"model": model, "optimizer": optimizer, "step": 0}


def seen(state: dict[str, Any]) -> dict[str, Any]:
    return {"model": whole(state["model"].state_dict()), "optimizer": whole(state["optimizer"].state_dict())}


# -- numbers ----------------------------------------------------------------------------------------------------------


def on_two(folder: Path) -> dict[str, Any]:
    fabric = connected(2)
    found = {
        "tensor": trained(fabric),
        "clipped by value": trained(fabric, clip={"clip_val": 0.01}),
        "data": trained(connected(2, data_parallel_size=2, tensor_parallel_size=1)),
        "sequence": trained(connected(2, in_sequence)),
        "sequence by value": trained(connected(2, in_sequence), clip={"clip_val": 0.01}),
        "mixed": trained(connected(2, precision="bf16-mixed")),
    }
    torch.manual_seed(10 + fabric.global_rank)  # processes that begin with other values
    found["agreed"] = whole(fabric.setup(Net()).state_dict())
    # without memory
    with fabric.init_module(empty_init=True):
        module = Net()
    found["meta"] = all(parameter.is_meta for parameter in module.parameters())
    torch.manual_seed(10 + fabric.global_rank)
    found["materialized"] = whole(fabric.setup(module).state_dict())
    found["names"] = list(found["materialized"])
    # checkpoints of others
    for name in ("four", "one file"):
        state = made(fabric)
        fabric.load(folder / name, state)
        found[name] = seen(state)
    state = made(connected(2, data_parallel_size=2, tensor_parallel_size=1))
    fabric.load(folder / "four", state)
    found["four in another way"] = seen(state)
    fsdp = Fabric(accelerator="cpu", devices=2, strategy=FSDPStrategy())
    fsdp.launch()
    state = made(fsdp)
    fsdp.load(folder / "four", state)
    found["four by fsdp"] = seen(state)
    found["mesh"] = (fabric.strategy.device_mesh.mesh_dim_names, tuple(fabric.strategy.device_mesh.shape))
    return found


def on_four(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fabric = connected(4, data_parallel_size=2)
    state = made(fabric)
    found["both"] = train(fabric, state["model"], state["optimizer"])
    fabric.save(folder / "four", state)
    found["saved"] = seen(state)
    connected(4, data_parallel_size=2, save_distributed_checkpoint=False).save(folder / "one file", state)
    with fabric.init_module(empty_init=True):
        module = Net()
    torch.manual_seed(10 + fabric.global_rank)
    found["materialized"] = whole(fabric.setup(module).state_dict())
    fresh = made(fabric)
    fabric.load(folder / "four", fresh)
    found["loaded"] = seen(fresh)
    return found


def test_the_numbers_of_one_process(tmp_path: Path) -> None:
    four = run_distributed(on_four, 4, tmp_path)
    two = run_distributed(on_two, 2, tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1)
    expected, by_value = trained(fabric), trained(fabric, clip={"clip_val": 0.01})
    mixed = trained(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))

    def close(got: dict[str, Any], wanted: dict[str, Any], tolerance: float = 2e-5) -> None:
        torch.testing.assert_close(got["weights"], wanted["weights"], rtol=0, atol=tolerance)
        assert got["norms"] == pytest.approx(wanted["norms"], rel=max(1e-4, tolerance))

    for found in two:
        close(found["tensor"], expected)
        close(found["data"], expected)
        close(found["sequence"], expected)
        close(found["clipped by value"], by_value)
        close(found["sequence by value"], by_value)
        close(found["mixed"], mixed, 2e-2)
        assert found["tensor"]["share"] == {"num_replicas": 1, "rank": 0}
        assert found["mesh"] == (("data_parallel", "tensor_parallel"), (1, 2))
    assert [found["data"]["share"]["rank"] for found in two] == [0, 1]
    for found in four:
        close(found["both"], expected)
    assert [found["both"]["share"] for found in four] == [{"num_replicas": 2, "rank": r} for r in (0, 0, 1, 1)]

    # the values of one process
    torch.manual_seed(10)
    values = whole(Net().state_dict())
    for found in (*two, *four):
        for name in {"agreed", "materialized"} & found.keys():
            torch.testing.assert_close(found[name], values, rtol=0, atol=0)
    assert two[0]["meta"]
    assert two[0]["names"] == list(values)

    # checkpoints
    saved = four[0]["saved"]
    torch.testing.assert_close(four[3]["loaded"], saved, rtol=0, atol=0)
    for name in ("four", "one file", "four in another way", "four by fsdp"):
        torch.testing.assert_close(two[1][name], saved, rtol=0, atol=0)
    state = made(fabric)
    fabric.load(tmp_path / "four", state)
    torch.testing.assert_close(seen(state), saved, rtol=0, atol=0)


# -- errors -----------------------------------------------------------------------------------------------------------


def returns_nothing(model: nn.Module, device_mesh: Any) -> Any:
    return None


def wraps(model: nn.Module, device_mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # it cannot be made without a GPU
    nn.Module.__init__(wrapper)
    model.add_module("wrapped", wrapper)
    return model


def renames(model: nn.Module, device_mesh: Any) -> nn.Module:
    return nn.Sequential(parallelize(model, device_mesh))  # type: ignore[arg-type]


def misuse() -> None:
    with pytest.raises(TypeError, match=r"`returns_nothing\(model, device_mesh\)` returned None\. Let it return"):
        connected(2, returns_nothing).setup(net())
    with pytest.raises(TypeError, match=r"`wraps\(model, device_mesh\)` has wrapped modules in `FullyShardedData"):
        connected(2, wraps).setup(net())
    fabric, module = connected(2, renames), net()
    with pytest.raises(ValueError, match=r"`Adam` holds a parameter that is no longer there.*fabric\.setup_module\("):
        fabric.setup(module, Adam(module.parameters()))
    with pytest.raises(ValueError, match=r"A mesh of \(data_parallel=3, tensor_parallel=1\) takes 3 x 1 = 3 proc"):
        connected(2, data_parallel_size=3)


def test_misuse() -> None:
    run_distributed(misuse, 2)


def test_errors_before_anything_is_launched() -> None:
    nothing: Any = "a function"
    with pytest.raises(TypeError, match=r"`ModelParallelStrategy\('a function'\)`: pass a function"):
        ModelParallelStrategy(nothing)
    strategy = ModelParallelStrategy(parallelize)
    with pytest.raises(RuntimeError, match=r"`ModelParallelStrategy\.device_mesh` is there when .*fabric\.launch\(\)"):
        strategy.device_mesh  # noqa: B018
