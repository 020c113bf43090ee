"""Mixed precision with a gradient scaler, on the CPU: bit by bit what a plain loop with `GradScaler` does.

The plain loop does the textbook thing: scale the loss, unscale once before clipping, step each optimizer, update the
scale once at the end of the iteration.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from fabric_lite import Fabric
from fabric_lite.plugins import MixedPrecision

SCALE = 1024.0
OVERFLOW = 1e6  # more than float16 can hold


def new_scaler(**options: Any) -> GradScaler:
    return GradScaler("cpu", **{"init_scale": SCALE, **options})


def new_fabric(scaler: GradScaler | None = None, **arguments: Any) -> Fabric:
    precision = MixedPrecision("16-mixed", device="cpu", scaler=scaler or new_scaler())
    return Fabric(accelerator="cpu", plugins=precision, **arguments)


def new_nets(number: int = 2) -> tuple[list[nn.Module], list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    nets: list[nn.Module] = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(number)]
    return nets, [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]


def batches(number: int = 4, spoiled: tuple[tuple[int, int], ...] = ()) -> Iterator[list[Tensor]]:
    """For each step one batch for each net; `spoiled` lists the (step, net) whose loss overflows."""
    generator = torch.Generator().manual_seed(1)
    for step in range(number):
        yield [torch.randn(8, 4, generator=generator) * (OVERFLOW if (step, net) in spoiled else 1) for net in range(2)]


def bits(*nets: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for net in nets for value in net.state_dict().values()]


class Plain:
    """The textbook."""

    def __init__(self, **options: Any) -> None:
        self.nets, self.optimizers = new_nets()
        self.scaler = new_scaler(**options)
        self.unscaled: set[int] = set()
        self.norms: list[Tensor] = []

    def forward(self, i: int, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            output = self.nets[i](x.half())
        return output.float()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip(self, i: int, **limits: float) -> None:
        if i not in self.unscaled:
            self.scaler.unscale_(self.optimizers[i])
            self.unscaled.add(i)
        if "clip_val" in limits:
            nn.utils.clip_grad_value_(self.nets[i].parameters(), limits["clip_val"])
        else:
            self.norms.append(nn.utils.clip_grad_norm_(self.nets[i].parameters(), **limits))

    def step(self, i: int) -> None:
        self.scaler.step(self.optimizers[i])

    def zero(self, i: int) -> None:
        self.optimizers[i].zero_grad()

    def end(self) -> None:
        self.scaler.update()
        self.unscaled.clear()

    def state(self) -> dict[str, Any]:
        return self.scaler.state_dict()


class Ours:
    """The same through a Fabric."""

    def __init__(self, **options: Any) -> None:
        self.nets, optimizers = new_nets()
        self.fabric = new_fabric(new_scaler(**options))
        self.models = [self.fabric.setup_module(net) for net in self.nets]
        self.optimizers = self.fabric.setup_optimizers(*optimizers)
        self.norms: list[Tensor] = []

    def forward(self, i: int, x: Tensor) -> Tensor:
        return self.models[i](x)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, i: int, **limits: float) -> None:
        norm = self.fabric.clip_gradients(self.models[i], self.optimizers[i], error_if_nonfinite=False, **limits)
        self.norms += [] if norm is None else [norm]

    def step(self, i: int) -> None:
        self.optimizers[i].step()

    def zero(self, i: int) -> None:
        self.optimizers[i].zero_grad()

    def end(self) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return self.fabric._precision.state_dict()


Loop = Plain | Ours


def run(loop: Loop, order: str, spoiled: tuple[tuple[int, int], ...] = (), **limits: float) -> Loop:
    """Go through an iteration in the given order: b(ackward), c(lip), s(tep) of net 0 or 1, as in ``"b0 c0 s0"``."""
    for xs in batches(spoiled=spoiled):
        loop.zero(0)
        loop.zero(1)
        for action, net in order.split():
            i = int(net)
            if action == "b":
                loop.backward((loop.forward(i, xs[i]) ** 2).mean())
            elif action == "c":
                loop.clip(i, **limits)
            else:
                loop.step(i)
        loop.end()
    return loop


def compare(order: str, spoiled: tuple[tuple[int, int], ...] = (), **limits: float) -> tuple[Loop, Loop]:
    ours, plain = run(Ours(), order, spoiled, **limits), run(Plain(), order, spoiled, **limits)
    assert bits(*ours.nets) == bits(*plain.nets)
    assert torch.equal(torch.tensor(ours.norms), torch.tensor(plain.norms)) or ours.norms == plain.norms
    return ours, plain


LIMITS = [{"clip_val": 0.01}, {"max_norm": 0.05}, {"max_norm": 0.05, "norm_type": float("inf")}]


def test_the_loss_is_scaled_and_the_gradients_are_not_touched_until_the_step() -> None:
    ours, unscaled = Ours(), Plain(init_scale=1.0)
    (xs,) = batches(1)
    losses = [loop.forward(0, xs[0]).mean() for loop in (ours, unscaled)]
    for loop, loss in zip((ours, unscaled), losses, strict=True):
        loop.backward(loss)
    for parameter, true in zip(ours.nets[0].parameters(), unscaled.nets[0].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, true.grad * SCALE, rtol=1e-2, atol=1e-1)
    assert torch.equal(*losses)  # the loss that the user holds is the true one


def test_one_step_without_clipping() -> None:
    ours, plain = compare("b0 s0")
    assert ours.state() == plain.state()
    assert ours.state()["_growth_tracker"] == 4


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("order", ["b0 c0 s0", "b0 c0 c0 s0", "b0 b0 c0 s0", "b0 c0 s0 b1 c1 s1", "b0 b1 s0 c1 s1"])
def test_clipping_unscales_exactly_once(order: str, limits: dict[str, float]) -> None:
    ours, _ = compare(order, **limits)
    assert bits(*ours.nets) != bits(*run(Ours(), order.replace("c0", "").replace("c1", "")).nets)


@pytest.mark.parametrize("limits", LIMITS)
def test_two_optimizers_clipped_and_stepped(limits: dict[str, float]) -> None:
    for order in ("b0 b1 c0 c1 s0 s1", "b0 c0 b1 c1 s0 s1", "b1 b0 c1 s1 c0 s0", "b0 b1 c0 s0 c1 s1"):
        ours, plain = compare(order, **limits)
        assert ours.state() == plain.state()


def test_by_value_and_by_norm_together() -> None:
    results = []
    for loop in (Ours(), Plain()):
        for xs in batches():
            loop.zero(0)
            loop.backward(loop.forward(0, xs[0]).mean())
            loop.clip(0, clip_val=0.02)
            loop.clip(0, max_norm=0.03)
            loop.step(0)
            loop.end()
        results.append((bits(*loop.nets), loop.norms))
    assert results[0] == results[1]


def test_the_gradients_that_clipping_leaves_are_the_true_ones() -> None:
    ours = Ours()
    (xs,) = batches(1)
    ours.backward(ours.forward(0, xs[0]).mean())
    ours.clip(0, clip_val=1e-3)
    values = torch.cat([p.grad.flatten() for p in ours.nets[0].parameters()])
    assert values.abs().max() == pytest.approx(1e-3)
    ours.clip(0, max_norm=1e-4)
    assert torch.cat([p.grad.flatten() for p in ours.nets[0].parameters()]).norm() == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("limits", [{}, *LIMITS])
@pytest.mark.parametrize("spoiled", [(), ((1, 0),), ((2, 1),), ((0, 0), (1, 1))])
def test_a_gan_in_its_usual_order(limits: dict[str, float], spoiled: tuple[tuple[int, int], ...]) -> None:
    """Critic and generator take turns within an iteration, and the generator's loss runs through the critic."""
    results = []
    for loop in (Ours(), Plain()):
        for real, noise in batches(5, spoiled):
            loop.zero(1)
            loop.backward((loop.forward(1, real) - loop.forward(1, loop.forward(0, noise).detach())).mean())
            if limits:
                loop.clip(1, **limits)
            loop.step(1)
            loop.zero(0)
            loop.backward((loop.forward(1, loop.forward(0, noise)) ** 2).mean())
            if limits:
                loop.clip(0, **limits)
            loop.step(0)
            loop.end()
        results.append(bits(*loop.nets))
    assert results[0] == results[1]


class TestNonFiniteGradients:
    @pytest.mark.parametrize("limits", [{}, {"max_norm": 0.05}])
    @pytest.mark.parametrize(
        "spoiled", [((1, 0),), ((1, 1),), ((1, 0), (1, 1)), ((0, 0), (1, 0), (2, 1)), ((3, 0), (3, 1))]
    )
    def test_two_optimizers(self, spoiled: tuple[tuple[int, int], ...], limits: dict[str, float]) -> None:
        order = "b0 b1 c0 c1 s0 s1" if limits else "b0 b1 s0 s1"
        ours, plain = run(Ours(), order, spoiled, **limits), run(Plain(), order, spoiled, **limits)
        assert bits(*ours.nets) == bits(*plain.nets)
        assert ours.state() == plain.state()
        assert ours.state()["scale"] == SCALE / 2 ** len({step for step, _ in spoiled})

    def test_the_step_is_skipped_and_the_scale_halved(self) -> None:
        ours = Ours()
        before = bits(*ours.nets)
        ours.backward(ours.forward(0, torch.full((2, 4), OVERFLOW)).mean())
        ours.step(0)
        assert bits(*ours.nets) == before
        assert ours.state()["scale"] == SCALE / 2

    def test_of_two_optimizers_only_the_one_concerned_skips(self) -> None:
        ours = Ours()
        before = [bits(net) for net in ours.nets]
        ours.backward(ours.forward(0, torch.full((2, 4), OVERFLOW)).mean())
        ours.backward(ours.forward(1, torch.ones(2, 4)).mean())
        ours.step(0)
        ours.step(1)
        assert [bits(net) == old for net, old in zip(ours.nets, before, strict=True)] == [True, False]
        assert ours.state()["scale"] == SCALE / 2

    def test_clipping_by_norm_says_so_unless_it_is_allowed(self) -> None:
        ours = Ours()
        ours.backward(ours.forward(0, torch.full((2, 4), OVERFLOW)).mean())
        with pytest.raises(RuntimeError, match="non-finite"):
            ours.fabric.clip_gradients(ours.models[0], ours.optimizers[0], max_norm=1.0)


def clip_and_give_up(loop: Loop) -> None:
    """An iteration whose gradients are clipped, found too large, and thrown away without a step."""
    loop.backward((loop.forward(0, torch.full((2, 4), 9.0)) ** 2).mean())
    loop.clip(0, max_norm=1.0)
    loop.end()


def test_gradients_that_add_up_while_another_optimizer_steps() -> None:
    compare("b1 b0 s0 b1 s1", ())


class TestStepsLeftOut:
    """What is unscaled and never stepped must not be taken for unscaled at the next iteration."""

    @pytest.mark.parametrize("order", ["b0 c0 s0", "b0 s0"])
    def test_the_next_iteration_is_unaffected(self, order: str) -> None:
        results = []
        for loop in (Ours(), Plain()):
            clip_and_give_up(loop)
            run(loop, order, max_norm=0.05)
            results.append((bits(*loop.nets), loop.norms))
        assert results[0] == results[1]

    def test_also_when_the_gradients_were_not_finite(self) -> None:
        ours = Ours()
        ours.backward(ours.forward(0, torch.full((2, 4), OVERFLOW)).mean())
        ours.clip(0, max_norm=1.0)
        ours.zero(0)
        before = bits(ours.nets[0])
        ours.backward(ours.forward(0, torch.ones(2, 4)).mean())
        ours.clip(0, max_norm=1.0)
        assert torch.isfinite(ours.norms[-1])
        assert ours.norms[-1] < 10  # not times the scale
        ours.step(0)
        assert bits(ours.nets[0]) != before

    def test_a_second_optimizer_that_steps_every_other_iteration(self) -> None:
        """Its gradients add up meanwhile, under one and the same scale."""
        results = []
        for loop in (Ours(), Plain()):
            for step, xs in enumerate(batches()):
                loop.zero(0)
                for i in (0, 1):
                    loop.backward((loop.forward(i, xs[i]) ** 2).mean())
                loop.clip(0, max_norm=0.05)
                loop.step(0)
                if step % 2:
                    loop.clip(1, max_norm=0.05)
                    loop.step(1)
                    loop.zero(1)
                loop.end()
            results.append((bits(*loop.nets), loop.norms))
        assert results[0] == results[1]


def test_looking_at_the_state_between_two_steps_changes_nothing() -> None:
    """As a callback does that saves in `on_after_optimizer_step`."""
    results = []
    for look in (True, False):
        loop = Ours()
        for xs in batches():
            for i in (0, 1):
                loop.zero(i)
                loop.backward((loop.forward(i, xs[i]) ** 2).mean())
            for i in (0, 1):
                loop.clip(i, max_norm=0.05)
            loop.step(0)
            if look:
                loop.fabric._precision.state_dict()
                for copied in (copy.deepcopy, pickle.dumps):
                    with pytest.raises(AssertionError, match="only be pickled at the beginning of an iteration"):
                        copied(loop.fabric._precision)
            loop.step(1)
        results.append(bits(*loop.nets))
    assert results[0] == results[1]


@pytest.mark.parametrize("clip", [True, False])
def test_a_second_step_on_the_same_gradients_is_refused(clip: bool) -> None:
    nets, _ = new_nets(1)
    fabric = new_fabric()
    model, optimizer = fabric.setup(nets[0], torch.optim.SGD(nets[0].parameters(), lr=0.1))
    fabric.backward((model(torch.ones(2, 4)) ** 2).mean())
    if clip:
        fabric.clip_gradients(model, optimizer, max_norm=0.5)
    optimizer.step()
    before = bits(*nets)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called since the last update"):
        optimizer.step()
    assert bits(*nets) == before
