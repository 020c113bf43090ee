"""The documentation site builds without a warning, its links lead somewhere, and it asks no other host for anything."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import fabric_lite

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("", "callbacks", "events", "hooks", "learner", "loggers", "permissions", "plugins", "strategies", "testing")
PACKAGES += ("accelerators", "checkpoint", "plugins.environments", "plugins.collectives", "wrappers", "utilities")
# Registries, a type of another package, and a helper of the wrappers.
NOT_DESCRIBED = {"ACCELERATOR_REGISTRY", "STRATEGY_REGISTRY", "LightningEnum", "_unwrap_objects"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        given = dict(attrs)
        self.places.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        loads = given.get("href") if tag == "link" and given.get("rel") not in ("canonical", "next", "prev") else None
        self.loads += [url for url in (loads, given.get("src"), given.get("data-src")) if url]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # says for how long the theme is looked after
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Its pages."""
    return {file: Page(file.read_text("utf-8")) for file in site.rglob("*.html") if file.name != "404.html"}


def test_no_link_leads_nowhere(pages: dict[Path, Page]) -> None:
    lost = []
    for file, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto"):
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            target = target / "index.html" if target.is_dir() else target
            anywhere = target not in pages or url.fragment in ("", "__toc")
            if not target.exists() or not (anywhere or url.fragment in pages[target].places):
                lost.append(f"{file.name}: {link}")
    assert lost == []


def test_no_other_host_is_asked(site: Path, pages: dict[Path, Page]) -> None:
    assert [url for page in pages.values() for url in page.loads if urlsplit(url).netloc] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text("utf-8")) == []
    # The theme's script fetches a library for these.
    assert not any('class="mermaid"' in file.read_text("utf-8") for file in pages)


def test_the_navigation_has_every_page(site: Path, pages: dict[Path, Page]) -> None:
    start = {(site / urlsplit(link).path).resolve() for link in pages[site / "index.html"].links}
    assert {file.resolve() for file in pages} - start - {site / "index.html"} == set()


def public_names() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        module = importlib.import_module(f"fabric_lite.{package}".rstrip("."))
        yield from ((module.__name__, name) for name in module.__all__)


def test_the_reference_has_every_public_name(pages: dict[Path, Page]) -> None:
    places = set().union(*(page.places for page in pages.values()))
    # A name that a package hands on has its place under the module that it comes from.
    described = {place.rpartition(".")[2] for place in places if place.startswith("fabric_lite.")}
    assert {name for _, name in public_names()} - described == NOT_DESCRIBED
    assert {"fabric_lite.Fabric.setup", "fabric_lite.Fabric.save"} <= places


def test_blocks_of_code_are_shown_as_such(pages: dict[Path, Page]) -> None:
    assert [file.name for file in pages if "```" in file.read_text("utf-8")] == []


def test_docstrings_have_no_marks_of_another_format(pages: dict[Path, Page]) -> None:
    marked = [re.findall(r">[^<]*::\s*</p>|:(?:class|func|meth):", file.read_text("utf-8")) for file in pages]
    assert [found for found in marked if found] == []


def test_the_picture_of_the_layers_is_that_of_the_list() -> None:
    layers = load("_layers")
    assert layers.PICTURE.read_text("utf-8") == layers.draw(layers.layers()), "python docs/_layers.py draws it anew"


def test_the_table_of_the_house_has_every_room() -> None:
    text = (DOCS / "inside.md").read_text("utf-8")
    rooms = {room for row in load("_layers").layers() for room in row if not room.startswith("__")}
    assert set(re.findall(r"`fabric_lite/(\w+)(?:/|\.py)`", text.partition("|---|")[2].partition("\n\n")[0])) == rooms


def test_the_files_that_the_page_about_the_inside_names_are_there() -> None:
    text = re.sub(r"^```.*?^```", "", (DOCS / "inside.md").read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    package = Path(fabric_lite.__file__).parent
    named = [name for name in re.findall(r"`([\w./]+)`", text) if name.endswith((".py", "/"))]
    assert len(named) > 40
    alone = {file.name for file in package.rglob("*.py")}
    assert [
        name
        for name in named
        if not any((folder / name).exists() for folder in (ROOT, package, package / "strategies")) and name not in alone
    ] == []


def test_the_picture_of_a_callback_graph_is_that_of_the_example() -> None:
    text = (DOCS / "callbacks.md").read_text("utf-8").partition("flowchart TD")[2].partition("```")[0]
    picture = (DOCS / "assets" / "callback_graph.svg").read_text("utf-8")
    drawn = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture))
    names = re.findall(r'\["?\(?"?(\w+)"', text)
    assert len(names) == 4
    assert all(name in drawn for name in names)
    assert all(reason in drawn for reason in re.findall(r'\|"(.*?)"\|', text))
