"""Draws a callback graph: rows from the top down, and on each arrow its reason.

The text of an arrow is laid out like a node of its own, in a row between those of the callbacks, so that no text covers
another one and no arrow runs through a box.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_lite.cli._errors import CommandError
from fabric_lite.permissions import CallbackGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches. A character has the mean width of the font in its size.
_CHARACTER, _LINE, _MARGIN, _GAP = 0.075, 0.15, 0.3, 0.35
_BOX = 0.36
_LETTERS = 26  # a line of a reason, unless a word is longer
_SWEEPS = 4


@dataclass(eq=False)
class _Item:
    """A callback, the text of an arrow, or a bend in an arrow that goes on to a row below."""

    row: int
    lines: list[str] = field(default_factory=list)
    index: int | None = None  # of a callback
    above: list[_Item] = field(default_factory=list)
    below: list[_Item] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def half(self) -> float:
        """Half of its height."""
        return _BOX / 2 if self.index is not None else len(self.lines) * _LINE / 2


def write_svg(graph: CallbackGraph, file: str) -> None:
    """Draw a graph into a file.

    Args:
        graph: The graph.
        file: Where to.

    Raises:
        CommandError: If matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise CommandError(
            '--svg needs the package matplotlib: pip install "torch-fabric-lite[plot]".'
            " --mermaid and --dot need nothing."
        ) from error
    # Text stays text, and the same graph gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fabric-lite"}):
        drawing = draw(graph)
        try:
            drawing.savefig(Path(file), format="svg", metadata={"Date": None})
        except OSError as error:
            raise CommandError(f"cannot write {file!r}: {error.strerror or error}.") from error


def draw(graph: CallbackGraph) -> Figure:
    """The drawing of a graph: callbacks with their place in the order, those that are not guarded dashed."""
    from matplotlib.figure import Figure

    rows = _rows(graph)
    _untangle(rows)
    width, height = _place(rows)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for row in rows:
        for item in row:
            if item.index is None:
                if item.lines:
                    axes.text(item.x, item.y, "\n".join(item.lines), ha="center", va="center", size=8, zorder=3)
            else:
                _draw_box(axes, item, guarded=item.index in graph.trees)
                for first in item.below:
                    _draw_arrow(axes, item, first)
    return figure


def _rows(graph: CallbackGraph) -> list[list[_Item]]:
    """Callbacks in the even rows, each below those that it comes after; what stands on the arrows in the others."""
    depth = dict.fromkeys(graph.indices, 0)
    follows: dict[int, list[int]] = {}
    for before, after in graph.pairs:
        follows.setdefault(before, []).append(after)
    for index in graph.indices:
        for after in follows.get(index, ()):
            depth[after] = max(depth[after], depth[index] + 2)
    single = [index for index in graph.indices if not any(index in pair for pair in graph.pairs)]
    _depth_of_singles(depth, single)
    rows: list[list[_Item]] = [[] for _ in range(max(depth.values(), default=0) + 1)]

    def add(row: int, lines: list[str], index: int | None = None, above: _Item | None = None) -> _Item:
        item = _Item(row, lines, index)
        rows[row].append(item)
        if above is not None:
            above.below.append(item)
            item.above.append(above)
        return item

    boxes = {
        index: add(depth[index], [f"{number}. {graph.labels[index]}"], index)
        for number, index in enumerate(graph.indices, start=1)
    }
    for before, after in graph.pairs:
        text = textwrap.wrap(graph.reason(before, after), _LETTERS, break_long_words=False, break_on_hyphens=False)
        last = add(depth[before] + 1, text, above=boxes[before])
        for row in range(depth[before] + 2, depth[after]):
            last = add(row, [], above=last)
        last.below.append(boxes[after])
        boxes[after].above.append(last)
    return rows


def _depth_of_singles(depth: dict[int, int], single: list[int]) -> None:
    """Give callbacks that depend on no other rows of their own, at the bottom, no wider than need be."""
    connected = [row for index, row in depth.items() if index not in single]
    widest = max(4, *(connected.count(row) for row in connected)) if connected else 4
    first = max(connected) + 2 if connected else 0
    for place, index in enumerate(single):
        depth[index] = first + 2 * (place // widest)


def _untangle(rows: list[list[_Item]]) -> None:
    """Put each item near those that it is connected with, so that few arrows cross."""
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            for place, item in enumerate(row):
                item.x = place - (len(row) - 1) / 2

            def mean(item: _Item) -> float:
                others = item.above if down else item.below  # noqa: B023 - called within the loop
                return sum(other.x for other in others) / len(others) if others else item.x

            row.sort(key=mean)
            for place, item in enumerate(row):
                item.x = place - (len(row) - 1) / 2


def _place(rows: list[list[_Item]]) -> tuple[float, float]:
    """Turn places in rows into inches; returns the size of the drawing."""
    longest = max((len(line) for row in rows for item in row for line in item.lines), default=20)
    slot = longest * _CHARACTER + _GAP
    width = max((len(row) for row in rows), default=1) * slot + 2 * _MARGIN
    y = _MARGIN
    for row in rows:
        half = max((item.half for item in row), default=0.0)
        for item in row:
            item.x, item.y = width / 2 + item.x * slot, y + half
        y += 2 * half + _GAP
    return width, y - _GAP + _MARGIN


def _draw_box(axes: Axes, item: _Item, guarded: bool) -> None:
    style: dict[str, Any] = {"facecolor": "#e8f0fe", "edgecolor": "#1a56b0"}
    if not guarded:
        style = {"facecolor": "white", "edgecolor": "#555555", "linestyle": "--"}
    box = {"boxstyle": "round,pad=0.5", **style}
    axes.text(item.x, item.y, item.lines[0], ha="center", va="center", size=9, zorder=3, bbox=box)


def _draw_arrow(axes: Axes, box: _Item, first: _Item) -> None:
    """The line from a box to the text, and from there, by way of the bends, to the box that it points to."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    def line(start: _Item, stops: list[_Item], style: str) -> None:
        at = (start.x, start.y + start.half)
        points, codes = [at], [Curve.MOVETO]
        for stop in stops:
            end = (stop.x, stop.y - stop.half)
            middle = (at[1] + end[1]) / 2
            points += [(at[0], middle), (end[0], middle), end]
            codes += [Curve.CURVE4] * 3
            at = end
        axes.add_patch(
            FancyArrowPatch(
                path=Curve(points, codes), arrowstyle=style, mutation_scale=10, color="#777777", linewidth=1, zorder=1
            )
        )

    line(box, [first], "-")
    stops = [first.below[0]]
    while stops[-1].index is None:
        stops.append(stops[-1].below[0])
    line(first, stops, "-|>")
