from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from fabric_lite.permissions import Callback, Guard, ProtectedException, Read, State, Write


def mutation_check(value):
    """Finds the tensors of a tensor, a module or an optimizer: the reference for what torch's side hands in."""
    if isinstance(value, torch.Tensor):
        found = [("", value)]
    elif isinstance(value, torch.nn.Module):
        found = [*value.named_parameters(), *value.named_buffers()]
    elif isinstance(value, torch.optim.Optimizer):
        found = [(f"param_groups.{i}", p) for i, group in enumerate(value.param_groups) for p in group["params"]]
    else:
        return
    for path, tensor in found:
        if not tensor.is_inference():
            yield path, tensor.untyped_storage().data_ptr(), tensor._version


class Learner:
    def __init__(self):
        self.model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.step = State(xs=torch.ones(2, 2), parts=[{"a": (torch.zeros(1),)}], loss=1.0)
        self.options = Options()


@dataclasses.dataclass
class Options:
    mean: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))


@pytest.fixture
def run():
    """A function that runs a hook of a guarded callback as the bus does."""

    def make(access, body, learner=None, mode="strict"):
        class Meddler(Callback):
            def stateaccess(self):
                return access

            def on_step_end(self, learner):
                with torch.no_grad():
                    return body(learner)

        guard, callback, learner = Guard(mode, mutation_check=mutation_check), Meddler(), learner or Learner()
        guard.arrange([callback])
        adapt = guard.adapt(callback, "on_step_end", "learner")
        proxy = learner if adapt is None else adapt(learner)
        return guard.around(callback, "on_step_end", lambda: callback.on_step_end(proxy))

    return make


@pytest.mark.parametrize(
    ("access", "body", "path", "line"),
    [
        ({"step.xs": Read()}, lambda p: p.step.xs.add_(1), "step.xs", "step.xs"),
        ({"step": Read()}, lambda p: p.step.xs.add_(1), "step.xs", "step.xs"),
        ({"step": Read()}, lambda p: p.step.xs.view(-1)[0].zero_(), "step.xs", "step.xs"),
        ({"step": Read()}, lambda p: p.step.parts[0]["a"][0].add_(1), "step.parts[0].a[0]", "step.parts"),
        ({"options": Read()}, lambda p: p.options.mean.add_(1), "options.mean", "options.mean"),
        ({"model": Read()}, lambda p: p.model[0].weight.add_(1), "model.0.weight", "model.0.weight"),
        ({"model": Read()}, lambda p: p.model[1].running_mean.add_(1), "model.1.running_mean", "model.1.running_mean"),
        ({"model": Read()}, lambda p: torch.nn.init.zeros_(p.model[0].bias), "model.0.bias", "model.0.bias"),
        (
            {"optimizer": Read()},
            lambda p: p.optimizer.param_groups[0]["params"][0].zero_(),
            "optimizer.param_groups",
            "optimizer.param_groups",
        ),
        (
            {"model": Read(), "model.0.weight": Write()},
            lambda p: p.model[0].bias.zero_(),
            "model.0.bias",
            "model.0.bias",
        ),
    ],
)
def test_a_change_in_place_is_noticed(run, access, body, path, line):
    with pytest.raises(ProtectedException) as caught:
        run(access, body)
    how = "change the entry in" if line in access else "add this line to"
    assert str(caught.value) == (
        f"Write access to Learner.{path} disallowed. Meddler changed it in place in on_step_end;"
        f' to allow it, {how} the mapping that Meddler.stateaccess() returns:\n    "{line}": Write(),'
    )


def test_several_changes_are_counted(run):
    def body(learner):
        for parameter in learner.model.parameters():
            parameter.add_(1)

    with pytest.raises(
        ProtectedException, match=re.escape("Learner.model.0.weight disallowed. Meddler changed it (and 3 more) in")
    ):
        run({"model": Read()}, body)


@pytest.mark.parametrize(
    ("access", "body"),
    [
        ({"step.xs": Write()}, lambda p: p.step.xs.add_(1)),
        ({"step": Read(), "step.xs": Write()}, lambda p: p.step.xs.add_(1)),
        ({"model": Read(), "model.0.weight": Write()}, lambda p: p.model[0].weight.add_(1)),
        ({"model": Write(), "optimizer": Read()}, lambda p: p.optimizer.param_groups[0]["params"][0].zero_()),
        ({"model": Read()}, lambda p: p.model[0].weight.add(1)),
        ({"model": Read(), "absent.path": Read(), "step.absent": Read()}, lambda p: p.model(torch.ones(2, 2))),
        ({"step": Write(), "model": Read()}, lambda p: setattr(p, "step", State())),
    ],
)
def test_what_was_declared_or_only_read_passes(run, access, body):
    learner = Learner()
    learner.model.eval()
    run(access, body, learner)


def test_a_tensor_writable_under_another_name_is_writable(run):
    learner = Learner()
    learner.step.same = learner.step.xs.view(-1)
    run({"step.xs": Read(), "step.same": Write()}, lambda p: p.step.xs.add_(1), learner)


def test_without_strict_it_goes_unnoticed(run):
    for mode in ("on", "off"):
        run({"step.xs": Read()}, lambda p: p.step.xs.add_(1), mode=mode)


def test_containers_that_contain_themselves(run):
    learner = Learner()
    learner.step.parts.append(learner.step.parts)
    run({"step": Read()}, lambda p: None, learner)


def test_the_callbacks_own_exception_comes_first(run):
    def body(learner):
        learner.step.xs.add_(1)
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        run({"step.xs": Read()}, body)


def test_init_is_watched_too():
    class Meddler(Callback):
        def stateaccess(self):
            return {"step.xs": Read()}

        def init(self, learner):
            learner.step.xs.zero_()

    guard, callback = Guard("strict", mutation_check=mutation_check), Meddler()
    guard.arrange([callback])
    with pytest.raises(
        ProtectedException, match=r"^Write access to Learner\.step\.xs disallowed\. Meddler changed it in place in init"
    ):
        guard.attach(Learner())


def test_a_hook_that_takes_no_learner_is_watched_through_the_kept_one():
    class Keeper(Callback):
        def stateaccess(self):
            return {"step.xs": Read()}

        def init(self, learner):
            self.learner = learner

    guard, keeper, learner = Guard("strict", mutation_check=mutation_check), Keeper(), Learner()
    guard.arrange([keeper])
    guard.around(keeper, "on_before_meeting", lambda: None)
    guard.attach(learner)
    with pytest.raises(ProtectedException, match="Keeper changed it in place in on_custom"):
        guard.around(keeper, "on_custom", lambda: keeper.learner.step.xs.zero_())
    del learner
    guard.around(keeper, "on_custom", lambda: None)
