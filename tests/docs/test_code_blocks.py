"""The code in the documentation runs, and prints what the documentation says.

What the words after the three backticks mean here:
    ``python``            is executed: the blocks of a page in their order, in one namespace and one empty folder
    ``python file=NAME``  is a file of that name in this folder, which later blocks can import or run
    ``bash run``          is executed in this folder
    ``output``            is what the blocks since the page's last ``output`` print
All else is not looked at.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]

FENCED = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<body>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^[ \t]*(```|~~~)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


class Block(NamedTuple):
    """The text between two fences, with what is written behind the first, and the number of its first line."""

    info: str
    body: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    for found in FENCED.finditer(text):
        yield Block(found["info"].strip(), found["body"], text.count("\n", 0, found.start("body")) + 1)


def run_page(text: str, name: str, folder: Path, printed: Callable[[], str]) -> None:
    """Does with the blocks of a page what the words behind their backticks say."""
    namespace = {"__name__": "__main__"}
    for info, body, line in blocks(text):
        language, _, attribute = info.partition(" ")
        if info == "output":
            assert printed() == body, f"{name}:{line} is not what the code before it prints"
        elif attribute.startswith("file="):
            (folder / attribute.removeprefix("file=")).write_text(body, encoding="utf-8")
        elif info == "bash run":
            run_commands(body, folder)
        elif language == "python":
            assert not attribute, f"{name}:{line - 1} has the words {attribute!r}, which mean nothing here"
            exec(compile("\n" * (line - 1) + body, name, "exec"), namespace)


def run_commands(body: str, folder: Path) -> None:
    """Runs commands with this interpreter and what is installed beside it, and prints what they print."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e"], input=body, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout, end="")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., None]]:
    """Runs a page in a folder of its own, from which it can import, and without a network."""

    def refuse(*_: object) -> None:
        raise OSError("the documentation's code runs without a network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    yield lambda text, name="page.md": run_page(text, name, tmp_path, lambda: capsys.readouterr().out)
    for module, loaded in list(sys.modules.items()):
        if (getattr(loaded, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if "```python" in page.read_text("utf-8")],
)
def test_the_code_of_a_page_runs(page: Path, run: Callable[..., None]) -> None:
    run(page.read_text("utf-8"), str(page))


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_no_block_is_overlooked_and_no_link_leads_nowhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(FENCE.findall(text)) == 2 * len(list(blocks(text))), "a fence is indented, made of ~~~, or not closed"
    assert [link for link in LINK.findall(FENCED.sub("", text)) if not (page.parent / link).exists()] == []


def test_the_pages_that_a_newcomer_reads_have_code() -> None:
    with_code = {
        page.name for page in PAGES if any(block.info == "python" for block in blocks(page.read_text("utf-8")))
    }
    assert {"README.md", "hooks.md", "loop.md", "migrating.md"} <= with_code


def test_the_readme_names_the_versions_that_the_package_asks_for() -> None:
    asked = re.findall(r'(?:requires-python = "|"torch)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert "Python {} or later and PyTorch {} or later".format(*asked) in (ROOT / "README.md").read_text("utf-8")


PAGE = """
```python file=double.py
def double(x):
    return 2 * x
```
```python
from double import double
print(double(x := 4))
```
```bash
exit 1
```
```bash run
python -c "from double import double; print(double(3))"
```
```python
print(x + 1)
```
```output
8
6
5
```
"""


def test_blocks_share_a_namespace_and_a_folder(run: Callable[..., None]) -> None:
    run(PAGE)


@pytest.mark.parametrize(
    "old, new, error, message",
    [
        ("5\n```", "6\n```", AssertionError, "page.md:20 is not what the code before it prints"),
        ("print(x + 1)", "print(y)", NameError, "name 'y' is not defined"),
        ("```python\nprint", "```python skip\nprint", AssertionError, "page.md:16 has the words 'skip'"),
        ("double(3)", "triple(3)", AssertionError, "name 'triple' is not defined"),
        ("print(x + 1)", "import socket; socket.create_connection(('a', 1))", OSError, "without a network"),
    ],
)
def test_what_is_wrong_is_noticed(
    run: Callable[..., None], old: str, new: str, error: type[Exception], message: str
) -> None:
    assert old in PAGE
    with pytest.raises(error, match=message):
        run(PAGE.replace(old, new))


def test_a_traceback_leads_to_the_line_of_the_page(run: Callable[..., None]) -> None:
    with pytest.raises(NameError) as caught:
        run(PAGE.replace("print(x + 1)", "print(y)"))
    assert (str(caught.traceback[-1].path).endswith("page.md"), caught.traceback[-1].lineno + 1) == (True, 17)
