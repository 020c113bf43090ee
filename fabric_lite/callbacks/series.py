"""`Series`: the values of one metric over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

# Values that nobody reads are fetched from their device in packs of this size, so that memory does not fill with them.
_PACK = 1024


class Series(Sequence[tuple[int, float]]):
    """The values of a metric with their steps: a sequence of pairs ``(step, value)``, oldest first.

    Values are fetched from their device when they are read, all at once.
    """

    def __init__(self) -> None:
        self._points = _Points()

    @property
    def last(self) -> float:
        """The latest value.

        Raises:
            IndexError: If there is none yet.
        """
        if not self._points.steps:
            raise IndexError("This metric has no value yet; `if series: ...` tells.")
        return self._points.fetched()[-1]

    @property
    def steps(self) -> list[int]:
        """The steps, or epochs, that the values belong to; the first is 1."""
        return list(self._points.steps)

    @property
    def values(self) -> list[float]:
        """The values."""
        return list(self._points.fetched())

    def latest(self, count: int) -> list[float]:
        """The latest values, oldest first.

        Args:
            count: How many.
        """
        return self._points.fetched()[len(self) - count :]

    def append(self, step: int, value: float | Tensor) -> None:
        """Add a value.

        Args:
            step: The step that it belongs to.
            value: A number, or a tensor of one element, which may be read later on.
        """
        self._points.append(step, value)

    def state_dict(self) -> dict[str, Any]:
        """Steps and values as lists of numbers."""
        return {"steps": self.steps, "values": self.values}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Series:
        """A series from what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        series = cls()
        for step, value in zip(state["steps"], state["values"], strict=True):
            series.append(step, value)
        return series

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, float]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, float] | list[tuple[int, float]]:
        values = self._points.fetched()
        if isinstance(index, slice):
            return list(zip(self._points.steps[index], values[index], strict=True))
        return self._points.steps[index], values[index]

    def __len__(self) -> int:
        return len(self._points.steps)

    def __repr__(self) -> str:
        return f"Series({', '.join(f'{step}: {value:.4g}' for step, value in self[-5:])})"


class _Points:
    """What is in a series. Not a container itself: a read-only view of the series can make it fetch."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        # Those that were fetched and those that wait: one attribute, so that readers in two threads agree.
        self._values: tuple[list[float], list[Tensor]] = ([], [])

    def append(self, step: int, value: float | Tensor) -> None:
        fetched, waiting = self._values
        if isinstance(value, Tensor) and value.device.type != "cpu":
            waiting.append(value.detach().reshape(()).clone())  # its owner may go on to change it
        else:
            fetched = self.fetched()
            fetched.append(float(value.detach()) if isinstance(value, Tensor) else float(value))
        self.steps.append(step)
        if len(waiting) >= _PACK:
            self.fetched()

    def fetched(self) -> list[float]:
        """All values as numbers."""
        fetched, waiting = self._values
        if waiting:
            fetched = fetched + _numbers(waiting)
            self._values = (fetched, [])
        return fetched


def _numbers(tensors: list[Tensor]) -> list[float]:
    """The values of scalars, with one transfer if they are of one kind."""
    if len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1:
        return [float(value) for value in torch.stack(tensors).tolist()]
    return [float(tensor) for tensor in tensors]
