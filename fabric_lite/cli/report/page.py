"""The page: one HTML file that loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from fabric_lite.__about__ import __version__
from fabric_lite.cli.report.charts import charts
from fabric_lite.cli.report.left import Left
from fabric_lite.cli.report.order import drawing

_ROWS = 12  # of the times that show at once

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<header><h1>{title}</h1>{summary}</header>
<main>
{sections}</main>
<footer>Written by fabric-lite {version}.</footer>
<script type="application/json" id="data">{data}</script>
<script>
{js}</script>
</body>
</html>
"""


def render(left: Left) -> str:
    """The page about a run.

    Args:
        left: What the run left.
    """
    curves, data = charts(left.charts)
    sections = (
        ("Curves", _curves(left, curves)),
        ("Callbacks", _callbacks(left)),
        ("Time in callbacks", _times(left)),
        ("Configuration", _configuration(left)),
        ("Environment", _environment(left)),
    )
    return _PAGE.format(
        title=escape(left.folder.resolve().name or str(left.folder)),
        css=_beside("page.css"),
        js=_beside("page.js"),
        summary=_summary(left.run),
        sections="".join(f"<section><h2>{title}</h2>{html}</section>\n" for title, html in sections),
        version=escape(__version__),
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _summary(run: Mapping[str, Any]) -> str:
    """When the run was, and how it ended."""
    if "started" not in run:
        return ""
    end = run.get("ended")
    took = datetime.fromisoformat(end or run["updated"]) - datetime.fromisoformat(run["started"])
    began = f"Began {_time(run['started'])}."
    if end:
        how = str(run.get("outcome") or "ended")
        return f"<p>{began} Took {_duration(took.total_seconds())}: {escape(how)}.</p>"
    return (
        f"<p>{began} <b>It has written no end: it is still running, or was killed.</b> It last wrote"
        f" {_time(run['updated'])}, after {_duration(took.total_seconds())}.</p>"
    )


def _time(text: str) -> str:
    return escape(datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S %Z").rstrip())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _missing(what: str, how: str) -> str:
    return f'<p class="missing">{what} To have them: <code>{escape(how)}</code></p>'


def _from(left: Left, file: Path | None) -> str:
    """Where a section comes from."""
    return "" if file is None else f'<p class="source">from {escape(str(file.relative_to(left.folder)))}</p>'


def _curves(left: Left, html: str) -> str:
    if left.metrics is None:
        return _missing("There is no metrics.csv.", 'Fabric(loggers=CSVLogger("RUN_DIR"))')
    if not html:
        html = _missing("There are no numbers in metrics.csv.", "fabric.log_dict({...}, step=step)")
    older = ""
    if left.others:
        folders = "".join(
            f"<li><code>fabric-lite report {escape(str(other.parent))}</code></li>" for other in left.others
        )
        older = f"<details><summary>{len(left.others)} older metrics.csv</summary><ul>{folders}</ul></details>"
    return f'{_from(left, left.metrics)}<div class="charts">{html}</div>{older}'


def _callbacks(left: Left) -> str:
    graph = left.run.get("graph")
    if graph is None:
        return _missing("There is no callback graph.", 'Fabric(callbacks=[..., LogRun("RUN_DIR")])')
    key = '<p class="source">from the top down, in the order in which they run; dashed: not guarded</p>'
    return key + drawing(graph)


def _times(left: Left) -> str:
    timings = left.run.get("timings")
    if timings is None:
        return _missing("No times were taken.", 'Fabric(callbacks=[..., LogRun("RUN_DIR"), HookProfiler()])')
    rows = [
        f'<tr><th scope="row"><b>{_name(row["callback"])}</b> <span>{_name(row["hook"])}</span>'
        f'<i style="width:{100 * row["share"]:.2f}%"></i></th><td>{row["calls"]:,}</td>'
        f"<td>{row['total']:,.3f}</td><td>{1000 * row['mean']:,.3f}</td><td>{100 * row['share']:.1f}</td></tr>"
        for row in timings
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("calls", "total, s", "mean, ms", "%"))

    def table(rows: list[str]) -> str:
        head_row = f'<thead><tr><th scope="col">callback and hook</th>{head}</tr></thead>'
        return f'<table class="times">{head_row}<tbody>{"".join(rows)}</tbody></table>'

    seconds = sum(row["total"] for row in timings)
    html = f'<p class="source">{seconds:,.3f} s in all</p>{table(rows[:_ROWS])}'
    if len(rows) > _ROWS:
        html += f"<details><summary>{len(rows) - _ROWS} more</summary>{table(rows[_ROWS:])}</details>"
    return html


def _configuration(left: Left) -> str:
    html = ""
    if left.run.get("config"):
        html += _from(left, left.record) + _pairs(left.run["config"])
    if left.params and left.metrics is not None:
        html += _from(left, left.metrics.with_name("hparams.json")) + _pairs(left.params)
    return html or _missing("No settings were written.", 'LogRun("RUN_DIR", config=vars(args))')


def _environment(left: Left) -> str:
    if "environment" not in left.run:
        return _missing("No versions were written.", 'Fabric(callbacks=[..., LogRun("RUN_DIR")])')
    return _from(left, left.record) + _pairs(left.run["environment"])


def _name(name: object) -> str:
    """A name that may go on in the next line, but not anywhere."""
    return re.sub("([/_.])", r"\1<wbr>", escape(str(name)))


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{_name(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items())
    return f"<dl>{rows}</dl>"
