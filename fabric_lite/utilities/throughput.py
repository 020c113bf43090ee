"""How many batches, samples, items and floating-point operations are processed per second."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from typing_extensions import Self

from fabric_lite.utilities._flops import get_available_flops

__all__ = ["Throughput", "ThroughputMonitor", "get_available_flops", "measure_flops"]

_THROUGHPUT_METRICS: TypeAlias = dict[str, int | float]

_Number = TypeVar("_Number", bound=float)


class _MonotonicWindow(deque[_Number]):
    """The last few of a series of increasing numbers."""

    def append(self, x: _Number) -> None:
        self.check(x)
        super().append(x)

    def check(self, x: _Number) -> None:
        """Refuse a number that is not greater than the last one."""
        if self and self[-1] >= x:
            raise ValueError(f"Expected a value greater than the last one, {self[-1]}, got {x}. Pass running totals.")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise NotImplementedError("The values cannot be changed afterwards. Write `append(value)`.")


class Throughput:
    """Computes rates as rolling averages over the last updates.

    `compute` returns:

    - ``time``, ``batches``, ``samples``, and if lengths are given, ``lengths``: the totals of the last update;
    - as soon as the window is full, ``device/batches_per_sec``, ``device/samples_per_sec``, ``device/items_per_sec``
      (of lengths) and ``device/flops_per_sec``: what this process does per second;
    - with several processes, the same without ``device/``: times their number, as all are taken to be equally fast;
    - ``device/mfu``: the share of `available_flops` that is made use of.

    Padding counts as items and as operations.

    Args:
        available_flops: How many operations per second a device could do, see `get_available_flops`.
        world_size: The number of devices.
        window_size: The number of updates that the averages are taken over.
        separator: What follows ``device`` in the names.

    Example:
        >>> throughput = Throughput(window_size=2)
        >>> throughput.update(time=1.0, batches=1, samples=8)
        >>> throughput.update(time=3.0, batches=2, samples=16)
        >>> throughput.compute()["device/samples_per_sec"]
        4.0

    Raises:
        ValueError: If `world_size` is less than 1 or `window_size` less than 2.
    """

    def __init__(
        self, available_flops: float | None = None, world_size: int = 1, window_size: int = 100, separator: str = "/"
    ) -> None:
        if world_size < 1:
            raise ValueError(f"`world_size` must be at least 1, got {world_size}.")
        if window_size < 2:
            raise ValueError(f"`window_size` must be at least 2, as a rate needs two moments, got {window_size}.")
        self.available_flops = available_flops
        self.separator = separator
        self.world_size = world_size
        self._time: _MonotonicWindow[float] = _MonotonicWindow(maxlen=window_size)
        self._batches: _MonotonicWindow[int] = _MonotonicWindow(maxlen=window_size)
        self._samples: _MonotonicWindow[int] = _MonotonicWindow(maxlen=window_size)
        self._lengths: _MonotonicWindow[int] = _MonotonicWindow(maxlen=window_size)
        self._flops: deque[int] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Note how far this process has come. An update that is refused changes nothing.

        Args:
            time: The seconds since the beginning. On a GPU, synchronize before you take it.
            batches: The batches since the beginning.
            samples: The samples since the beginning.
            lengths: The items (for example tokens) in these samples.
            flops: The operations since the last update, see `measure_flops`.

        Raises:
            ValueError: If a total does not increase, or samples are less than batches, or lengths less than samples.
            RuntimeError: If the lengths are not given each time.
        """
        if samples < batches:
            raise ValueError(f"Expected at least as many samples as batches, got samples={samples}, batches={batches}.")
        self._time.check(time)
        self._batches.check(batches)
        self._samples.check(samples)
        if lengths is not None:
            if lengths < samples:
                raise ValueError(f"Expected lengths at least as many as samples, got {lengths=}, {samples=}.")
            if len(self._lengths) != len(self._samples):
                raise RuntimeError(
                    f"`lengths` was given in {len(self._lengths)} of {len(self._samples)} updates. Give it in each, or"
                    " in none; `reset()` begins anew."
                )
            self._lengths.append(lengths)
        self._time.append(time)
        self._batches.append(batches)
        self._samples.append(samples)
        if flops is not None:
            self._flops.append(flops * self.world_size)

    def compute(self) -> _THROUGHPUT_METRICS:
        """Compute the metrics.

        Returns:
            The metrics that are listed at the class, by name.

        Raises:
            RuntimeError: If there was no update.
        """
        if not self._time:
            raise RuntimeError(
                "There is nothing to compute yet. Write `throughput.update(time=…, batches=…, samples=…)`."
            )
        metrics: _THROUGHPUT_METRICS = {
            "time": self._time[-1],
            "batches": self._batches[-1],
            "samples": self._samples[-1],
        }
        if self._lengths:
            metrics["lengths"] = self._lengths[-1]
        elapsed = self._time[-1] - self._time[0]  # not zero in a full window, as the time increases
        counters = {"batches": self._batches, "samples": self._samples, "items": self._lengths}
        for name, window in counters.items():
            if len(window) == window.maxlen:
                self._add_rate(metrics, f"{name}_per_sec", (window[-1] - window[0]) / elapsed)
        if len(self._flops) == self._flops.maxlen:
            # Those of the first update were done before the window began.
            flops_per_sec = (sum(self._flops) - self._flops[0]) / elapsed
            device_flops_per_sec = flops_per_sec / self.world_size
            if self.world_size > 1:
                metrics["flops_per_sec"] = flops_per_sec
            metrics[f"device{self.separator}flops_per_sec"] = device_flops_per_sec
            if self.available_flops:
                metrics[f"device{self.separator}mfu"] = device_flops_per_sec / self.available_flops
        return metrics

    def _add_rate(self, metrics: _THROUGHPUT_METRICS, name: str, rate: float) -> None:
        metrics[f"device{self.separator}{name}"] = rate
        if self.world_size > 1:
            metrics[name] = rate * self.world_size

    def reset(self) -> None:
        """Forget all updates."""
        for window in (self._time, self._batches, self._samples, self._lengths, self._flops):
            window.clear()


class _Precision(Protocol):
    @property
    def compute_dtype(self) -> torch.dtype: ...


class _Strategy(Protocol):
    @property
    def precision(self) -> _Precision: ...


class _Fabric(Protocol):
    """What `ThroughputMonitor` needs of a `Fabric`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def world_size(self) -> int: ...

    @property
    def is_global_zero(self) -> bool: ...

    @property
    def strategy(self) -> _Strategy: ...

    def _validate_launched(self) -> None: ...

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None: ...


class ThroughputMonitor(Throughput):
    """A `Throughput` that knows device and precision from `Fabric`, logs there, and on ranks other than 0 does nothing.

    Args:
        fabric: The `Fabric`, launched.
        **kwargs: For `Throughput`: `window_size` and `separator`.

    Attributes:
        step: The number of the last step that was logged. It is counted, unless it is given.
    """

    def __init__(self, fabric: _Fabric, **kwargs: Any) -> None:
        fabric._validate_launched()  # before that, the number of processes may be another one
        available_flops = get_available_flops(fabric.device, fabric.strategy.precision.compute_dtype)
        super().__init__(available_flops=available_flops, world_size=fabric.world_size, **kwargs)
        self._fabric = fabric
        self.step = -1

    def update(self, **kwargs: Any) -> None:
        """See `Throughput.update`."""
        if self._fabric.is_global_zero:
            super().update(**kwargs)

    def compute(self) -> _THROUGHPUT_METRICS:
        """See `Throughput.compute`; on other ranks than 0 the result is empty."""
        return super().compute() if self._fabric.is_global_zero else {}

    def compute_and_log(self, step: int | None = None) -> _THROUGHPUT_METRICS:
        """Compute the metrics and give them to `Fabric.log_dict`.

        Args:
            step: The step to log them for, by default the one after the last.

        Returns:
            The metrics; on other ranks than 0 nothing.
        """
        if not self._fabric.is_global_zero:
            return {}
        self.step = self.step + 1 if step is None else step
        metrics = self.compute()
        self._fabric.log_dict(metrics=metrics, step=self.step)
        return metrics

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the measurements; the copy logs to the same `Fabric`."""
        memo[id(self._fabric)] = self._fabric
        result = copy.copy(self)
        vars(result).update(copy.deepcopy(vars(self), memo))
        return result


def measure_flops(
    model: torch.nn.Module,
    forward_fn: Callable[[], torch.Tensor],
    loss_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> int:
    """Count the floating-point operations of a forward pass, or of a forward and a backward pass.

    Args:
        model: The model. On the meta device, nothing is really computed.
        forward_fn: A function that runs the model, and returns its output.
        loss_fn: A function that computes a loss of the output. If it is given, the backward pass is counted, too.

    Returns:
        The number of operations.

    Example:
        >>> with torch.device("meta"):
        ...     model, x = torch.nn.Linear(32, 2), torch.randn(4, 32)
        >>> measure_flops(model, lambda: model(x))
        512
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops()
