"""From arguments and environment to a plan: what is chosen, and what each contradiction is told."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite import Fabric
from fabric_lite.accelerators import CPUAccelerator
from fabric_lite.connector import Plan, _is_using_cli, make_plan
from fabric_lite.plugins import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
    TorchCheckpointIO,
)
from fabric_lite.plugins.environments import KubeflowEnvironment, LightningEnvironment
from fabric_lite.strategies import STRATEGY_REGISTRY, DDPStrategy, ParallelStrategy, SingleDeviceStrategy, Strategy

NAMES = ("ACCELERATOR", "STRATEGY", "DEVICES", "NUM_NODES", "PRECISION", "CLI_USED")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"LT_{name}", raising=False)
    monkeypatch.delenv("FABRIC_LITE_ENV", raising=False)


class Several(ParallelStrategy):
    """As little as a strategy of several processes can be."""

    def __init__(self, color: str = "red", **parts: Any) -> None:
        super().__init__(**parts)
        self.color = color

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[self.local_rank]

    def module_to_device(self, module: nn.Module) -> None:
        module.to(self.root_device)

    def all_reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        pass

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj


# Where an error quotes an object, its message is compared as a whole (and ruff told so: PT011).


@pytest.fixture
def several() -> Iterator[str]:
    STRATEGY_REGISTRY.register("several", Several, color="blue")
    yield "several"
    STRATEGY_REGISTRY.remove("several")


class TestPlan:
    def test_of_a_machine_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        plan = make_plan()
        assert type(plan.accelerator) is CPUAccelerator
        assert type(plan.strategy) is SingleDeviceStrategy
        assert type(plan.precision) is Precision
        assert type(plan.cluster_environment) is LightningEnvironment
        assert (plan.precision_input, plan.parallel_devices, plan.num_nodes) == ("32-true", (CPU,), 1)

    def test_the_strategy_has_its_parts(self) -> None:
        io, precision = TorchCheckpointIO(), DoublePrecision()
        plan = make_plan(accelerator="cpu", plugins=[io, precision])
        assert plan.strategy.checkpoint_io is io
        assert plan.strategy.precision is plan.precision is precision
        assert plan.strategy.accelerator is plan.accelerator
        assert plan.precision_input == plan._precision_input == "64-true"

    def test_it_is_frozen(self) -> None:
        plan = make_plan(accelerator="cpu")
        for field in dataclasses.fields(Plan):
            with pytest.raises(dataclasses.FrozenInstanceError, match=field.name):
                setattr(plan, field.name, None)
        assert isinstance(plan.parallel_devices, tuple)

    def test_a_fabric_is_made_of_one(self) -> None:
        fabric = Fabric(accelerator="cpu")
        plan = fabric._connector
        assert isinstance(plan, Plan)
        assert (fabric.accelerator, fabric.strategy, fabric._precision) == (
            plan.accelerator,
            plan.strategy,
            plan.precision,
        )

    def test_it_says_when_detection_is_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FABRIC_LITE_ENV", "none")
        monkeypatch.setenv("SLURM_NTASKS", "2")
        assert type(make_plan(accelerator="cpu").cluster_environment) is LightningEnvironment

    def test_arguments_that_are_instances(self) -> None:
        accelerator, strategy = CPUAccelerator(), SingleDeviceStrategy("cpu")
        plan = make_plan(accelerator=accelerator, strategy=strategy, devices="1", num_nodes=1, precision="bf16-mixed")
        assert plan.accelerator is accelerator
        assert plan.strategy is strategy
        assert isinstance(plan.precision, MixedPrecision)


class TestEnvironmentVariables:
    VALUES: tuple[tuple[str, str, Any], ...] = (
        ("accelerator", "cpu", "gpu"),
        ("strategy", "several", "single"),
        ("devices", "2", 1),
        ("num_nodes", "2", 3),
        ("precision", "64-true", "32-true"),
    )

    @pytest.mark.usefixtures("several")
    def test_they_fill_in_what_the_script_leaves_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value, _ in self.VALUES:
            monkeypatch.setenv(f"LT_{name.upper()}", value)
        plan = make_plan()
        assert type(plan.accelerator) is CPUAccelerator
        assert type(plan.strategy) is Several
        assert plan.parallel_devices == (CPU, CPU)
        assert (plan.num_nodes, plan.precision_input) == (2, "64-true")

    @pytest.mark.usefixtures("several")
    @pytest.mark.parametrize(("name", "value", "other"), VALUES)
    def test_a_contradiction_under_the_command_line(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, other: Any
    ) -> None:
        monkeypatch.setenv(f"LT_{name.upper()}", value)
        monkeypatch.setenv("LT_CLI_USED", "1")
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make_plan(**{name: other})
        option = f"--{name.replace('_', '-')}={value}"
        assert f"The script has `Fabric({name}={other!r})`, but the command line says `{option}`" in str(error.value)
        assert "Remove one of them" in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "same"),
        [("accelerator", "cpu", "cpu"), ("devices", "1", 1), ("num_nodes", "1", 1), ("precision", "64", 64)],
    )
    def test_saying_the_same_twice_is_none(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, same: Any
    ) -> None:
        monkeypatch.setenv(f"LT_{name.upper()}", value)
        monkeypatch.setenv("LT_CLI_USED", "1")
        assert make_plan(**{"accelerator": "cpu", name: same}).num_nodes == 1

    def test_without_the_command_line_the_variable_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LT_PRECISION", "64-true")
        assert make_plan(accelerator="cpu", precision="bf16-true").precision_input == "64-true"

    @pytest.mark.parametrize("name", ["accelerator", "strategy", "devices", "precision", "num_nodes"])
    def test_nonsense_is_an_error_that_quotes_it(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(f"LT_{name.upper()}", "nonsense")
        with pytest.raises((ValueError, TypeError)) as error:
            make_plan(**({} if name == "accelerator" else {"accelerator": "cpu"}))
        assert f"{name}='nonsense'" in str(error.value)

    def test_whether_the_command_line_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not _is_using_cli()
        for value in "01":
            monkeypatch.setenv("LT_CLI_USED", value)
            assert _is_using_cli() is (value == "1")


class TestStrategy:
    @pytest.mark.parametrize(
        ("name", "instead"),
        [
            ("dp", "DataParallel is not in fabric-lite; `strategy='ddp'`"),
            ("DP", "DataParallel is not in fabric-lite; `strategy='ddp'`"),
            ("deepspeed", "DeepSpeed is not in fabric-lite; `strategy='fsdp'` shards"),
            ("deepspeed_stage_2_offload", "DeepSpeed is not in fabric-lite; `strategy='fsdp'` shards"),
            ("xla", "TPUs are not in fabric-lite, Lightning Fabric has them"),
            ("xla_fsdp", "TPUs are not in fabric-lite"),
        ],
    )
    def test_what_there_is_not_and_what_to_use(self, name: str, instead: str) -> None:
        with pytest.raises(
            ValueError, match=rf"`Fabric\(strategy='{name}'\)`: choose one of 'auto'.*Note: .*{instead}"
        ):
            make_plan(strategy=name)

    @pytest.mark.parametrize("given", ["nonsense", "", None, 3, SingleDeviceStrategy])
    def test_what_nobody_knows(self, given: Any) -> None:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make_plan(strategy=given)
        assert f"`Fabric(strategy={given!r})`: choose one of 'auto'" in str(error.value)
        assert "instance of `fabric_lite.strategies.Strategy`" in str(error.value)
        assert "Note" not in str(error.value)

    def test_the_choices_are_those_that_are_registered(self, several: str) -> None:
        with pytest.raises(ValueError, match=f"choose one of 'auto'.*'{several}'"):
            make_plan(strategy="nonsense")

    def test_a_registered_one_is_made_with_its_arguments(self, several: str) -> None:
        plan = make_plan(accelerator="cpu", strategy=several, devices=3, num_nodes=2)
        assert isinstance(plan.strategy, Several)
        assert (plan.strategy.color, plan.strategy.num_nodes) == ("blue", 2)
        assert plan.strategy.parallel_devices == [CPU] * 3
        assert plan.strategy.cluster_environment is plan.cluster_environment

    def test_case_does_not_matter(self, several: str) -> None:
        assert isinstance(make_plan(accelerator="cpu", strategy=several.upper()).strategy, Several)
        assert isinstance(make_plan(accelerator="cpu", strategy="AUTO").strategy, SingleDeviceStrategy)

    def test_a_name_with_capitals_can_be_registered_too(self) -> None:
        STRATEGY_REGISTRY.register("MyStrategy", Several)
        try:
            assert isinstance(make_plan(accelerator="cpu", strategy="MyStrategy").strategy, Several)
        finally:
            STRATEGY_REGISTRY.remove("MyStrategy")

    def test_one_that_was_taken_off_the_registry_is_gone(self) -> None:
        STRATEGY_REGISTRY.register("short", Several)
        STRATEGY_REGISTRY.remove("short")
        with pytest.raises(ValueError, match="strategy='short'"):
            make_plan(strategy="short")

    def test_the_precision_is_asked_of_the_strategy(self) -> None:
        class Own(SingleDeviceStrategy):
            def make_precision(self, name: Any, device_type: str) -> Precision:
                self.asked = name, device_type
                return HalfPrecision("bf16-true")

        strategy = Own("cpu")
        plan = make_plan(accelerator="cpu", strategy=strategy, precision="16-mixed")
        assert strategy.asked == ("16-mixed", "cpu")
        assert plan.precision is strategy.precision
        assert plan.precision_input == "bf16-true"


class OneOfTwo(LightningEnvironment):
    """The first of two processes, which somebody else has started."""

    creates_processes_externally = True  # type: ignore[assignment]

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        if num_devices * num_nodes != 2:
            raise ValueError(f"It is for {num_devices * num_nodes}.")


class TestManyProcesses:
    @pytest.mark.parametrize(
        ("arguments", "processes", "start_method"),
        [
            ({"devices": 2}, 2, "popen"),
            ({"devices": "2", "num_nodes": "2"}, 4, "popen"),
            ({"num_nodes": 2}, 2, "popen"),
            ({"strategy": "ddp"}, 1, "popen"),
            ({"strategy": "DDP", "devices": 3}, 3, "popen"),
            ({"strategy": "ddp_spawn", "devices": 2}, 2, "spawn"),
            ({"strategy": "ddp_fork", "devices": 2}, 2, "fork"),
            ({"strategy": "ddp_notebook", "devices": 2}, 2, "fork"),
            ({"strategy": "ddp_find_unused_parameters_true", "devices": 2}, 2, "popen"),
        ],
    )
    def test_ddp_by_name_and_by_default(
        self, arguments: Any, processes: int, start_method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        strategy: Any = make_plan(**{"accelerator": "cpu", "devices": 1, **arguments}).strategy
        assert type(strategy) is DDPStrategy
        assert (strategy.world_size, strategy._start_method) == (processes, start_method)
        assert strategy.launcher is not None

    def test_several_machines_that_do_not_know_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"num_nodes=2\)`: MASTER_ADDR, MASTER_PORT, NODE_RANK must say"):
            make_plan(accelerator="cpu", devices=1, num_nodes=2)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(ValueError, match=r"num_nodes=2\)`: MASTER_PORT, NODE_RANK must say .*`fabric-lite run`"):
            make_plan(accelerator="cpu", devices=1, num_nodes=2)

    @pytest.mark.parametrize(("devices", "nodes", "start_method"), [(2, 1, "fork"), (2, 2, "popen")])
    def test_at_a_prompt(self, devices: int, nodes: int, start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        if start_method == "fork":
            plan: Any = make_plan(accelerator="cpu", devices=devices, num_nodes=nodes)
            assert plan.strategy._start_method == start_method
        else:
            with pytest.raises(RuntimeError, match=r"strategy='auto'.*notebook or prompt is no script"):
                make_plan(accelerator="cpu", devices=devices, num_nodes=nodes)

    @pytest.mark.parametrize("name", ["ddp", "ddp_spawn"])
    def test_what_does_not_work_at_a_prompt(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        with pytest.raises(RuntimeError) as error:
            make_plan(accelerator="cpu", strategy=name, devices=2)
        assert f"`Fabric(strategy='{name}', devices=2)`" in str(error.value)
        assert "Write `Fabric(strategy='ddp_notebook')`, or run a script" in str(error.value)
        with pytest.raises(RuntimeError, match=r"`Fabric\(DDPStrategy\(...\), devices=2\)`"):
            make_plan(accelerator="cpu", strategy=DDPStrategy(), devices=2)

    def test_mps_has_one_process(self) -> None:
        strategy = DDPStrategy(parallel_devices=[torch.device("mps", 0)], accelerator=CPUAccelerator())
        with pytest.raises(
            ValueError, match=r"MPS cannot speak to each other. Write `Fabric\(accelerator='mps', devic"
        ):
            make_plan(strategy=strategy)

    def test_as_many_as_were_started(self) -> None:
        assert make_plan(accelerator="cpu", devices=2, plugins=OneOfTwo()).strategy.launcher is not None
        with pytest.raises(ValueError, match="It is for 3"):
            make_plan(accelerator="cpu", devices=3, plugins=OneOfTwo())
        with pytest.raises(ValueError, match="It is for 1"):
            make_plan(accelerator="cpu", strategy="ddp", devices=1, plugins=OneOfTwo())

    def test_one_of_several_that_runs_alone_is_told_so(self) -> None:
        with pytest.warns(UserWarning, match="Each process runs alone. It is for 1"):
            assert isinstance(make_plan(accelerator="cpu", plugins=OneOfTwo()).strategy, SingleDeviceStrategy)
        # who asks for one device by name means it
        make_plan(accelerator="cpu", strategy=SingleDeviceStrategy("cpu"), plugins=OneOfTwo())

    def test_one_process_needs_no_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        make_plan(accelerator="cpu", plugins=KubeflowEnvironment())


class TestPartsOfAStrategy:
    def test_they_are_taken_over(self) -> None:
        parts: dict[str, Any] = {
            "accelerator": CPUAccelerator(),
            "precision": DoublePrecision(),
            "checkpoint_io": TorchCheckpointIO(),
            "cluster_environment": LightningEnvironment(),
            "parallel_devices": [CPU, CPU],
        }
        plan = make_plan(strategy=Several(**parts))
        assert plan.accelerator is parts["accelerator"]
        assert plan.precision is parts["precision"]
        assert plan.cluster_environment is parts["cluster_environment"]
        assert plan.strategy.checkpoint_io is parts["checkpoint_io"]
        assert plan.parallel_devices == (CPU, CPU)
        assert plan.precision_input == "64-true"

    @pytest.mark.parametrize(
        ("part", "made"),
        [
            ("precision", HalfPrecision),
            ("checkpoint_io", TorchCheckpointIO),
            ("cluster_environment", LightningEnvironment),
        ],
    )
    def test_none_may_be_given_a_second_time(self, part: str, made: Any) -> None:
        own, other = made(), made()
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make_plan(strategy=Several(**{part: own}), plugins=other)
        assert f"`Several` was made with {own!r}, and `Fabric(plugins=...)` has {other!r}" in str(error.value)
        assert "Keep one of them" in str(error.value)
        # the very same object is no contradiction
        assert make_plan(accelerator="cpu", strategy=Several(**{part: own}), plugins=own).num_nodes == 1

    def test_the_name_of_a_precision_contradicts_that_of_the_strategy(self) -> None:
        strategy = SingleDeviceStrategy(precision=DoublePrecision())
        with pytest.raises(ValueError, match=r"bf16-true.*(Keep|Choose) one"):
            make_plan(strategy=strategy, precision="bf16-true")

    @pytest.mark.parametrize("given", ["cpu", "gpu", CPUAccelerator()])
    def test_the_accelerator(self, given: Any) -> None:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make_plan(accelerator=given, strategy=SingleDeviceStrategy(accelerator=CPUAccelerator()))
        assert "`SingleDeviceStrategy` was made with <" in str(error.value)
        assert f"and `Fabric` got `accelerator={given!r}`. Keep one of them" in str(error.value)

    @pytest.mark.parametrize("given", ["cuda", "toaster"])
    def test_the_type_of_the_devices(self, given: str) -> None:
        message = rf"`Several` was made with devices of type 'cpu', and `Fabric` got `accelerator='{given}'`. Keep one"
        with pytest.raises(ValueError, match=message):
            make_plan(accelerator=given, strategy=Several(parallel_devices=[CPU]))

    def test_the_type_of_the_devices_says_which_accelerator(self) -> None:
        for given in ("auto", "cpu"):
            assert type(make_plan(accelerator=given, strategy=Several(parallel_devices=[CPU])).accelerator) is (
                CPUAccelerator
            )


class TestPlugins:
    def test_one_a_list_or_any_iterable(self) -> None:
        precision, io = DoublePrecision(), TorchCheckpointIO()
        for plugins in (precision, [precision], (precision,), iter([precision, io])):
            assert make_plan(accelerator="cpu", plugins=plugins).precision is precision
        assert make_plan(accelerator="cpu", plugins=[]).precision_input == "32-true"

    @pytest.mark.parametrize("kind", [Precision, TorchCheckpointIO, LightningEnvironment])
    def test_two_of_a_kind(self, kind: Any) -> None:
        plugins = [kind(), kind()]
        name = kind.__mro__[-3].__name__ if kind is not Precision else "Precision"
        with pytest.raises(ValueError, match=f"has more than one {name}. Keep one of each kind"):
            make_plan(accelerator="cpu", plugins=plugins)

    @pytest.mark.parametrize("plugin", ["bf16", 3, Precision, object()])
    def test_something_else(self, plugin: Any) -> None:
        with pytest.raises(TypeError) as error:
            make_plan(accelerator="cpu", plugins=[plugin])
        assert f"`Fabric(plugins=...)` got {plugin!r}" in str(error.value)
        assert "`Precision`, `CheckpointIO`, `ClusterEnvironment`" in str(error.value)

    def test_something_else_that_is_a_string(self) -> None:
        with pytest.raises(TypeError, match=r"`Fabric\(plugins=...\)` got 'bf16'"):
            make_plan(accelerator="cpu", plugins="bf16")  # type: ignore[arg-type]

    def test_two_precisions(self) -> None:
        precision = DoublePrecision()
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make_plan(accelerator="cpu", precision="64-true", plugins=[precision])
        assert f"`Fabric(precision='64-true', plugins={precision!r})` asks for two precisions" in str(error.value)


class TestDevicesAndMachines:
    @pytest.mark.parametrize("devices", [0, "0", []])
    def test_none_at_all(self, devices: Any) -> None:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            make_plan(accelerator="cpu", devices=devices)
        assert f"`Fabric(devices={devices!r})` leaves nothing to run on. Ask for at least one device" in str(
            error.value
        )

    @pytest.mark.parametrize("nodes", [0, -1, "0"])
    def test_machines(self, nodes: Any) -> None:
        with pytest.raises(ValueError, match=rf"`Fabric\(num_nodes={nodes!r}\)`: .*an integer above 0"):
            make_plan(accelerator="cpu", num_nodes=nodes)

    @pytest.mark.parametrize("nodes", ["two", None, 1.5])
    def test_machines_that_are_no_number(self, nodes: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=rf"num_nodes={nodes!r}"):
            make_plan(accelerator="cpu", num_nodes=nodes)

    def test_in_a_notebook_auto_is_one_device(self, several: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        assert make_plan(accelerator="cpu", strategy=several).parallel_devices == (CPU,)
        assert make_plan(accelerator="cpu", strategy=several, devices=2).parallel_devices == (CPU, CPU)


def test_strategies_are_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Strategy()  # type: ignore[abstract]
