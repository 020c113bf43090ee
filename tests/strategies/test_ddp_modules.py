"""What DDP makes of modules of all kinds on two real processes: several, frozen, without memory, compiled, saved."""

from __future__ import annotations

import gc
import warnings
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fabric_lite import Fabric
from fabric_lite.strategies import STRATEGY_REGISTRY, DDPStrategy
from fabric_lite.testing import run_distributed

Results = list[dict[str, Any]]


def connected(strategy: Any = "ddp", **kwargs: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy, **kwargs)
    fabric.launch()
    return fabric


def error_of(function: Any, *args: Any, **kwargs: Any) -> str:
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# -- in each of two processes ----------------------------------------------------------------------------------------


def starts_equal() -> dict[str, Any]:
    """However the processes have made their modules, they get those of the first one."""
    fabric = connected()
    torch.manual_seed(fabric.global_rank)
    trained = fabric.setup(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    frozen = fabric.setup(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).requires_grad_(False))
    transposed = nn.Linear(2, 3).requires_grad_(False)
    transposed.weight.data = torch.rand(2, 3).t()  # not contiguous
    transposed = fabric.setup(transposed)
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        meta[1].weight.requires_grad_(False)
    meta = fabric.setup(meta)
    with fabric.init_module(empty_init=True):
        empty = nn.Linear(2, 2)
    with fabric.no_backward_sync([trained, frozen]):
        output = frozen(trained(torch.ones(2, 3)))
    return {
        "wrappers": [type(each._forward_module).__name__ for each in (trained, frozen, meta)],
        "weights": [
            value.detach().clone()
            for each in (trained, frozen, transposed, meta)
            for value in each.state_dict().values()
        ],
        "output": output.detach(),
        "empty": (empty.weight.device.type, empty.weight.shape),
        "requires_grad": [p.requires_grad for p in meta.parameters()],
    }


def two_models() -> dict[str, Any]:
    """A generator and a discriminator, both of which accumulate, as on one process."""
    fabric = connected()
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(2, 3), nn.Linear(3, 1)
    return {"mine": adversaries(fabric, generator, discriminator)}


def adversaries(fabric: Fabric, generator: nn.Module, discriminator: nn.Module) -> list[Tensor]:
    g, g_optimizer = fabric.setup(generator, torch.optim.SGD(generator.parameters(), 0.1))
    d, d_optimizer = fabric.setup(discriminator, torch.optim.SGD(discriminator.parameters(), 0.1))
    noise = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(3))
    share = slice(fabric.global_rank, None, fabric.world_size)
    for step, batch in enumerate(noise):
        batch = batch[share]
        with fabric.no_backward_sync([g, d], enabled=step % 2 == 0):
            fake = g(batch)
            fabric.backward((d(torch.ones(len(batch), 3)) - d(fake.detach())).pow(2).mean())
            if step % 2:
                d_optimizer.step()
            d_optimizer.zero_grad()
            fabric.backward(d(fake).pow(2).mean())
        if step % 2:
            g_optimizer.step()
            g_optimizer.zero_grad()
            d_optimizer.zero_grad()
    return [p.detach().clone() for module in (generator, discriminator) for p in module.parameters()]


def synchronizes() -> dict[str, Any]:
    """Gradients are those of the process alone until one backward outside of `no_backward_sync`."""
    fabric = connected()
    gradients = []
    first, second = (fabric.setup(nn.Linear(1, 1, bias=False)) for _ in range(2))
    x = torch.full((1, 1), fabric.global_rank + 1.0)
    for modules in ([first, second], [first]):
        with fabric.no_backward_sync(modules[0] if len(modules) == 1 else modules):
            fabric.backward(first(x).sum() + second(x).sum())
        gradients.append([each.weight.grad.item() for each in (first, second)])
        for each in (first, second):
            each.zero_grad()
    bare = nn.Linear(1, 1)
    # A hook of one module, as torch has it. (It refuses annotations that are strings, as all in this file are.)
    first._forward_module.register_comm_hook(None, lambda state, bucket: twice_the_average(bucket))
    fabric.backward(first(x).sum())
    return {
        "gradients": gradients,
        "hooked": first.weight.grad.item(),
        "not set up": error_of(fabric.no_backward_sync, bare),
        "not wrapped": error_of(fabric.strategy.no_backward_sync, bare),
        "disabled": type(fabric.strategy.no_backward_sync(bare, enabled=False)).__name__,
    }


def twice_the_average(bucket: Any) -> Any:
    reduced = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return reduced.get_future().then(lambda future: future.value()[0])


def compiled() -> dict[str, Any]:
    fabric = connected()
    torch.manual_seed(fabric.global_rank)
    module: Any = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    model, optimizer = fabric.setup(torch.compile(module, backend="eager"), torch.optim.SGD(module.parameters(), 0.1))
    x = torch.full((1, 2), fabric.global_rank + 1.0)
    with fabric.no_backward_sync(model):
        fabric.backward(model(x).sum())
    alone = module[0].bias.grad.clone()
    fabric.backward(model(x).sum())
    optimizer.step()
    return {
        "alone": alone,
        "weights": [p.detach().clone() for p in module.parameters()],
        "kind": (type(model._forward_module).__name__, type(model._forward_module._orig_mod).__name__),
        "keys": sorted(model.state_dict()),
    }


def saves_and_loads(folder: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch about itself
        from torch.distributed.optim import ZeroRedundancyOptimizer

    fabric = connected()
    torch.manual_seed(fabric.global_rank)
    module: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    adam = torch.optim.Adam(module.parameters(), lr=0.1)
    model, optimizer = fabric.setup(module, adam)
    other, sharded = fabric.setup(
        spread := nn.Linear(2, 2), ZeroRedundancyOptimizer(spread.parameters(), torch.optim.Adam, lr=0.1)
    )
    x = torch.rand(4, 2)
    for _ in range(2):
        fabric.backward(model(x).sum() + other(x).sum())
        for each in (optimizer, sharded):
            each.step()
            each.zero_grad()
    path = folder / f"of-rank-{fabric.global_rank}" / "checkpoint.ckpt"  # each its own: only one of them is written
    state = {"model": model, "optimizer": optimizer, "other": other, "sharded": sharded, "step": 2 + fabric.global_rank}
    fabric.save(path, state)
    written = sorted(str(each.relative_to(folder)) for each in folder.rglob("*.ckpt"))
    saved = [parameter.detach().clone() for parameter in model.parameters()]
    momentum = adam.state[module[0].weight]["exp_avg"].clone()

    for parameter in (*model.parameters(), *other.parameters()):
        parameter.data.fill_(7)
    adam.state.clear()
    remainder = fabric.load(folder / "of-rank-0" / "checkpoint.ckpt", state)
    return {
        "written": written,
        "keys": list(model.state_dict()),
        "raw keys": list(torch.load(folder / "of-rank-0" / "checkpoint.ckpt")["model"]),
        "sharded": len(torch.load(folder / "of-rank-0" / "checkpoint.ckpt")["sharded"]["state"]),
        "equal": all(map(torch.equal, saved, model.parameters())),
        "momentum": torch.equal(momentum, adam.state[module[0].weight]["exp_avg"]),
        "step": state["step"],
        "remainder": remainder,
        "other": float(other.weight.detach().max()),
        "buffers": [buffer.clone() for buffer in model.buffers()],
    }


def lives_on(strategy: str = "ddp") -> list[str]:
    """What is left of a Fabric, and of what it has set up, when the user has let go of it."""
    gc.collect()
    gc.disable()  # what is in a cycle would be left
    try:
        fabric = connected(strategy)
        module = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        model, wrapped = fabric.setup(module, optimizer)
        fabric.backward(model(torch.ones(1, 2)).sum())
        wrapped.step()
        things = {
            "fabric": fabric,
            "strategy": fabric.strategy,
            "module": module,
            "optimizer": optimizer,
            "ddp": model._forward_module,
            "weight": module.weight,
        }
        alive = {name: weakref.ref(thing) for name, thing in things.items()}
        del things, fabric, module, optimizer, model, wrapped
        return [name for name, reference in alive.items() if reference() is not None]
    finally:
        gc.enable()


def connection() -> dict[str, Any]:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # that of `run_distributed`, when all have it: there comes another one
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=45))
    fabric = connected(strategy)
    group = torch.distributed.group.WORLD
    return {
        "backend": (strategy.process_group_backend, torch.distributed.get_backend()),
        "timeout": group._get_backend(torch.device("cpu")).options._timeout if group is not None else None,
        "ranks": (fabric.global_rank, fabric.local_rank, fabric.node_rank, fabric.world_size, fabric.is_global_zero),
        "device": fabric.device.type,
    }


def everything(folder: Path) -> dict[str, Any]:
    checks = [connection, starts_equal, two_models, synchronizes, compiled]
    results = {check.__name__: check() for check in checks}
    results["saves_and_loads"] = saves_and_loads(folder)
    # After the others, as the very first step of an optimizer leaves a cycle in torch's own imports.
    return {**results, "alive": lives_on(), "alive spawned": lives_on("ddp_spawn")}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_distributed(everything, 2, tmp_path_factory.mktemp("checkpoints"))


# -- what they found -------------------------------------------------------------------------------------------------


def test_the_connection_is_as_asked_for(ranks: Results) -> None:
    for rank, each in enumerate(ranks):
        found = each["connection"]
        assert found["backend"] == ("gloo", "gloo")
        assert found["timeout"] == timedelta(seconds=45)
        assert found["ranks"] == (rank, rank, 0, 2, rank == 0)
        assert found["device"] == "cpu"


def test_nothing_is_left_when_it_goes_out_of_scope(ranks: Results) -> None:
    assert [each["alive"] + each["alive spawned"] for each in ranks] == [[], []]


def test_all_processes_start_with_the_values_of_the_first(ranks: Results) -> None:
    first, second = (each["starts_equal"] for each in ranks)
    assert all(map(torch.equal, first["weights"], second["weights"]))
    assert torch.equal(first["output"], second["output"])
    assert first["wrappers"] == ["DistributedDataParallel", "Sequential", "DistributedDataParallel"]
    assert first["empty"] == ("cpu", (2, 2))
    assert first["requires_grad"] == [True, True, False, True]


def test_two_models_train_against_each_other(ranks: Results) -> None:
    torch.manual_seed(0)
    expected = adversaries(Fabric(accelerator="cpu"), nn.Linear(2, 3), nn.Linear(3, 1))
    for each in ranks:
        torch.testing.assert_close(each["two_models"]["mine"], expected)


def test_gradients_wait_for_the_backward_that_synchronizes(ranks: Results) -> None:
    for rank, each in enumerate(ranks):
        found = each["synchronizes"]
        assert found["gradients"] == [[rank + 1.0, rank + 1.0], [rank + 1.0, 1.5]]
        assert found["hooked"] == 3.0
        assert found["not set up"].startswith("TypeError: `fabric.no_backward_sync(...)` got a `Linear` that was not")
        assert found["not wrapped"] == (
            "TypeError: `no_backward_sync` got a `Linear`, which is not wrapped in `DistributedDataParallel`. Pass the"
            " module that `fabric.setup(...)` returned."
        )
        assert found["disabled"] == "nullcontext"


def test_a_compiled_module_stays_compiled_around_the_wrapper(ranks: Results) -> None:
    first, second = (each["compiled"] for each in ranks)
    assert first["kind"] == ("OptimizedModule", "DistributedDataParallel")
    assert first["keys"] == ["0.bias", "0.weight"]
    assert not torch.equal(first["alone"], second["alone"])
    assert all(map(torch.equal, first["weights"], second["weights"]))


def test_the_first_process_saves_and_all_load(ranks: Results) -> None:
    for each in ranks:
        found = each["saves_and_loads"]
        assert found["written"] == ["of-rank-0/checkpoint.ckpt"]
        assert found["keys"] == found["raw keys"]
        assert found["keys"][:2] == ["0.weight", "0.bias"]
        assert found["equal"]
        assert found["momentum"]
        assert (found["step"], found["remainder"]) == (2, {})
    first, second = (each["saves_and_loads"]["buffers"] for each in ranks)
    assert all(map(torch.equal, first, second))


def test_an_optimizer_that_shards_its_state_is_saved_whole(ranks: Results) -> None:
    assert [each["saves_and_loads"]["sharded"] for each in ranks] == [2, 2]
    assert all(each["saves_and_loads"]["other"] < 7 for each in ranks)


# -- without processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, start_method",
    [
        ("ddp", "popen"),
        ("ddp_spawn", "spawn"),
        ("ddp_fork", "fork"),
        ("ddp_notebook", "fork"),
        ("ddp_find_unused_parameters_true", "popen"),
    ],
)
def test_registered_names(name: str, start_method: str) -> None:
    strategy: Any = STRATEGY_REGISTRY.get(name)
    assert type(strategy) is DDPStrategy
    assert strategy._start_method == start_method
    assert strategy._ddp_kwargs == ({"find_unused_parameters": True} if "unused" in name else {})


def test_an_unknown_start_method() -> None:
    with pytest.raises(
        ValueError, match=r"`DDPStrategy\(start_method='teleport'\)`: choose one of 'popen', 'spawn', 'fork'"
    ):
        DDPStrategy(start_method="teleport")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["find_unused_params", "device_ids", "module"])
def test_an_argument_that_nobody_takes(name: str) -> None:
    with pytest.raises(TypeError, match=rf"`DDPStrategy\({name}=\.\.\.\)`.* takes .*find_unused_parameters"):
        DDPStrategy(**{name: True})  # type: ignore[arg-type]


def test_it_wraps_and_unwraps() -> None:
    """One process is a world, too."""
    (keys,) = run_distributed(_one_process, 1)
    assert keys == (["weight", "bias"], ["weight", "bias"], True)


def _one_process() -> tuple[Any, ...]:
    fabric = Fabric(accelerator="cpu", devices=1, strategy="ddp")
    fabric.launch()
    model = fabric.setup(nn.Linear(1, 1))
    wrapper = model._forward_module
    return (
        list(fabric.strategy.get_module_state_dict(wrapper)),
        list(model.state_dict()),
        type(wrapper) is DistributedDataParallel,
    )
