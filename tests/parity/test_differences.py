"""Where the two differ in what they refuse, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn


class Difference(NamedTuple):
    """A few lines, the error that they raise there and here (None if they run), and why it is not the same one."""

    run: Callable[[Any], Any]
    theirs: str | None
    ours: str | None
    reason: str


class Recorder:
    """A callback that wants less than there is."""

    def on_after_optimizer_step(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def on_name(self, hook_name: str = "", self_: int = 0) -> None:
        self.name = hook_name

    def on_positional(self, x: int = 0, /) -> None:
        self.x = x


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def step_with_callback(case: Any) -> None:
    case.fabric(callbacks=Recorder()).setup_optimizers(sgd(nn.Linear(1, 1))).step()


def clip_twice(case: Any) -> None:
    fabric = case.fabric(plugins=case.half)
    model = nn.Linear(1, 1)
    model, optimizer = fabric.setup(model, sgd(model))
    fabric.backward(model(torch.ones(1, 1)).sum())
    fabric.clip_gradients(model, optimizer, clip_val=1)
    fabric.clip_gradients(model, optimizer, max_norm=1)


DIFFERENCES: dict[str, Difference] = {
    "a list as a module": Difference(
        lambda c: c.cpu.setup([1]), "AttributeError", "TypeError", "says which argument is of the wrong kind"
    ),
    "a list as a module, alone": Difference(
        lambda c: c.cpu.setup_module([1]), "AttributeError", "TypeError", "says which argument is of the wrong kind"
    ),
    "a compiled module twice": Difference(
        lambda c: c.cpu.setup(torch.compile(c.wrapped, backend="eager")),
        None,
        "ValueError",
        "Lightning wraps the wrapper, because it looks before it takes `torch.compile` off",
    ),
    "a module without memory": Difference(
        lambda c: c.cpu.setup(nn.Linear(1, 1, device="meta")),
        "NotImplementedError",
        None,
        "the module gets memory, and its values from `reset_parameters`",
    ),
    "an optimizer of meta parameters, with a module": Difference(
        lambda c: c.cpu.setup(nn.Linear(1, 1), sgd(nn.Linear(1, 1, device="meta"))),
        None,
        "RuntimeError",
        "such an optimizer updates nothing with any strategy; Lightning looks only with FSDP",
    ),
    "half precision of no kind": Difference(
        lambda c: c.plugins.HalfPrecision("foo"), None, "ValueError", "Lightning takes it for '16-true'"
    ),
    "accelerator tpu": Difference(
        lambda c: c.fabric(accelerator="tpu"),
        "ModuleNotFoundError",
        "ValueError",
        "TPUs are out of scope, and no package to install changes that",
    ),
    "whether this is Kubeflow": Difference(
        lambda c: c.environments.KubeflowEnvironment.detect(),
        "NotImplementedError",
        None,
        "a pod of a PyTorchJob is found by its variables",
    ),
    "synchronization of several modules": Difference(
        lambda c: c.cpu.no_backward_sync([c.wrapped, c.wrapped]), "TypeError", None, "several modules are allowed"
    ),
    "backward for a bare module": Difference(
        lambda c: c.cpu.backward(torch.ones((), requires_grad=True), model=nn.Linear(1, 1)),
        "AttributeError",
        None,
        "nothing needs the wrapper there",
    ),
    "clipping twice with a scaler": Difference(
        clip_twice, "RuntimeError", None, "gradients are unscaled once, however often they are clipped"
    ),
    "a callback that does not take the strategy": Difference(
        step_with_callback, "TypeError", None, "each hook goes through the one bus, which leaves out what is not taken"
    ),
    "an argument called hook_name": Difference(
        lambda c: c.fabric(callbacks=Recorder()).call("on_name", hook_name="x"),
        "TypeError",
        None,
        "the name of the hook is positional-only",
    ),
    "an argument called self": Difference(
        lambda c: c.fabric(callbacks=Recorder()).call("on_name", self=1),
        "TypeError",
        None,
        "the name of the hook is positional-only",
    ),
    "the name of the hook as a keyword": Difference(
        lambda c: c.fabric().call(hook_name="on_name"), None, "TypeError", "the name of the hook is positional-only"
    ),
    "a keyword for a positional-only parameter": Difference(
        lambda c: c.fabric(callbacks=Recorder()).call("on_positional", x=1),
        "TypeError",
        None,
        "such a parameter takes no keywords, so it gets none",
    ),
}


def outcome(function: Callable[[], Any]) -> str | None:
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return None


@pytest.mark.parametrize("name", DIFFERENCES)
def test_where_the_two_differ(name: str, cases: Any) -> None:
    difference = DIFFERENCES[name]
    their, our = (outcome(partial(difference.run, case)) for case in cases)
    assert (their, our) == (difference.theirs, difference.ours), difference.reason


def test_launching_under_the_command_line_joins(monkeypatch: pytest.MonkeyPatch, cases: Any) -> None:
    """The processes are there already. Lightning raises, so that a script has to be written for one way to start it."""
    monkeypatch.setenv("LT_CLI_USED", "1")
    their, our = cases
    with pytest.raises(RuntimeError, match="CLI"):
        their.cpu.launch()
    assert our.cpu.launch(lambda fabric: 3) == 3


def test_what_torchrun_has_not_started_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, cases: Any) -> None:
    """Lightning looks when the processes are launched, and not at all under its command line: the script would hang."""
    for name, value in {"TORCHELASTIC_RUN_ID": "id", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    their, our = cases
    their.fabric(accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(ValueError, match=r"`Fabric\(devices=2, num_nodes=1\)` is for 2, but torchrun has started 1"):
        our.fabric(accelerator="cpu", devices=2, strategy="ddp")


def test_one_of_several_processes_that_would_run_alone_is_told_so(monkeypatch: pytest.MonkeyPatch, cases: Any) -> None:
    """Lightning trains the same thing twice and says nothing."""
    for name, value in {"TORCHELASTIC_RUN_ID": "id", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    their, our = cases
    assert their.fabric(accelerator="cpu").world_size == 1
    with pytest.warns(UserWarning, match="Each process runs alone.*is for 1, but torchrun has started 2 processes"):
        assert our.fabric(accelerator="cpu").world_size == 1


def test_launching_twice(monkeypatch: pytest.MonkeyPatch, cases: Any) -> None:
    """Lightning runs the second function as if it had been launched, with one way of starting processes."""
    # a thread that would watch the processes for ever
    monkeypatch.setattr("lightning.fabric.strategies.launchers.subprocess_script._launch_process_observer", id)
    outcomes: list[Any] = []
    for case in cases:
        fabric = case.fabric(accelerator="cpu", devices=1, strategy="ddp")
        fabric.launch()
        try:
            outcomes.append(fabric.launch(lambda fabric: 3))
        except RuntimeError as error:
            outcomes.append(str(error).partition(",")[0])
        torch.distributed.destroy_process_group()
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
    assert outcomes == [3, "`fabric.launch()` was called a second time"]
