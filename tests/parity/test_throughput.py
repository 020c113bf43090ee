from __future__ import annotations

from typing import Any

import lightning.fabric.utilities.throughput as theirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fabric_lite.utilities.throughput as ours
from fabric_lite.utilities._flops import _CHIPS, _COLUMNS, _flops_by_name

steps = st.lists(
    st.tuples(st.floats(0.001, 100), st.integers(1, 5), st.integers(0, 9), st.integers(0, 99), st.integers(0, 10**15)),
    min_size=1,
    max_size=8,
)


@given(
    steps=steps,
    lengths=st.booleans(),
    flops=st.booleans(),
    world_size=st.integers(1, 4),
    window_size=st.integers(2, 6),
    available_flops=st.none() | st.integers(1, 10**15),
    separator=st.sampled_from(["/", "|"]),
)
def test_the_metrics_are_the_same(steps: list[Any], lengths: bool, flops: bool, **kwargs: Any) -> None:
    pair = [module.Throughput(**kwargs) for module in (theirs, ours)]
    time, batches, samples, items = 0.0, 0, 0, 0
    for seconds, new_batches, more_samples, more_items, new_flops in steps:
        time += seconds
        batches += new_batches
        samples += new_batches + more_samples
        items += new_batches + more_samples + more_items
        for throughput in pair:
            throughput.update(
                time=time,
                batches=batches,
                samples=samples,
                lengths=items if lengths else None,
                flops=new_flops if flops else None,
            )
        assert pair[0].compute() == pair[1].compute()


@pytest.mark.parametrize(
    "update",
    [
        {"time": 1.0, "batches": 2, "samples": 2},
        {"time": 2.0, "batches": 1, "samples": 2},
        {"time": 2.0, "batches": 3, "samples": 2},
        {"time": 2.0, "batches": 2, "samples": 2, "lengths": 1},
    ],
)
def test_the_same_updates_are_refused(update: dict[str, Any]) -> None:
    for module in (theirs, ours):
        throughput = module.Throughput()
        throughput.update(time=1.0, batches=1, samples=1)
        with pytest.raises(ValueError, match="Expected"):
            throughput.update(**update)


def test_the_flops_that_are_counted_are_the_same() -> None:
    with torch.device("meta"):
        model, x = torch.nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    for loss in (None, torch.sum):
        counts = {module.measure_flops(model, lambda: model(x), loss) for module in (theirs, ours)}
        assert len(counts) == 1


# What a device of each of their chips is called.
NAMES = {
    "rtx 4090": "NVIDIA GeForce RTX 4090",
    "rtx 4080": "NVIDIA GeForce RTX 4080",
    "rtx 4080 super": "NVIDIA GeForce RTX 4080 SUPER",
    "h100 sxm": "NVIDIA H100 80GB HBM3",
    "h100 pcie": "NVIDIA H100 PCIe",
    "l4": "NVIDIA L4",
    "l40": "NVIDIA L40",
    "a100": "NVIDIA A100-PCIE-40GB",
    "a6000": "NVIDIA RTX A6000",
    "a40": "NVIDIA A40",
    "a10g": "NVIDIA A10G",
    "rtx 3090 ti": "NVIDIA GeForce RTX 3090 Ti",
    "rtx 3090": "NVIDIA GeForce RTX 3090",
    "rtx 3080 ti": "NVIDIA GeForce RTX 3080 Ti",
    "rtx 3080": "NVIDIA GeForce RTX 3080",
    "rtx 3070": "NVIDIA GeForce RTX 3070",
    "t4": "Tesla T4",
    "quadro rtx 5000": "Quadro RTX 5000 with Max-Q Design",
    "rtx 2080 super": "NVIDIA GeForce RTX 2080 SUPER",
    "rtx 2080 ti": "NVIDIA GeForce RTX 2080 Ti",
    "rtx 2080": "NVIDIA GeForce RTX 2080",
    "rtx 2070 super": "NVIDIA GeForce RTX 2070 SUPER",
    "titan rtx": "NVIDIA TITAN RTX",
    "v100 sxm": "Tesla V100-SXM2-16GB",
    "v100 pcie": "Tesla V100-PCIE-16GB",
    "v100s pcie": "Tesla V100S-PCIE-32GB",
}


def test_the_same_chips_are_known() -> None:
    # Theirs count sparse operations here, or those of a pair of chips.
    other_figures = {"h200 sxm1", "h200 nvl1", "h100 nvl"}
    assert theirs._CUDA_FLOPS.keys() - other_figures == NAMES.keys()
    assert len(_CHIPS) == len(theirs._CUDA_FLOPS)


@pytest.mark.parametrize("chip", NAMES)
@pytest.mark.parametrize("dtype", _COLUMNS)
def test_the_flops_of_chips_are_the_same(chip: str, dtype: Any) -> None:
    expected = theirs._CUDA_FLOPS[chip].get(dtype)
    if expected is None:
        with pytest.warns(UserWarning, match="not known"):
            assert _flops_by_name(NAMES[chip], dtype) is None
    else:
        assert _flops_by_name(NAMES[chip], dtype) == int(expected)
