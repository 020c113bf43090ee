"""General utilities."""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

from fabric_lite.utilities.lazy import names_on_demand as _names_on_demand

if _TYPE_CHECKING:
    from fabric_lite.utilities.apply_func import move_data_to_device
    from fabric_lite.utilities.data import AttributeDict, suggested_max_num_workers
    from fabric_lite.utilities.distributed import is_shared_filesystem
    from fabric_lite.utilities.enums import LightningEnum
    from fabric_lite.utilities.rank_zero import rank_zero_deprecation, rank_zero_info, rank_zero_only, rank_zero_warn
    from fabric_lite.utilities.throughput import Throughput, ThroughputMonitor, measure_flops
    from fabric_lite.utilities.warnings import disable_possible_user_warnings

__all__ = [
    "AttributeDict",
    "LightningEnum",
    "Throughput",
    "ThroughputMonitor",
    "disable_possible_user_warnings",
    "is_shared_filesystem",
    "measure_flops",
    "move_data_to_device",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "suggested_max_num_workers",
]

__getattr__ = _names_on_demand(
    __name__,
    {
        "AttributeDict": "data",
        "LightningEnum": "enums",
        "Throughput": "throughput",
        "ThroughputMonitor": "throughput",
        "disable_possible_user_warnings": "warnings",
        "is_shared_filesystem": "distributed",
        "measure_flops": "throughput",
        "move_data_to_device": "apply_func",
        "rank_zero_deprecation": "rank_zero",
        "rank_zero_info": "rank_zero",
        "rank_zero_only": "rank_zero",
        "rank_zero_warn": "rank_zero",
        "suggested_max_num_workers": "data",
    },
)
