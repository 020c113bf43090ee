"""How many operations per second a chip could do at best."""

from __future__ import annotations

import re

import torch

from fabric_lite.utilities.rank_zero import rank_zero_warn

_COLUMNS = (torch.float64, torch.float32, "tfloat32", torch.bfloat16, torch.float16, torch.int8, "int4")

# Tera-operations per second and single chip, without sparsity, from NVIDIA's data sheets and architecture white papers.
# The key is a regular expression for the name of the device; the columns are as above, None where there is no figure.
_CHIPS: dict[str, tuple[float | None, ...]] = {
    # Hopper
    "h200 nvl": (30, 60, 417.5, 835.5, 835.5, 1670.5, None),
    "h200": (34, 67, 494.7, 989.4, 989.4, 1978.9, None),
    "h100 nvl": (30, 60, 417.5, 835.5, 835.5, 1670.5, None),
    "h100.*hbm3": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9, None),
    "h100.*(pcie|hbm2e)": (25.6, 51.2, 378, 756, 756, 1513, None),
    # Ada
    "rtx 4090": (None, 82.6, 82.6, 82.6, 82.6, 660.6, 1321.2),
    "rtx 4080 super": (None, 52.2, 52.2, 52.2, 52.2, 417.6, 835.2),
    "rtx 4080": (None, 48.7, 48.7, 48.7, 48.7, 389.9, 779.8),
    "l4": (None, 30.3, 60, 121, 121, 242, 484),
    "l40": (None, 90.5, 90.5, 181, 181, 362, 724),
    # Ampere
    "a100": (9.7, 19.5, 156, 312, 312, 624, None),
    "a6000": (None, 38.7, 77.4, 38.7, 38.7, 309.7, 619.3),
    "a40": (None, 37.4, 74.8, 37.4, 37.4, 299.3, 598.7),
    "a10g": (None, 31.2, 62.5, 125, 125, 250, 500),
    "rtx 3090 ti": (None, 40, 40, 40, 40, 320, 640),
    "rtx 3090": (None, 35.6, 35.6, 35.6, 35.6, 284, 568),
    "rtx 3080 ti": (None, 34.1, 34.1, 34.1, 34.1, 272.8, 546.6),
    "rtx 3080": (None, 29.8, 29.8, 29.8, 29.8, 238, 476),
    "rtx 3070": (None, 20.3, 20.3, 20.3, 20.3, 162.6, 325.2),
    # Turing
    "t4": (None, 8.1, None, None, 65, 130, 260),
    "quadro rtx 5000": (None, 11.2, None, None, 89.2, None, None),
    "rtx 2080 super": (None, 11.2, None, None, 22.3, 178.4, 356.8),
    "rtx 2080 ti": (None, 14.2, None, None, 28.5, 227.7, 455.4),
    "rtx 2080": (None, 10.6, None, None, 21.2, 169.6, 339.1),
    "rtx 2070 super": (None, 9.1, None, None, 18.1, 145, 290),
    "titan rtx": (None, 16.3, None, None, 32.6, 261, 522),
    # Volta
    r"v100-sxm\d": (7.8, 15.7, None, None, 125, None, None),
    "v100-pcie": (7, 14, None, None, 112, None, None),
    "v100s-pcie": (8.2, 16.4, None, None, 130, None, None),
}


def get_available_flops(device: torch.device, dtype: torch.dtype | str) -> int | None:
    """The number of operations per second that a device could do at best, when it only multiplies large matrices.

    Args:
        device: The device.
        dtype: What it computes in; also "tfloat32" and "int4". With float32, TensorFloat-32 counts if
            `torch.set_float32_matmul_precision` allows it.

    Returns:
        The number, or None (with a warning, if it is an NVIDIA chip) if it is not known.
    """
    if device.type != "cuda":
        return None
    return _flops_by_name(torch.cuda.get_device_name(device), dtype)


def _flops_by_name(device_name: str, dtype: torch.dtype | str) -> int | None:
    # A Ti or Super is another chip: without a line of its own, it is unknown.
    row = next((r for chip, r in _CHIPS.items() if re.search(rf"\b{chip}\b(?! ti| super)", device_name.lower())), None)
    if row is None:
        rank_zero_warn(
            f"It is not known how many FLOPS {device_name!r} can do, so there will be no MFU."
            " Look it up and write `Throughput(available_flops=…)` to have it."
        )
        return None
    figures = dict(zip(_COLUMNS, row, strict=True))
    if dtype == torch.float32 and figures["tfloat32"] and torch.get_float32_matmul_precision() != "highest":
        dtype = "tfloat32"
    tera = figures.get(dtype)
    if tera is None:
        rank_zero_warn(f"It is not known how many FLOPS {device_name!r} can do in {dtype}, so there will be no MFU.")
        return None
    return round(tera * 10**12)
