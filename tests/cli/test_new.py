"""``fabric-lite new``, from a source checkout. `tests/packaging` does it with the wheel, and runs what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric_lite.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATES = {
    "trainer": {name: f"build_your_own_trainer/{name}" for name in ("run.py", "trainer.py", "README.md")},
    "loop": {"train.py": "digits.py"},
    "learner": {"train.py": "digits_learner.py"},
}


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("template", TEMPLATES)
def test_it_writes_the_example_and_says_what_to_type(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", template, "my runs/first"]) == 0
    files = TEMPLATES[template]
    assert content(tmp_path / "my runs" / "first") == {
        name: (EXAMPLES / file).read_text() for name, file in files.items()
    }
    script, *_ = files
    assert capsys.readouterr().out.splitlines() == [
        *(f"my runs/first/{name}" for name in files),
        f"Next: python 'my runs/first/{script}'",
    ]


def test_it_writes_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("")
    assert main(["new", "loop", str(tmp_path)]) == 0
    assert set(content(tmp_path)) == {"own.py", "train.py"}


@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_overwritten_and_nothing_else_written(
    link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "README.md"
    if link:
        own.symlink_to("nowhere")
    else:
        own.write_text("mine")
    assert main(["new", "trainer", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"fabric-lite new: '{own}' is there already, and nothing was written."
        " Choose another folder, or remove what is there.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert link or own.read_text() == "mine"


def test_all_files_in_the_way_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "loop", str(tmp_path)]) == 0
    assert main(["new", "learner", str(tmp_path)]) == 2
    assert f"'{tmp_path / 'train.py'}' is there already" in capsys.readouterr().err
    assert main(["new", "trainer", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["new", "trainer", str(tmp_path)]) == 2
    files = " and ".join(f"'{tmp_path / name}'" for name in TEMPLATES["trainer"])
    assert f"{files} are there already" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        assert main(["new", "loop", str(folder)]) == 2
        assert capsys.readouterr().err == (
            f"fabric-lite new: cannot write into '{folder}': {reason}. Choose another folder.\n"
        )


def test_an_unknown_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["new", "trianer", str(tmp_path)])
    message = capsys.readouterr().err.replace("'", "")  # since Python 3.12, the names have no quotes
    assert "invalid choice: trianer" in message
    assert "choose from trainer, loop, learner" in message
    assert list(tmp_path.iterdir()) == []
