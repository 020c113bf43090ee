"""Curves as SVG, with what the page's script needs to show a value.

A drawing is stretched to the width that there is; so the text beside it is HTML, which is not stretched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

Points = Sequence[tuple[float, float]]

PHASES = ("train", "validation", "test", "value")
_MOST_POINTS = 100_000  # of all lines together: a page of a few MB
_MOST_PLAIN = 400  # of a line: more of them hide its course
_MOST_DOTS = 60  # of a line on which each point shows
_HUGE = 1e300  # differences of larger values overflow


def charts(metrics: Mapping[str, Mapping[str, Points]]) -> tuple[str, list[dict[str, Any]]]:
    """All charts.

    Args:
        metrics: For each metric, the points of each phase.

    Returns:
        The HTML, and for each chart what is in it: the ends of its axes, and its lines.
    """
    number = sum(map(len, metrics.values())) or 1
    most = min(2000, max(100, _MOST_POINTS // number))
    # What several phases have, one wants to compare; and the loss before all.
    names = sorted(metrics, key=lambda name: (-len(metrics[name]), "loss" not in name.lower(), name.lower()))
    drawn = [_chart(name, metrics[name], most) for name in names]
    return "".join(html for html, _ in drawn), [data for _, data in drawn]


def _chart(name: str, lines: Mapping[str, Points], most: int) -> tuple[str, dict[str, Any]]:
    lines = {phase: lines[phase] for phase in PHASES if phase in lines}
    kept = {phase: thinned(points, most) for phase, points in lines.items()}
    steps = [step for points in kept.values() for step, _ in points]
    values = [_bounded(value) for points in kept.values() for _, value in points if math.isfinite(value)]
    left, right = min(steps), max(steps)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    low, high = low - margin, high + margin
    if left == right:
        apart = max(1.0, abs(left) / 1e9)
        left, right = left - apart, right + apart
    xs, ys = ticks(left, right, whole=all(step == int(step) for step in steps)), ticks(low, high)
    ys = ys if values else []

    def at(step: float, value: float) -> str:
        x, y = (step - left) / (right - left), (high - _bounded(value)) / (high - low)
        return f"{1000 * x:.1f},{1000 * y:.1f}"

    grid = "".join(f'<path class="grid" d="M0,{1000 * (1 - place):.1f}h1000"/>' for place, _ in ys)
    drawn = "".join(_lines(phase, points, lines[phase], at) for phase, points in kept.items())
    gutter = max((len(text) for _, text in ys), default=1)
    title = escape(name)
    phases = " and ".join(kept)
    html = (
        f'<figure class="chart"><figcaption><h3>{title}</h3>{_legend(kept)}</figcaption>'
        f'<div class="plot" style="--gutter:{gutter}ch" tabindex="0" role="application"'
        f' aria-label="{title}: {phases}, by step. The arrow keys go through the values.">'
        + "".join(f'<span class="y" style="--at:{1 - place:.4f}">{text}</span>' for place, text in ys)
        + f'<div class="area"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{grid}{drawn}'
        '</svg><div class="cursor" hidden></div><div class="tip" role="status" hidden></div></div>'
        + "".join(f'<span class="x" style="--at:{place:.4f}">{text}</span>' for place, text in xs)
        + f"</div>{_values(lines)}{''.join(_notes(lines, kept))}</figure>"
    )
    data = {"x": [left, right], "y": [low, high], "lines": [_data(*line) for line in kept.items()]}
    return html, data


def _lines(phase: str, kept: Points, points: Points, at: Any) -> str:
    """A line; of very many points their course before them, which is seen faintly."""
    if len(kept) <= _MOST_PLAIN:
        return _line(phase, kept, at)
    return _line(f"{phase} faint", kept, at) + _line(f"{phase} course", list(_means(points)), at)


def _means(points: Points) -> Iterator[tuple[float, float]]:
    """The mean of each stretch."""
    size = math.ceil(2 * len(points) / _MOST_PLAIN)
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        numbers = [_bounded(value) / size for value in values if math.isfinite(value)]
        yield sum(steps) / len(steps), sum(numbers) * size / len(numbers) if numbers else math.nan


def _line(phase: str, points: Points, at: Any) -> str:
    """Broken where a value is no number, and where the step goes back."""
    path, dots, last, alone = "", "", None, False
    for step, value in points:
        if not math.isfinite(value):
            last = None
            continue
        place = at(step, value)
        goes_on = last is not None and step >= last
        path += f"{'' if not alone or goes_on else 'h0'}{'L' if goes_on else 'M'}{place}"
        dots += f"M{place}h0"
        last, alone = step, not goes_on
    shown = f'<path class="line {phase}" d="{path}{"h0" if alone else ""}"/>'
    return shown + (f'<path class="dots {phase}" d="{dots}"/>' if len(points) <= _MOST_DOTS else "")


def thinned(points: Points, most: int) -> Points:
    """No more points than about a number: of each stretch the smallest and the largest value, and one that is none.

    Args:
        points: The points.
        most: The number.
    """
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    chosen = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        numbers = [i for i in stretch if math.isfinite(points[i][1])]
        if numbers:
            chosen |= {min(numbers, key=lambda i: points[i][1]), max(numbers, key=lambda i: points[i][1])}
        if len(numbers) < len(stretch):
            chosen.add(next(i for i in stretch if not math.isfinite(points[i][1])))
    return [points[i] for i in sorted(chosen)]


def ticks(low: float, high: float, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers between two others, as the share of the way from one to the other, and as text.

    Args:
        low: The one.
        high: The other.
        whole: Whether only whole numbers will do.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5.01 >= high - low)
    apart = max(apart, 1.0) if whole else apart
    numbers = [apart * n for n in range(math.ceil(low / apart), math.floor(high / apart) + 1)]
    digits = max(0, -math.floor(math.log10(apart) + 1e-9))
    plain = digits <= 6 and max(abs(low), abs(high)) < 1e7
    return [((n - low) / (high - low), f"{n:,.{digits}f}" if plain else f"{n:.4g}") for n in numbers]


def shown(value: float) -> str:
    """A value in a table."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e7 else f"{value:.4g}"


def _bounded(value: float) -> float:
    return max(-_HUGE, min(_HUGE, value))


def _legend(lines: dict[str, Points]) -> str:
    return "".join(f'<span class="key {phase}">{phase}</span>' for phase in lines)


def _values(lines: dict[str, Points]) -> str:
    """The table under a chart."""
    rows = ""
    for phase, points in lines.items():
        numbers = [value for _, value in points if math.isfinite(value)]
        cells = (points[-1][1], *((min(numbers), max(numbers)) if numbers else (math.nan, math.nan)))
        texts = [shown(value) if math.isfinite(value) else str(value) for value in cells]
        rows += f'<tr><th scope="row">{phase}</th>' + "".join(f"<td>{text}</td>" for text in texts)
        rows += f"<td>{len(points):,}</td></tr>"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("last", "smallest", "largest", "points"))
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _notes(lines: dict[str, Points], kept: dict[str, Points]) -> Iterator[str]:
    for phase, points in lines.items():
        odd = [(shown(step), str(value)) for step, value in points if not math.isfinite(value)]
        if odd:
            named = ", ".join(f"{value} at step {step}" for step, value in odd[:3])
            more = f" and {len(odd) - 3:,} more" if len(odd) > 3 else ""
            yield f'<p class="note warn">{phase}: {named}{more}.</p>'
        back = sum(later[0] < earlier[0] for earlier, later in pairwise(points))
        if back:
            times = "once" if back == 1 else f"{back:,} times"
            yield f'<p class="note">{phase}: the step goes back {times}, as when a run is resumed.</p>'
        if len(kept[phase]) < len(points):
            few = f"{len(kept[phase]):,} of {len(points):,} points are drawn, with the extremes of each stretch; the"
            yield f'<p class="note">{phase}: {few} strong line is the mean of all.</p>'
        elif len(points) > _MOST_PLAIN:
            yield f'<p class="note">{phase}: the strong line is the mean over stretches.</p>'


def _data(phase: str, points: Points) -> dict[str, Any]:
    """A line for the script; JSON has no NaN."""
    values = [float(f"{value:.7g}") if math.isfinite(value) else str(value) for _, value in points]
    return {"phase": phase, "x": [int(step) if step == int(step) else step for step, _ in points], "y": values}
