from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATES = {
    "fabric_lite": [99.0, 198.0, 2970.0],
    "plain torch": [100.0, 200.0, 3000.0],
    "Lightning Fabric": [90.0, 180.0, 2700.0],
    "Accelerate": [80.0, 160.0, 2400.0],
    "fabric_lite, Learner": [75.0, 150.0, 2250.0],
}
MEMORY = {side: size * 2**20 for side, size in zip(RATES, (303, 300, 450, 306, 309), strict=True)}


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield import_module("comparison")
    for name in ("comparison", "run", "timing"):
        sys.modules.pop(name, None)


def points() -> Dataset[Any]:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(20, 64, generator=generator), torch.arange(20) % 10)


@pytest.fixture
def few_points(comparison: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = comparison.Workload(comparison.make_mlp, points, batch_size=8, makings=1, epochs=2, bars={})
    monkeypatch.setattr(comparison, "WORKLOADS", {"points": workload})


@pytest.mark.usefixtures("few_points")
def test_all_sides_have_the_same_losses(comparison: ModuleType) -> None:
    rates = comparison.rates_of("points", quick=False)

    assert {side: len(rounds) for side, rounds in rates.items()} == dict.fromkeys(RATES, 2)
    assert all(rate > 0 for rounds in rates.values() for rate in rounds)


@pytest.mark.usefixtures("few_points")
@pytest.mark.parametrize("side", ["Lightning Fabric", "fabric_lite, Learner"])
def test_a_side_whose_losses_differ_in_the_last_bit_is_named(
    comparison: ModuleType, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    def tampered(workload: Any) -> Any:
        epoch = comparison.plain(workload)

        def off() -> list[float]:
            *losses, last = epoch()
            return [*losses, torch.nextafter(torch.tensor(last), torch.tensor(9.0)).item()]

        return off

    monkeypatch.setattr(comparison, "SIDES", {"plain torch": comparison.plain, side: tampered})

    message = rf"points: the losses of {side} are not those of plain torch: at step 3, 2\.\d+, not 2\.\d+\."
    with pytest.raises(RuntimeError, match=message):
        comparison.rates_of("points", quick=True)


def test_a_side_that_makes_fewer_steps_is_named(comparison: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"points: Accelerate made 1 steps, but plain torch 2\."):
        comparison.check_equal("points", {"plain torch": [2.0, 1.0], "Accelerate": [2.0]})


def test_both_workloads_have_data(comparison: ModuleType) -> None:
    shapes = {}
    for name, workload in comparison.WORKLOADS.items():
        data = workload.make_data()
        shapes[name] = (len(data), *(part.shape for part in data[0]))

    assert shapes == {"digits MLP": (1797, (64,), ()), "small transformer": (64, (64,), (64,))}


def test_memory_is_that_of_a_process_without_the_other_sides(
    comparison: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "SIDES", {"plain torch": comparison.plain})
    ballast = bytearray(b"1") * 2**29  # of this process, and not of the one that is measured

    memory = comparison.memory_of("digits MLP")

    assert list(memory) == ["plain torch"]
    assert 2**26 < memory["plain torch"] < len(ballast)


def test_a_ratio_below_the_bar_is_missed(comparison: ModuleType) -> None:
    slow = {**RATES, "fabric_lite": [96.0, 192.0, 2880.0]}

    rows = comparison.rows_of(comparison.Result("small transformer", slow, MEMORY))

    assert [(row.peer, row.ratio, row.bar) for row in rows if row.holds is False] == [
        ("plain torch", "0.96 (0.96–0.96)", "≥ 0.97")
    ]


def test_a_full_run_writes_table_and_plot(
    comparison: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = import_module("run")
    results = [comparison.Result(name, RATES, MEMORY) for name in comparison.WORKLOADS]
    readme, plot = tmp_path / "README.md", tmp_path / "comparison.svg"
    readme.write_text(f"before\n{run.BEGIN}\noutdated\n{run.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(comparison, "results", lambda quick: results)
    monkeypatch.setattr(comparison, "PLOT", plot)
    monkeypatch.setattr(run, "README", readme)
    monkeypatch.setattr(run, "SUBJECTS", ("comparison",))
    monkeypatch.setattr(logging, "disable", lambda level: None)  # for the rest of the tests

    assert run.main(["--write"]) == 0

    written = readme.read_text(encoding="utf-8")
    assert written.startswith(f"before\n{run.BEGIN}\n")
    assert "outdated" not in written
    for row in (
        "| digits MLP: samples/s | 198 (2,970) | Lightning Fabric | 180 (2,700) | 1.1 (1.1–1.1) | ≥ 1 | yes |",
        "| digits MLP: peak memory | 303 MiB | Lightning Fabric | 450 MiB | 0.673 |  |  |",
        "| digits MLP, Learner: samples/s | 150 (2,250) | plain torch | 200 (3,000) | 0.75 (0.75–0.75) |  |  |",
        "| small transformer: samples/s | 198 (2,970) | plain torch | 200 (3,000) | 0.99 (0.99–0.99) | ≥ 0.97 | yes |",
        "| small transformer: samples/s | 198 (2,970) | Accelerate | 160 (2,400) | 1.24 (1.24–1.24) |  |  |",
    ):
        assert row in written

    drawn = plot.read_bytes()
    text = drawn.decode()
    for part in (*comparison.WORKLOADS, "Lightning Fabric", "fabric_lite, Learner", "0.99", "0.75", "1.50", "1.02"):
        assert f">{part}</text>" in text
    assert "date" not in text
    comparison.draw(results, plot)
    assert plot.read_bytes() == drawn
