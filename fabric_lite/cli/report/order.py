"""The callback graph as a drawing: callbacks from the top down as they run, arrows at their right."""

from __future__ import annotations

from html import escape
from typing import Any

# Pixels. A callback has a slot for each arrow that ends at it, and one for those that begin.
_SLOT, _PAD, _APART, _LETTER = 22, 12, 10, 7.4
_BADGE, _LANE = 52, 13
_LONGEST = 22


def drawing(graph: dict[str, Any]) -> str:
    """The drawing, and the reasons.

    Arrows that end at one callback for one reason share a line, and the number under which it is told.

    Args:
        graph: What `LogRun` wrote: ``callbacks`` in their order, and ``edges`` between places in it.
    """
    names = [str(callback["name"]) for callback in graph["callbacks"]]
    groups: dict[tuple[int, str], list[int]] = {}
    for edge in sorted(graph["edges"], key=lambda edge: (edge["after"], edge["before"])):
        groups.setdefault((edge["after"], edge["reason"]), []).append(edge["before"])
    if not names:
        return '<p class="note">There were no callbacks.</p>'
    width = round(min(_LONGEST, max(map(len, names)) + 4) * _LETTER + 16)
    arriving: dict[int, list[int]] = {}
    for number, (after, _) in enumerate(groups, start=1):
        arriving.setdefault(after, []).append(number)
    sources = {before for befores in groups.values() for before in befores}
    y, boxes, starts, ends = 1, "", {}, {}
    for place, (name, callback) in enumerate(zip(names, graph["callbacks"], strict=True)):
        numbers = arriving.get(place, [])
        slots = len(numbers) + (place in sources)
        height = _SLOT * max(1, slots) + _PAD
        for slot, number in enumerate(numbers):
            ends[number] = y + _PAD / 2 + _SLOT * (slot + 0.5)
        starts[place] = y + height - _PAD / 2 - _SLOT / 2
        text = escape(name if len(name) + 4 <= _LONGEST else name[: _LONGEST - 5] + "…")
        kind = "box" if callback.get("guarded", True) else "box plain"
        boxes += (
            f'<g class="{kind}" data-node="{place}"><title>{escape(name)}</title>'
            f'<rect x="1" y="{y}" width="{width}" height="{height}" rx="6"/>'
            f'<text x="12" y="{y + height / 2 + 4.5}"><tspan class="rank">{place + 1}</tspan>'
            f'<tspan x="38">{text}</tspan></text></g>'
        )
        y += height + _APART
    lanes = _lanes({n: (min(starts[b] for b in befores), ends[n]) for n, befores in enumerate(groups.values(), 1)})
    arrows = ""
    for number, ((after, reason), befores) in enumerate(groups.items(), start=1):
        x, end = width + _BADGE + _LANE * lanes[number], ends[number]
        paths = "".join(
            f'<path class="edge" data-from="{before}" d="M{width + 1},{starts[before]}H{x - 6}q6,0 6,6V{end - 6}'
            f'q0,6 -6,6H{width + 8}"/>'
            for before in befores
        )
        tip = f'<path class="head" d="M{width + 2},{end}l9,-4.5v9z"/>'
        badge = f'<circle cx="{width + 28}" cy="{end}" r="10"/><text x="{width + 28}" y="{end + 4.2}">{number}</text>'
        title = escape(_reason(names, befores, after, reason))
        arrows += (
            f'<g class="arrow" data-edge="{number}" data-to="{after}"><title>{title}</title>{paths}{tip}{badge}</g>'
        )
    total = width + _BADGE + _LANE * max(lanes.values(), default=0) + 4
    svg = (
        f'<div class="scroll"><svg width="{total}" height="{y}" viewBox="0 0 {total} {y}" role="img"'
        ' aria-label="The callbacks in the order in which they run, with arrows for the reasons">'
        f"{arrows}{boxes}</svg></div>"
    )
    return f'<div class="graph">{svg}{_reasons(names, groups)}</div>'


def _lanes(spans: dict[int, tuple[float, float]]) -> dict[int, int]:
    """For each arrow how far out it runs: short ones within long ones, none on another one."""
    taken: list[list[tuple[float, float]]] = []
    lanes = {}
    for number, (top, bottom) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        free = (i for i, lane in enumerate(taken) if all(bottom < above or below < top for above, below in lane))
        lanes[number] = next(free, len(taken))
        if lanes[number] == len(taken):
            taken.append([])
        taken[lanes[number]].append((top, bottom))
    return lanes


def _reason(names: list[str], befores: list[int], after: int, reason: str) -> str:
    return f"{', '.join(names[before] for before in befores)} → {names[after]}: {reason}"


def _named(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} callbacks"


def _reasons(names: list[str], groups: dict[tuple[int, str], list[int]]) -> str:
    if not groups:
        return '<p class="note">None depends on another one; this is the order in which they were given.</p>'
    lines = "".join(
        f'<li data-edge="{number}" tabindex="0"><b class="badge">{number}</b><div><b>'
        f"{escape(_named([names[before] for before in befores]))} → {escape(names[after])}</b>"
        f"<br>{escape(reason)}</div></li>"
        for number, ((after, reason), befores) in enumerate(groups.items(), start=1)
    )
    return f'<ol class="reasons">{lines}</ol>'
