from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from fabric_lite.utilities._flops import _flops_by_name
from fabric_lite.utilities.throughput import (
    Throughput,
    ThroughputMonitor,
    _MonotonicWindow,
    get_available_flops,
    measure_flops,
)


def test_totals_come_at_once_and_rates_when_the_window_is_full() -> None:
    throughput = Throughput(window_size=2)
    throughput.update(time=1.0, batches=1, samples=4, lengths=40)
    assert throughput.compute() == {"time": 1.0, "batches": 1, "samples": 4, "lengths": 40}
    throughput.update(time=3.0, batches=2, samples=8, lengths=80)
    assert throughput.compute() == {
        "time": 3.0,
        "batches": 2,
        "samples": 8,
        "lengths": 80,
        "device/batches_per_sec": 0.5,
        "device/samples_per_sec": 2.0,
        "device/items_per_sec": 20.0,
    }


def test_several_processes_add_up() -> None:
    throughput = Throughput(available_flops=100, world_size=2, window_size=2, separator="|")
    for i in (1, 2):
        throughput.update(time=float(i), batches=i, samples=3 * i, flops=50)
    rates = {name: value for name, value in throughput.compute().items() if "per_sec" in name or "mfu" in name}
    assert rates == {
        "device|batches_per_sec": 1.0,
        "batches_per_sec": 2.0,
        "device|samples_per_sec": 3.0,
        "samples_per_sec": 6.0,
        "device|flops_per_sec": 50.0,
        "flops_per_sec": 100.0,
        "device|mfu": 0.5,
    }


def test_old_updates_leave_the_window() -> None:
    throughput = Throughput(window_size=2)
    for time in (1.0, 100.0, 101.0):
        throughput.update(time=time, batches=int(time), samples=int(time))
    assert throughput.compute()["device/batches_per_sec"] == 1.0


def test_reset_forgets_everything() -> None:
    throughput = Throughput(window_size=2)
    throughput.update(time=5.0, batches=5, samples=5, flops=1)
    throughput.reset()
    with pytest.raises(RuntimeError, match=r"nothing to compute yet\. Write `throughput\.update\(time=…"):
        throughput.compute()
    throughput.update(time=1.0, batches=1, samples=1, lengths=1)
    assert throughput.compute()["lengths"] == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"world_size": 0}, "`world_size` must be at least 1, got 0"),
        ({"window_size": 1}, "`window_size` must be at least 2, as a rate needs two moments, got 1"),
    ],
)
def test_arguments_are_checked(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Throughput(**kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        (
            {"time": 1.0},
            ValueError,
            r"Expected a value greater than the last one, 1\.0, got 1\.0\. Pass running totals",
        ),
        ({"batches": 1}, ValueError, r"greater than the last one, 1, got 1"),
        ({"samples": 4}, ValueError, r"greater than the last one, 4, got 4"),
        ({"lengths": 40}, ValueError, r"greater than the last one, 40, got 40"),
        ({"samples": 1}, ValueError, r"at least as many samples as batches, got samples=1, batches=2"),
        ({"lengths": 7}, ValueError, r"lengths at least as many as samples, got lengths=7, samples=8"),
    ],
)
def test_a_refused_update_changes_nothing(update: dict[str, Any], error: type[Exception], message: str) -> None:
    throughput = Throughput(window_size=2)
    throughput.update(time=1.0, batches=1, samples=4, lengths=40, flops=1)
    good: dict[str, Any] = {"time": 2.0, "batches": 2, "samples": 8, "lengths": 80, "flops": 1}
    before = throughput.compute()
    with pytest.raises(error, match=message):
        throughput.update(**{**good, **update})
    assert throughput.compute() == before
    throughput.update(**good)


def test_lengths_come_always_or_never() -> None:
    throughput = Throughput()
    throughput.update(time=1.0, batches=1, samples=1)
    with pytest.raises(RuntimeError, match=r"`lengths` was given in 0 of 1 updates\. Give it in each, or in none"):
        throughput.update(time=2.0, batches=2, samples=2, lengths=2)


def test_the_window_only_grows_upwards() -> None:
    window = _MonotonicWindow[int](maxlen=2)
    for x in (1, 2, 3):
        window.append(x)
    assert list(window) == [2, 3]
    with pytest.raises(ValueError, match="greater than the last one, 3, got 3"):
        window.append(3)
    with pytest.raises(NotImplementedError, match=r"cannot be changed afterwards\. Write `append\(value\)`"):
        window[0] = 5


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_can_be_copied_and_pickled(clone: Any) -> None:
    throughput = Throughput(window_size=2)
    throughput.update(time=1.0, batches=1, samples=1)
    other = clone(throughput)
    other.update(time=2.0, batches=2, samples=2)
    assert other.compute()["device/batches_per_sec"] == 1.0
    assert throughput.compute()["batches"] == 1
    throughput.update(time=3.0, batches=2, samples=2)


class Precision:
    compute_dtype = torch.float32


class Strategy:
    precision = Precision()


class FakeFabric:
    device = torch.device("cpu")
    strategy = Strategy()

    def __init__(self, rank: int = 0, world_size: int = 1, launched: bool = True) -> None:
        self.is_global_zero = rank == 0
        self.world_size = world_size
        self.launched = launched
        self.logged: list[tuple[int | None, Mapping[str, Any]]] = []

    def _validate_launched(self) -> None:
        if not self.launched:
            raise RuntimeError("call launch() first")

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.logged.append((step, metrics))


def test_the_monitor_logs_and_counts_steps() -> None:
    fabric = FakeFabric(world_size=2)
    monitor = ThroughputMonitor(fabric, window_size=2)
    monitor.update(time=1.0, batches=1, samples=1)
    assert monitor.compute_and_log() == {"time": 1.0, "batches": 1, "samples": 1}
    monitor.update(time=2.0, batches=2, samples=2)
    metrics = monitor.compute_and_log(step=7)
    assert metrics["batches_per_sec"] == 2.0
    monitor.compute_and_log()
    assert [step for step, _ in fabric.logged] == [0, 7, 8]
    assert fabric.logged[1][1] == metrics
    assert monitor.available_flops is None


def test_the_monitor_does_nothing_on_other_ranks() -> None:
    fabric = FakeFabric(rank=1, world_size=2)
    monitor = ThroughputMonitor(fabric)
    monitor.update(time=1.0, batches=1, samples=0)
    assert monitor.compute() == monitor.compute_and_log() == {}
    monitor.reset()
    assert fabric.logged == []
    assert monitor.step == -1


def test_the_monitor_needs_a_launched_fabric() -> None:
    with pytest.raises(RuntimeError, match=r"call launch\(\) first"):
        ThroughputMonitor(FakeFabric(launched=False))


def test_a_copy_of_the_monitor_logs_to_the_same_fabric() -> None:
    fabric = FakeFabric()
    monitor = ThroughputMonitor(fabric, window_size=2)
    monitor.update(time=1.0, batches=1, samples=1)
    other = copy.deepcopy(monitor)
    other.update(time=2.0, batches=2, samples=2)
    other.compute_and_log()
    assert fabric.logged[0][1]["batches"] == 2
    assert monitor.compute()["batches"] == 1
    assert pickle.loads(pickle.dumps(monitor)).compute() == monitor.compute()


def test_measures_flops_of_forward_and_backward() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(32, 2), torch.randn(4, 32)
    forward = 2 * 4 * 32 * 2
    assert measure_flops(model, lambda: model(x)) == forward
    assert measure_flops(model, lambda: model(x), lambda y: y.sum()) == 2 * forward


def test_only_cuda_devices_are_known() -> None:
    assert get_available_flops(torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 PCIe", torch.float16, 756),
        ("NVIDIA H100 NVL", torch.bfloat16, 835.5),
        ("NVIDIA H200", torch.bfloat16, 989.4),
        ("NVIDIA H200 NVL", torch.bfloat16, 835.5),
        ("NVIDIA L4", torch.int8, 242),
        ("NVIDIA L40", "int4", 724),
        ("NVIDIA GeForce RTX 4080 SUPER", torch.float32, 52.2),
        ("NVIDIA GeForce RTX 4080", torch.float32, 48.7),
        ("NVIDIA GeForce RTX 3090 Ti", torch.float32, 40),
        ("Tesla V100-SXM2-32GB", torch.float16, 125),
        ("Tesla V100S-PCIE-32GB", torch.float64, 8.2),
        ("Tesla T4", torch.float32, 8.1),
    ],
)
def test_chips_are_known_by_name(name: str, dtype: Any, tera: float) -> None:
    assert _flops_by_name(name, dtype) == round(tera * 1e12)


def test_tensorfloat32_counts_if_it_is_allowed() -> None:
    assert _flops_by_name("NVIDIA A100-SXM4-80GB", torch.float32) == 19_500_000_000_000
    torch.set_float32_matmul_precision("high")
    assert _flops_by_name("NVIDIA A100-SXM4-80GB", torch.float32) == 156_000_000_000_000
    assert _flops_by_name("Tesla T4", torch.float32) == 8_100_000_000_000


@pytest.mark.parametrize("name", ["NVIDIA L40S", "NVIDIA GeForce RTX 3070 Ti", "NVIDIA GH200 480GB", "Quadro P4000"])
def test_warns_about_an_unknown_chip(name: str) -> None:
    with pytest.warns(UserWarning, match=rf"not known how many FLOPS '{name}' can do, so there will be no MFU"):
        assert _flops_by_name(name, torch.float32) is None


def test_warns_about_a_dtype_that_the_chip_lacks() -> None:
    with pytest.warns(UserWarning, match=r"not known how many FLOPS 'Tesla T4' can do in torch\.bfloat16"):
        assert _flops_by_name("Tesla T4", torch.bfloat16) is None
