"""``fabric-lite report``: what the page says. How it behaves in a browser is in ``test_report_in_a_browser.py``."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric_lite import Fabric, Learner
from fabric_lite.callbacks import HookProfiler, LogMetrics, LogRun
from fabric_lite.cli import main
from fabric_lite.cli.report.charts import shown, thinned, ticks
from fabric_lite.loggers import CSVLogger

NASTY = '</script><b onclick="x">&'


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.data: Any = None
        self.feed(text.replace("<wbr>", ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", {"type": "application/json", "id": "data"}) and self.data is None:
            self.data = json.loads(data)
        elif not self.tags or self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def record(folder: Path, **more: Any) -> dict[str, Any]:
    """Writes what `LogRun` would."""
    run = {"started": "2026-01-01T10:00:00+00:00", "updated": "2026-01-01T11:02:03+00:00", **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log_run.json").write_text(json.dumps(run), encoding="utf-8")
    return run


def metrics(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(text, encoding="utf-8")
    return folder / "metrics.csv"


def report(folder: Path, *arguments: str) -> Page:
    assert main(["report", str(folder), *arguments]) == 0
    return Page((folder / "report.html").read_text("utf-8"))


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(tmp_path, name=None))
    loader = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)), batch_size=2)
    callbacks = [LogRun(tmp_path, {"rate": 0.25}), HookProfiler(), LogMetrics()]
    Learner(nn.Linear(2, 1), nn.MSELoss(), data=(loader, loader), callbacks=callbacks, fabric=fabric).fit(3)
    fabric.logger.finalize("success")
    capsys.readouterr()

    page = report(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert page.text.startswith(f"{tmp_path.name} {tmp_path.name} Began 20")
    assert ": finished." in page.text
    (loss,) = (chart for chart in page.data if len(chart["lines"]) == 2)
    assert [(line["phase"], line["x"]) for line in loss["lines"]] == [("train", [1, 2, 3]), ("validation", [1, 2, 3])]
    assert len(page.all("arrow")) == len({attributes["data-edge"] for attributes in page.all("arrow")}) > 3
    assert "Recorder creates cbstate.history, which ProgressPrinter reads" in page.text
    assert "Metrics on_step_end" in page.text
    assert "from log_run.json rate 0.25" in page.text
    assert f"torch {torch.__version__}" in page.text


def test_it_loads_nothing(tmp_path: Path) -> None:
    metrics(tmp_path, "step,train/loss\n1,2\n")
    record(tmp_path, config={"url": "https://example.org/a.png"})
    page = report(tmp_path)
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"link", "img", "iframe", "object", "embed", "base", "image", "use"}
    )
    assert not any({"src", "href", "srcset", "xlink:href"} & attributes.keys() for _, attributes in page.tags)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", html) == []
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in html


def test_names_and_values_are_text(tmp_path: Path) -> None:
    metrics(tmp_path, f'step,"train/{NASTY.replace(chr(34), chr(34) * 2)}"\n1,2\n')
    record(
        tmp_path,
        outcome=NASTY,
        ended="2026-01-01T10:00:09+00:00",
        config={NASTY: NASTY},
        environment={"command": NASTY},
        graph={
            "callbacks": [{"name": NASTY, "guarded": True}, {"name": "B", "guarded": False}],
            "edges": [{"before": 0, "after": 1, "reason": NASTY}],
        },
        timings=[{"callback": NASTY, "hook": NASTY, "calls": 1, "total": 1.0, "mean": 1.0, "share": 1.0}],
    )
    page = report(tmp_path)
    assert not any("onclick" in attributes for _, attributes in page.tags)
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2
    # heading, how it ended, arrow's tip, box and its tip, reason twice, time, hook, key and value, command
    assert page.text.count(NASTY) >= 11
    assert page.data[0]["lines"][0]["y"] == [2.0]


@pytest.mark.parametrize(
    "left, said",
    [
        ("metrics", ["There is no callback graph.", "No times were taken.", "No versions were written."]),
        ("record", ["There is no metrics.csv. To have them: Fabric(loggers=CSVLogger(", "HookProfiler()"]),
        ("empty", ["There are no numbers in metrics.csv. To have them: fabric.log_dict("]),
    ],
)
def test_what_is_missing_is_said_with_the_line_that_gives_it(tmp_path: Path, left: str, said: list[str]) -> None:
    if left == "record":
        record(tmp_path)
    else:
        metrics(tmp_path, "step,train/loss\n1,0.5\n" if left == "metrics" else "step,name\n1,text\n")
    text = report(tmp_path).text
    assert [sentence for sentence in said if sentence not in text] == []


def test_a_run_that_wrote_no_end(tmp_path: Path) -> None:
    record(tmp_path, ended=None)
    said = "Began 2026-01-01 10:00:00 UTC. It has written no end: it is still running, or was killed."
    assert f"{said} It last wrote 2026-01-01 11:02:03 UTC, after 1 h 2 min." in report(tmp_path).text


def test_callbacks_that_depend_on_nothing(tmp_path: Path) -> None:
    record(tmp_path, graph={"callbacks": [{"name": "A" * 40, "guarded": True}], "edges": []}, timings=[])
    page = report(tmp_path)
    assert "None depends on another one" in page.text
    assert "A" * 40 in page.text  # its box has the beginning
    record(tmp_path, graph={"callbacks": [], "edges": []})
    assert "There were no callbacks." in report(tmp_path).text


def test_of_several_the_newest_and_what_is_beside_it(tmp_path: Path) -> None:
    for number, run in enumerate("abc"):
        os.utime(metrics(tmp_path / run / "version_0", f"step,train/loss\n1,{number}\n"), (number, number))
        record(tmp_path / run, config={"run": run})
    os.utime(tmp_path / "b" / "version_0" / "metrics.csv", (9, 9))
    page = report(tmp_path)
    assert page.data[0]["lines"][0]["y"] == [1.0]
    assert "from b/log_run.json run b" in page.text
    older = [f"fabric-lite report {tmp_path / run / 'version_0'}" for run in "ca"]
    assert f"2 older metrics.csv {' '.join(older)}" in page.text


def test_hyperparameters_of_the_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"width": 7})
    logger.log_metrics({"train/loss": 1.0})
    logger.finalize("success")
    assert "from lightning_logs/version_0/hparams.json width 7" in report(tmp_path).text


def test_values_that_are_no_numbers_and_steps_that_go_back(tmp_path: Path) -> None:
    metrics(tmp_path, "step,val_loss\n1,1\n2,nan\n3,3\n2,inf\n3,-inf\n4,nan\n5,5\n")
    page = report(tmp_path)
    assert page.data[0]["lines"][0]["y"] == [1.0, "nan", 3.0, "inf", "-inf", "nan", 5.0]
    assert "validation: nan at step 2, inf at step 2, -inf at step 3 and 1 more." in page.text
    assert "validation: the step goes back once, as when a run is resumed." in page.text
    (line,) = page.all("line")
    assert re.findall("[MLh]", str(line["d"])) == ["M", "h"] * 3  # three points on their own


@pytest.mark.parametrize(
    "text",
    [
        "step,a\n5,7\n",  # a single point
        "step,a\n1,nan\n",
        "a\n3\n4\n",  # no steps
        "step,a\n0,-1e308\n1,1e308\n",
        "step,a\n0,0\n1,5e-324\n",
        "step,a\n1e300,1\n",
        "step,a\n0.25,1\n0.75,2\n",
    ],
)
def test_odd_axes(tmp_path: Path, text: str) -> None:
    metrics(tmp_path, text)
    page = report(tmp_path)
    assert page.data[0]["x"][0] < page.data[0]["x"][1]
    assert page.data[0]["y"][0] < page.data[0]["y"][1]
    for path in (*page.all("line"), *page.all("dots")):
        assert all(0 <= float(number) <= 1000 for number in re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", str(path["d"])))


def test_many_points_are_thinned_and_keep_their_extremes(tmp_path: Path) -> None:
    rows = [f"{step},{-50 if step == 777 else 'nan' if step == 4321 else step % 10}" for step in range(20_000)]
    metrics(tmp_path, "\n".join(["step,train/loss", *rows]))
    page = report(tmp_path)
    (line,) = page.data[0]["lines"]
    assert 1000 < len(line["x"]) < 3000
    assert (line["x"][0], line["x"][-1]) == (0, 19_999)
    assert (line["y"][line["x"].index(777)], "nan" in line["y"]) == (-50.0, True)
    assert "of 20,000 points are drawn" in page.text
    assert (tmp_path / "report.html").stat().st_size < 200_000


def test_thinned() -> None:
    points = [(float(step), float(step % 7)) for step in range(1000)]
    assert thinned(points, 1000) is points
    kept = thinned(points, 100)
    assert len(kept) <= 102
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)


@pytest.mark.parametrize(
    "low, high, texts",
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-3.0, 41.0, ["0", "10", "20", "30", "40"]),
        (1e-9, 2e-9, ["1e-09", "1.2e-09", "1.4e-09", "1.6e-09", "1.8e-09", "2e-09"]),
        (0.0, 12_000.0, ["0", "5,000", "10,000"]),
    ],
)
def test_ticks(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in ticks(low, high)] == texts


def test_numbers_in_tables() -> None:
    assert [shown(value) for value in (0.0, 12_345.0, 0.123456, 3e-8, 1e12)] == [
        "0",
        "12,345",
        "0.1235",
        "3e-08",
        "1e+12",
    ]


def test_another_file(tmp_path: Path) -> None:
    metrics(tmp_path, "step,a\n1,2\n")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text("utf-8").endswith("</html>\n")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "files, message",
    [
        (None, "there is no folder '{}'; name the one that the run wrote to."),
        ({}, "'{}' has no metrics.csv and no log_run.json, nor has a folder in it. Let a run write them: `Fabric("),
        ({"log_run.json": "{"}, "cannot read '{}/log_run.json': Expecting property name"),
        ({"log_run.json": "[1]"}, "cannot read '{}/log_run.json': something else wrote it. Remove it to have a report"),
        ({"metrics.csv": "step,a\n1,2\n", "report.html/x": ""}, "cannot write '{}/report.html': "),
    ],
)
def test_what_cannot_be_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "run"
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if files == {}:
        folder.mkdir()
    assert main(["report", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("fabric-lite report: " + message.format(folder))
