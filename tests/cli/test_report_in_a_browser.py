"""The page of ``fabric-lite report`` in a real browser: Debian's chromium, without a window and without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fabric_lite import Fabric
from fabric_lite.callbacks import (
    EMA,
    Checkpointer,
    EarlyStopping,
    GradientNorm,
    LearningRate,
    LogMetrics,
    LogRun,
    Patience,
    SanityCheck,
    Scheduler,
    Timer,
    default_callbacks,
    onecycle,
)
from fabric_lite.cli import main

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install playwright")

ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}

# The lowest contrast of the elements that a selector finds with what is behind them, by the rules of WCAG.
CONTRAST = """([selector, property]) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const pixel = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (colour) => { const [r, g, b] = pixel(colour).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (element) => { for (let at = element; at; at = at.parentElement) {
    const box = at.tagName === "g" && at.querySelector("rect, circle");
    const colour = box ? getComputedStyle(box).fill : getComputedStyle(at).backgroundColor;
    if (colour !== "none" && pixel(colour)[3] === 255) return colour; } return "white"; };
  return Math.min(...[...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length).map(
    (element) => {
      const both = [light(getComputedStyle(element)[property]), light(behind(element.parentElement))];
      return (Math.max(...both) + .05) / (Math.min(...both) + .05); }));
}"""

# What is smaller than 12 pixels, of the elements with text of their own.
SMALL = """() => [...document.querySelectorAll("body *")].filter((e) => e.getClientRects().length &&
  [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && parseFloat(getComputedStyle(e).fontSize) < 12)
  .map((e) => e.outerHTML)"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with the default callbacks and ten more."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        f"{step},{1 / step},{2 / step if step % 5 == 0 else ''},{'nan' if step == 3 else step}" for step in range(1, 41)
    ]
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,validation/loss,</script><b>", *rows]))
    log_run = LogRun(folder, {"model/width": 64, "a name without a space " + "x" * 60: "y" * 200})
    callbacks = [*default_callbacks(), SanityCheck(), Checkpointer(folder), EarlyStopping(Patience(3)), EMA(), Timer()]
    callbacks += [Scheduler({LearningRate: onecycle(3, 0.1)}), LogMetrics(), GradientNorm(), log_run]
    log_run.write(Fabric(accelerator="cpu", devices=1, callbacks=callbacks))
    run = json.loads((folder / "log_run.json").read_text())
    run["timings"] = [
        {"callback": name, "hook": "on_validation_epoch_end", "calls": 1234, "total": 123.4, "mean": 0.1, "share": 0.05}
        for name in [callback["name"] for callback in run["graph"]["callbacks"]] + ["AVeryLongNameOfACallbackOfAUser"]
    ]
    (folder / "log_run.json").write_text(json.dumps(run))
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page that was opened, and what it said and asked for meanwhile."""

    def __init__(self, browser: Any, file: Path, size: dict[str, int] = DESK, **options: Any) -> None:
        self.context = browser.new_context(viewport=size, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked_for: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.said == []
            assert len(self.asked_for) == 1


def over(page: Any, share: float) -> None:
    """Move the pointer over the first chart."""
    box = page.locator(".area").first.bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + 50)


def test_the_curves_have_their_points(browser: Any, html: Path) -> None:
    with Opened(browser, html) as page:
        counts = page.eval_on_selector_all(".chart", "(all) => all.map((c) => [c.querySelector('h3').textContent,"
        " ...[...c.querySelectorAll('.dots')].map((d) => d.getAttribute('d').split('M').length - 1)])")  # fmt: skip
        assert counts == [["loss", 40, 8], ["</script><b>", 39]]
        assert page.locator(".line").first.evaluate("(line) => line.getTotalLength()") > 500


def test_the_pointer_shows_values(browser: Any, html: Path) -> None:
    with Opened(browser, html) as page:
        tip = page.locator(".tip").first
        assert tip.is_hidden()
        over(page, 19 / 39)
        assert tip.inner_text().split() == ["step", "20", "train", "0.05", "validation", "0.1"]
        over(page, 20.2 / 39)
        assert tip.inner_text().split() == "step 21 train 0.0476191 validation (step 20) 0.1".split()
        spot = page.locator(".spot.train").first.bounding_box()
        cursor = page.locator(".cursor").first.bounding_box()
        assert spot["x"] + spot["width"] / 2 == pytest.approx(cursor["x"], abs=1)
        page.mouse.move(2, 2)
        assert tip.is_hidden()


def test_the_keyboard_shows_values(browser: Any, html: Path) -> None:
    with Opened(browser, html) as page:
        page.keyboard.press("Tab")
        tip = page.locator(".tip").first
        steps = []
        for key in ("ArrowRight", "ArrowRight", "PageDown", "End", "ArrowRight", "ArrowLeft", "Home"):
            page.keyboard.press(key)
            steps.append(int(tip.inner_text().split()[1]))
        assert steps == [1, 2, 6, 40, 40, 39, 1]
        page.keyboard.press("Escape")
        assert tip.is_hidden()
        page.keyboard.press("Tab")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.locator(".tip").nth(1).inner_text().split() == ["step", "3", "value", "nan"]


def test_a_finger_shows_values(browser: Any, html: Path) -> None:
    with Opened(browser, html, PHONE, has_touch=True, is_mobile=True) as page:
        box = page.locator(".area").first.bounding_box()
        for share in (0, 0.5, 1):
            page.touchscreen.tap(box["x"] + share * (box["width"] - 1), box["y"] + 50)
            tip = page.locator(".tip").first.bounding_box()
            assert tip["x"] >= 0
            assert tip["x"] + tip["width"] <= 360


def test_the_graph_has_its_arrows_and_their_reasons(browser: Any, html: Path) -> None:
    run = json.loads((html.parent / "log_run.json").read_text())
    with Opened(browser, html) as page:
        assert page.locator(".box").count() == len(run["graph"]["callbacks"]) == 14
        assert page.locator(".edge").count() == len(run["graph"]["edges"]) > 30
        reasons = page.locator(".reasons li")
        assert reasons.count() == page.locator(".arrow").count()
        assert all(reasons.nth(i).is_visible() for i in range(reasons.count()))
        assert set(page.locator(".reasons li div").evaluate_all("(all) => all.map((e) => e.lastChild.data)")) == {
            edge["reason"] for edge in run["graph"]["edges"]
        }
        boxes = page.locator(".box rect").evaluate_all(
            "(all) => all.map((e) => e.getBBox()).map((b) => [b.y, b.height])"
        )
        assert all(y + height < following for (y, height), (following, _) in pairwise(boxes))
        texts = page.locator(".box").evaluate_all("(all) => all.every((g) => "
        "g.querySelector('text').getBBox().width + 12 <= g.querySelector('rect').getBBox().width)")  # fmt: skip
        assert texts


def test_an_arrow_stands_out_with_its_reason(browser: Any, html: Path) -> None:
    with Opened(browser, html) as page:
        page.locator(".reasons li").nth(2).hover()
        assert page.locator(".arrow.on").get_attribute("data-edge") == "3"
        on = page.locator(".box.on").evaluate_all("(all) => all.map((e) => e.querySelector('title').textContent)")
        assert len(on) == 2
        assert all(name in page.locator(".reasons li.on").inner_text() for name in on)
        page.locator(".box", has_text="Scheduler").hover()
        told = page.locator(".reasons li.on").all_inner_texts()
        assert 1 < len(told) < page.locator(".reasons li").count()
        assert "Scheduler" in told[0]
        page.locator("h1").hover()
        assert page.locator(".picked").count() == 0


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_is_no_wider_than_the_window_and_can_be_read(browser: Any, html: Path, size: dict[str, int]) -> None:
    with Opened(browser, html, size) as page:
        page.locator("summary").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        wide = "(all) => all.filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.outerHTML)"
        assert page.eval_on_selector_all(".chart, .scroll, section, dl", wide) == []
        assert page.evaluate(SMALL) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_contrast(browser: Any, html: Path, scheme: str) -> None:
    with Opened(browser, html, color_scheme=scheme) as page:
        over(page, 0.5)
        backdrop = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, backdrop.removeprefix("rgb(").rstrip(")").split(","))) < 128 or scheme == "light"
        texts = (
            "p, h1, h2, h3, td, th, th span, dt, dd, li, li div, .x, .y, .key, .tip b, .tip small, footer",
            "color",
        )
        for selector, what, least in (
            (*texts, 4.5),
            (".box text, .box .rank, .arrow text", "fill", 4.5),
            (".line, .edge", "stroke", 3),
            (".head", "fill", 3),
            (".times i", "backgroundColor", 3),
        ):
            assert page.evaluate(CONTRAST, [selector, what]) >= least, selector


def test_without_its_script_and_on_paper(browser: Any, html: Path) -> None:
    with Opened(browser, html, java_script_enabled=False) as page:
        assert page.locator(".line").first.is_visible()
        assert page.locator(".tip").first.is_hidden()
        assert page.locator(".reasons li").first.is_visible()
    with Opened(browser, html, color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 33, 37)"


def test_a_long_run_opens_fast(browser: Any, tmp_path: Path) -> None:
    rows = [f"{step},{step % 97}" for step in range(100_000)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss", *rows]))
    assert main(["report", str(tmp_path)]) == 0
    with Opened(browser, tmp_path / "report.html") as page:
        over(page, 0.5)
        assert "step 49,955" in page.locator(".tip").first.inner_text()
        assert page.locator(".line.course").first.is_visible()
