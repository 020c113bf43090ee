"""The code in the documentation runs, and prints what the documentation says.

What the words after the three backticks mean here:
    ``python``            is executed: the blocks of a page in their order, in one namespace and one empty folder
    ``python file=NAME``  is a file of that name in this folder, which later blocks can import or run
    ``bash run``          is executed in this folder
    ``bash file=NAME``    is a file of that name, too; its commands are checked
    ``bash``              is not executed, for a reason that stands in NOT_RUN; its commands are checked
    ``output``            is what the blocks since the page's last ``output`` print
    ``json``, ``toml``, ``yaml``, ``ini``  has to be readable as such
    ``text``              is neither
There is nothing else.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from fabric_lite.cli._main import main, make_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
    ROOT / "benchmarks" / "README.md",
]

# Page and first line of the blocks of commands that are not run, and why.
NOT_RUN = {
    ("README.md", "pip install torch-fabric-lite                # the import is fabric_lite"): "needs the index",
    ("README.md", "make demo"): "installs everything; tests/examples runs the script",
    ("docs/index.md", "pip install torch-fabric-lite"): "needs the index",
    ("examples/build_your_own_trainer/README.md", "fabric-lite new trainer my_training && cd my_training"): (
        "the page is run beside the files that this writes"
    ),
    ("examples/README.md", "python examples/digits.py                          # a few seconds on a CPU"): (
        "tests/examples runs the script"
    ),
}

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
            if language == "bash":
                check_commands(body, f"{name}:{line}", folder)
            (folder / attribute.removeprefix("file=")).write_text(body, encoding="utf-8")
        elif info == "bash run":
            run_commands(body, folder)
        elif language == "bash":
            assert not attribute, f"{name}:{line - 1} has the words {attribute!r}, which mean nothing here"
            check_commands(body, f"{name}:{line}", folder, ROOT)
        elif info in READERS:
            READERS[info](body)
        elif info == "text":
            continue
        elif language == "python":
            assert not attribute, f"{name}:{line - 1} has the words {attribute!r}, which mean nothing here"
            exec(compile("\n" * (line - 1) + body, name, "exec"), namespace)
        else:
            raise AssertionError(f"{name}:{line - 1} is of the kind {info!r}, and nothing checks that kind")


def read_toml(text: str) -> None:
    pytest.importorskip("tomllib").loads(text)


READERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": read_toml,
    "yaml": yaml.safe_load,
    "ini": lambda text: configparser.ConfigParser().read_string(text),
}


def check_commands(body: str, where: str, *folders: Path) -> None:
    """Look at commands without running them: syntax, scripts, options of our command line, targets of ``make``."""
    done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True)
    assert done.returncode == 0, f"{where}: {done.stderr}"
    for line in re.split(r"\n|&&", body.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        words = words[1:] if words[:1] == ["srun"] else words
        scripts = [word for word in words if word.endswith(".py")] if words else []
        assert all(any((folder / script).exists() for folder in folders) for script in scripts), f"{where}: {line}"
        if words[:1] == ["fabric-lite"]:
            make_parser().parse_args(words[1:])
        if words[:1] == ["make"]:
            makefile = (ROOT / "Makefile").read_text("utf-8")
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:]), f"{where}: {line}"


def run_commands(body: str, folder: Path) -> None:
    """Runs commands with this interpreter and what is installed beside it, and prints what they print.

    Those of our command line alone are run without a process for each, which would import torch.
    """
    lines = [shlex.split(line) for line in body.splitlines()]
    if all(line[0] == "fabric-lite" and line[1] != "run" and "|" not in line for line in lines):
        assert [main(line[1:]) for line in lines] == [0] * len(lines)
        return
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if "```" in page.read_text("utf-8")],
)
def test_the_code_of_a_page_runs(page: Path, run: Callable[..., None], tmp_path: Path) -> None:
    if page.parent.parent == ROOT / "examples":
        for file in page.parent.glob("*.py"):
            shutil.copy(file, tmp_path)
    run(page.read_text("utf-8"), str(page))


def test_what_is_not_run_has_a_reason() -> None:
    found = {
        (page.relative_to(ROOT).as_posix(), block.body.partition("\n")[0])
        for page in PAGES
        for block in blocks(page.read_text("utf-8"))
        if block.info == "bash"
    }
    assert found == set(NOT_RUN)


def test_the_targets_that_the_readme_lists_are_there() -> None:
    listed = re.findall(r"^\| `make (\w+)`", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_no_block_is_overlooked_and_no_link_leads_nowhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(FENCE.findall(text)) == 2 * len(list(blocks(text))), "a fence is indented, made of ~~~, or not closed"
    assert [link for link in LINK.findall(FENCED.sub("", text)) if not (page.parent / link).exists()] == []


def places(text: str) -> set[str]:
    """What a link can lead to in a page, by the names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    text = FENCED.sub("", page.read_text("utf-8"))
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", text)
    targets = [(page.parent / path if path else page, place) for path, place in links]
    assert [(file.name, place) for file, place in targets if place not in places(file.read_text("utf-8"))] == []


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
```bash file=job.sh
srun python double.py
```
```yaml
a: [1]
```
```text
anything
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
        ("5\n```", "6\n```", AssertionError, "page.md:29 is not what the code before it prints"),
        ("print(x + 1)", "print(y)", NameError, "name 'y' is not defined"),
        ("```python\nprint", "```python skip\nprint", AssertionError, "page.md:25 has the words 'skip'"),
        ("double(3)", "triple(3)", AssertionError, "name 'triple' is not defined"),
        ("```text", "```julia", AssertionError, "page.md:19 is of the kind 'julia', and nothing checks that kind"),
        ("exit 1", "if", AssertionError, "syntax error"),
        ("exit 1", "fabric-lite run --device 2 double.py", SystemExit, "2"),
        ("exit 1", "make coffee", AssertionError, "make coffee"),
        ("srun python double.py", "srun python triple.py", AssertionError, "triple.py"),
        ("a: [1]", "a: [1", yaml.YAMLError, "expected"),
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
    assert (str(caught.traceback[-1].path).endswith("page.md"), caught.traceback[-1].lineno + 1) == (True, 26)
