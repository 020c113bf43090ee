"""``fabric-lite graph``, and the command line as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from fabric_lite import __version__
from fabric_lite.cli import main

CALLBACKS = """
from fabric_lite import Callback, Fabric, Read, Write


class Scales(Callback):
    def stateaccess(self):
        return {"step": {"loss": Write()}}

    def on_step_end(self, learner):
        raise AssertionError("no callback runs")


class Prints(Scales):
    def stateaccess(self):
        return {"step": {"loss": Read()}}


class Plain:
    def on_step_end(self, learner):
        raise AssertionError("no callback runs")


callbacks = [Prints(), Plain(), Scales()]
one = Plain()
unresolved = [Scales(), Scales()]
broken = 1
mixed = [Plain(), 3]
text = "callbacks"


class Nothing:
    pass


nothing = Nothing()


def make():
    return callbacks


def fabric(accelerator="cpu"):
    return Fabric(accelerator=accelerator, callbacks=make())


made = fabric()


def needs(learner, *others, rate=1):
    return callbacks


if __name__ == "__main__":
    raise AssertionError("the file is loaded, not run")
"""

EXPLAINED = """\
The callbacks run in this order:
  1. Plain (not guarded)
  2. Scales (writes step.loss)
  3. Prints (reads step.loss)
       after Scales: Scales writes step.loss, which Prints reads
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CALLBACKS)
    return path


@pytest.mark.parametrize("name", ["callbacks", "make", "fabric", "made"])
def test_it_explains_the_order_of_whatever_holds_callbacks(file, name, capsys):
    before = list(sys.path)
    assert main(["graph", f"{file}:{name}"]) == 0
    assert capsys.readouterr() == (EXPLAINED, "")
    assert sys.path == before
    assert "mine" not in sys.modules


@pytest.mark.parametrize("name", ["one", "Plain"])  # a class is made, as a function is called
def test_a_single_callback(file, capsys, name):
    assert main(["graph", f"{file}:{name}"]) == 0
    assert capsys.readouterr().out == "The callbacks run in this order:\n  1. Plain (not guarded)\n"


def test_callbacks_that_cannot_work_together(file, capsys):
    assert main(["graph", f"{file}:unresolved"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "Scales writes step.loss and Scales#2 writes step.loss, and nothing says which of them runs first;"
    )


def test_mermaid(file, capsys):
    assert main(["graph", f"{file}:callbacks", "--mermaid"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "flowchart TD"
    nodes = dict(re.findall(r'^    (n\d)\(?\["(\w+)"\]\)?$', "\n".join(lines), re.MULTILINE))
    assert sorted(nodes.values()) == ["Plain", "Prints", "Scales"]
    before, reason, after = re.fullmatch(r'    (n\d) -->\|"(.+)"\| (n\d)', lines[-1]).groups()
    assert (nodes[before], reason, nodes[after]) == ("Scales", "Scales writes step.loss, which Prints reads", "Prints")


def test_dot(file, capsys):
    assert main(["graph", f"{file}:callbacks", "--dot"]) == 0
    out = capsys.readouterr().out
    nodes = dict(re.findall(r'^    (n\d) \[label="(\w+)"', out, re.MULTILINE))
    ((before, after, reason),) = re.findall(r'^    (n\d) -> (n\d) \[label="(.+)"\];$', out, re.MULTILINE)
    assert (nodes[before], reason, nodes[after]) == ("Scales", "Scales writes step.loss, which Prints reads", "Prints")
    assert out.startswith("digraph callbacks {\n")
    assert out.endswith("}\n")


def test_svg(file, tmp_path, capsys):
    pictures = []
    for name in ("first.svg", "second.svg"):
        assert main(["graph", f"{file}:callbacks", "--svg", str(tmp_path / name)]) == 0
        pictures.append((tmp_path / name).read_bytes())
    assert capsys.readouterr() == ("", "")
    assert pictures[0] == pictures[1]
    text = " ".join(" ".join(ElementTree.fromstring(pictures[0]).itertext()).split())
    for part in ("1. Plain", "2. Scales", "3. Prints", "Scales writes", "which Prints reads"):
        assert part in text


def test_the_texts_of_a_picture_do_not_cover_one_another(file):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from fabric_lite import Fabric, Learner
    from fabric_lite.callbacks import EarlyStopping, LogMetrics
    from fabric_lite.cli._draw import draw
    from fabric_lite.loggers import CSVLogger

    stopping, logging = EarlyStopping(3), LogMetrics(CSVLogger(file.parent))
    learner = Learner(
        torch.nn.Linear(2, 2),
        torch.nn.functional.cross_entropy,
        callbacks=[stopping, logging],
        fabric=Fabric(accelerator="cpu"),
    )
    figure = draw(learner.callbacks.graph)
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = figure.axes[0].texts
    assert len(texts) > 12
    boxes = [text.get_window_extent(renderer) for text in texts]
    page = figure.bbox
    for place, box in enumerate(boxes):
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
        for other in boxes[:place]:
            assert not box.overlaps(other)


def test_without_matplotlib_a_picture_names_the_extra(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["graph", f"{file}:callbacks", "--svg", str(tmp_path / "graph.svg")]) == 2
    assert capsys.readouterr().err == (
        'fabric-lite graph: --svg needs the package matplotlib: pip install "torch-fabric-lite[plot]".'
        " --mermaid and --dot need nothing.\n"
    )
    assert not (tmp_path / "graph.svg").exists()


def test_a_picture_that_cannot_be_written(file, tmp_path, capsys):
    out = tmp_path / "missing" / "graph.svg"
    assert main(["graph", f"{file}:callbacks", "--svg", str(out)]) == 2
    assert capsys.readouterr().err == f"fabric-lite graph: cannot write {str(out)!r}: No such file or directory.\n"


@pytest.mark.parametrize(
    "target, message",
    [
        ("mine.py", "'mine.py' does not say what to look at; write path/to/module.py:name."),
        ("mine.py:", "'mine.py:' does not say what to look at; write path/to/module.py:name."),
        ("main.py:callbacks", "there is no file 'main.py'; did you mean 'mine.py'?"),
        ("mine.py:callback", "mine.py has no 'callback'; did you mean 'callbacks'?"),
        ("mine.py:zzz", "mine.py has no 'zzz'."),
        ("text.txt:callbacks", "'text.txt' is no Python file; write path/to/module.py:name."),
        ("mine.py:broken", "broken is 1, which is no callback. Name a callback, a list or tuple of them, a Fabric"),
        ("mine.py:text", "text is 'callbacks', which is no callback. Name a callback"),
        ("mine.py:mixed", "mixed[1] is 3, which is no callback. Name a callback"),
        ("mine.py:nothing", "nothing is <mine.Nothing object at "),
        (
            "mine.py:needs",
            "'needs' cannot be called without 'learner'; give defaults, or name a function that calls it.",
        ),
    ],
)
def test_a_target_that_is_none(file, monkeypatch, capsys, target, message):
    monkeypatch.chdir(file.parent)
    Path("text.txt").write_text("")
    assert main(["graph", target]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fabric-lite graph: {message}")


def test_the_error_of_a_file_that_fails_is_its_own(tmp_path):
    (tmp_path / "fails.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        main(["graph", f"{tmp_path / 'fails.py'}:callbacks"])
    assert "fails" not in sys.modules


def test_a_file_called_like_a_module_imports_its_neighbours(tmp_path, capsys):
    (tmp_path / "neighbour_of_json.py").write_text("class Plain:\n    def on_end(self): ...\n")
    (tmp_path / "json.py").write_text("from neighbour_of_json import Plain\ncallbacks = [Plain()]\n")
    import json

    try:
        assert main(["graph", f"{tmp_path / 'json.py'}:callbacks"]) == 0
    finally:
        sys.modules.pop("neighbour_of_json", None)
    assert "1. Plain (not guarded)" in capsys.readouterr().out
    assert sys.modules["json"] is json


@pytest.mark.parametrize("command", ["script", "module"])
def test_the_command_is_installed(file, command):
    script = Path(sysconfig.get_path("scripts")) / "fabric-lite"
    if command == "script" and not script.exists():
        pytest.skip("the package is not installed")
    start = [str(script)] if command == "script" else [sys.executable, "-W", "error", "-m", "fabric_lite"]
    root = Path(__file__).parents[2]
    asked = [*start, "graph", f"{file}:callbacks"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=root if command == "module" else file.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPLAINED, "")


def test_help_and_version(capsys):
    for arguments, expected in ((["--version"], f"fabric-lite {__version__}\n"), (["--help"], "usage: fabric-lite")):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert capsys.readouterr().out.startswith(expected)
    with pytest.raises(SystemExit, match="2"):
        main(["graf"])
    assert "invalid choice: 'graf'" in capsys.readouterr().err
