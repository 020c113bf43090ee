"""Starting processes: `launch` and `run`, with launchers that stay in this one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fabric_lite import Fabric
from fabric_lite.strategies import SingleDeviceStrategy
from fabric_lite.strategies.launchers import _Launcher


class InProcess(_Launcher):
    """Starts no process: runs the function here, and writes down that it was asked to."""

    def __init__(self, requires_function: bool = False) -> None:
        self.requires_function = requires_function
        self.launched: list[Any] = []

    @property
    def is_interactive_compatible(self) -> bool:
        return True

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.launched.append((args, kwargs))
        return function(*args, **kwargs)


class NeedsLaunch(SingleDeviceStrategy):
    """One process that behaves like one of several."""

    def __init__(self, launcher: _Launcher | None = None) -> None:
        super().__init__("cpu")
        self._launcher = launcher
        self.environments = 0

    @property
    def requires_launch(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self.environments += 1
        super().setup_environment()


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LT_CLI_USED", raising=False)


def make(launcher: _Launcher | None = None, kind: type[Fabric] = Fabric) -> tuple[Any, NeedsLaunch]:
    strategy = NeedsLaunch(launcher)
    return kind(accelerator="cpu", strategy=strategy), strategy


def train(fabric: Fabric, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return fabric, args, kwargs


class Trainable:
    def __call__(self, fabric: Fabric) -> Fabric:
        return fabric


class TestLaunch:
    @pytest.mark.parametrize("launcher", [None, InProcess()])
    def test_without_a_function(self, launcher: Any) -> None:
        fabric, strategy = make(launcher)
        assert not fabric._launched
        assert fabric.launch() is None
        assert fabric._launched
        assert strategy.environments == 1
        fabric.setup(nn.Linear(1, 1))

    @pytest.mark.parametrize("launcher", [None, InProcess()])
    def test_with_a_function_its_arguments_and_its_result(self, launcher: Any) -> None:
        fabric, strategy = make(launcher)
        assert fabric.launch(train, 1, 2, a=3) == (fabric, (1, 2), {"a": 3})
        assert strategy.environments == 1

    @pytest.mark.parametrize(
        "function",
        [
            train,
            partial(train, x=1),
            lambda fabric: fabric,
            type("Callable", (), {"__call__": lambda self, f: f})(),
            id,
        ],
    )
    def test_any_callable_of_an_argument(self, function: Any) -> None:
        fabric, _ = make(InProcess())
        assert fabric.launch(function) == function(fabric)

    def test_a_method_of_ones_own(self) -> None:
        class Trainer:
            def fit(self, fabric: Fabric, epochs: int) -> Any:
                return self, fabric, epochs

        trainer, (fabric, _) = Trainer(), make(InProcess())
        assert fabric.launch(trainer.fit, epochs=3) == (trainer, fabric, 3)

    def test_an_exception_comes_out(self) -> None:
        def failing(fabric: Fabric) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            make(InProcess())[0].launch(failing)

    TWICE = (
        r"`fabric.launch\(\)` was called a second time, but the processes of `NeedsLaunch` are running already. Remove"
    )

    @pytest.mark.parametrize("arguments", [(), (train, 1)])
    def test_a_second_time(self, arguments: Any) -> None:
        launcher = InProcess()
        fabric, strategy = make(launcher)
        fabric.launch()
        with pytest.raises(RuntimeError, match=self.TWICE):
            fabric.launch(*arguments)
        assert (len(launcher.launched), strategy.environments) == (1, 1)

    def test_launching_within_what_was_launched(self) -> None:
        fabric, _ = make(InProcess())
        with pytest.raises(RuntimeError, match=self.TWICE):
            fabric.launch(lambda fabric: fabric.launch(train))

    def test_a_second_time_without_other_processes(self) -> None:
        fabric, strategy = make()
        fabric.launch()
        assert fabric.launch(train, 1) == (fabric, (1,), {})
        assert strategy.environments == 1  # once in each process

    def test_again_where_this_process_was_not_one_of_those_started(self) -> None:
        class Elsewhere(InProcess):
            """Runs the function in other processes, of which there are none here."""

            def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                return "their result"

        fabric, _ = make(Elsewhere())
        assert [fabric.launch(train), fabric.launch(train)] == ["their result"] * 2

    def test_where_others_have_started_the_processes_it_joins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "0")
        launcher = InProcess()
        fabric, strategy = make(launcher)
        for _ in range(2):
            assert fabric.launch(train, 1) == (fabric, (1,), {})
        assert strategy.environments == 1

    def test_one_that_spawns_needs_a_function(self) -> None:
        fabric, _ = make(InProcess(requires_function=True))
        with pytest.raises(TypeError, match=r"`NeedsLaunch` starts processes that need something.*launch\(train\)"):
            fabric.launch()
        assert not fabric._launched
        assert fabric.launch(train) == (fabric, (), {})

    @pytest.mark.parametrize("thing", [3, "train", None, train(Fabric(accelerator="cpu"))])
    def test_something_that_cannot_be_called(self, thing: Any) -> None:
        with pytest.raises(TypeError) as error:
            make()[0].launch(thing)
        assert f"`fabric.launch({thing!r})`: pass the function, `launch(train)`, not its result" in str(error.value)

    def test_a_function_without_parameters(self) -> None:
        def fit() -> None: ...

        fabric, strategy = make(InProcess())
        with pytest.raises(TypeError, match=r"`fabric.launch\(fit\)` passes the Fabric.* `def fit\(fabric\)"):
            fabric.launch(fit)
        assert (fabric._launched, strategy.environments) == (False, 0)

    def test_on_one_device_it_is_not_needed_but_allowed(self) -> None:
        fabric = Fabric(accelerator="cpu")
        fabric.setup(nn.Linear(1, 1))
        assert fabric.launch(train) == (fabric, (), {})


class TestBeforeLaunch:
    @pytest.mark.parametrize(
        "use",
        [
            lambda f: f.setup(nn.Linear(1, 1)),
            lambda f: f.setup_module(nn.Linear(1, 1)),
            lambda f: f.setup_optimizers(torch.optim.SGD([torch.ones(1)], lr=1)),
            lambda f: f.setup_dataloaders(DataLoader(range(2))),
            lambda f: f.init_module(),
            lambda f: f.barrier(),
            lambda f: f.broadcast(1),
            lambda f: f.all_gather(1),
            lambda f: f.all_reduce(1),
        ],
    )
    def test_what_needs_the_other_processes_says_so(self, use: Any) -> None:
        fabric, _ = make()
        with pytest.raises(RuntimeError, match=r"`NeedsLaunch` runs in several processes.*`fabric.launch\(\)`"):
            use(fabric)
        fabric.launch()
        use(fabric)

    def test_a_launch_that_failed_is_none(self) -> None:
        class Failing(InProcess):
            def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                raise OSError("no process")

        fabric, _ = make(Failing())
        with pytest.raises(OSError, match="no process"):
            fabric.launch()
        with pytest.raises(RuntimeError, match="nothing has started them"):
            fabric.barrier()


class Training(Fabric):
    """Overrides `run`."""

    def run(self, epochs: int, scale: int = 1) -> Any:
        """Train."""
        assert self._launched
        return ("trained", epochs * scale)


class Longer(Training):
    def run(self, epochs: int, **kwargs: Any) -> Any:
        return ("longer", super().run(epochs + 1, **kwargs))


class Inheriting(Training):
    pass


class Mixin:
    def run(self, epochs: int) -> Any:
        return ("mixin", epochs, self._launched)  # type: ignore[attr-defined]


class Mixed(Mixin, Fabric):  # type: ignore[misc]
    pass


class TestRun:
    @pytest.mark.parametrize("launcher", [None, InProcess()])
    @pytest.mark.parametrize(
        ("kind", "result"),
        [
            (Training, ("trained", 4)),
            (Longer, ("longer", ("trained", 6))),
            (Inheriting, ("trained", 4)),
        ],
    )
    def test_it_is_launched_once(self, kind: type[Fabric], result: Any, launcher: Any) -> None:
        if launcher is not None:
            launcher.launched.clear()
        fabric, strategy = make(launcher, kind)
        assert fabric.run(2, scale=2) == result
        assert strategy.environments == 1
        assert launcher is None or len(launcher.launched) == 1

    def test_also_if_it_comes_from_a_mixin(self) -> None:
        launcher = InProcess()
        fabric, strategy = make(launcher, Mixed)
        assert fabric.run(2) == ("mixin", 2, True)
        assert (len(launcher.launched), strategy.environments) == (1, 1)

    def test_again(self) -> None:
        launcher = InProcess()
        fabric, _ = make(launcher, Longer)
        assert fabric.run(1) == fabric.run(1)
        assert len(launcher.launched) == 1

    def test_after_an_exception(self) -> None:
        fabric, _ = make(InProcess(), Training)
        with pytest.raises(TypeError, match="epochs"):
            fabric.run()
        assert fabric.run(2) == ("trained", 2)

    def test_it_keeps_its_name_and_docstring(self) -> None:
        assert (Training.run.__name__, Training.run.__doc__) == ("run", "Train.")

    def test_not_overridden_it_does_nothing(self) -> None:
        assert Fabric(accelerator="cpu").run(1, a=2) is None

    def test_two_of_one_class_do_not_share_anything(self) -> None:
        (first, _), (second, strategy) = make(InProcess(), Training), make(InProcess(), Training)
        first.run(1)
        assert not second._launched
        assert strategy.environments == 0


class TestUnderTheCommandLine:
    @pytest.fixture(autouse=True)
    def command_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LT_CLI_USED", "1")

    def test_it_is_launched_from_the_beginning(self) -> None:
        launcher = InProcess()
        fabric, strategy = make(launcher)
        assert (fabric._launched, strategy.environments) == (True, 1)
        fabric.setup(nn.Linear(1, 1))
        assert launcher.launched == []

    def test_launch_joins_and_starts_nothing(self) -> None:
        launcher = InProcess()
        fabric, strategy = make(launcher)
        assert fabric.launch() is None
        assert fabric.launch(train, 1) == (fabric, (1,), {})
        assert launcher.launched == []
        assert strategy.environments == 1  # once in each process

    @pytest.mark.parametrize("kind", [Training, Longer, Inheriting, Mixed])
    def test_run_cannot_be_overridden(self, kind: type[Fabric]) -> None:
        with pytest.raises(TypeError, match=rf"`{kind.__name__}.run\(\)` starts the processes, but the command"):
            make(None, kind)
