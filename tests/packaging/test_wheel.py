"""The distributions: what is in them, and that the wheel does its work where nothing but its dependencies is installed.

All tests share one environment, because torch takes a while to install.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from dataclasses import dataclass
from email import message_from_string
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath

import pytest

from fabric_lite import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NAME = f"torch_fabric_lite-{__version__}"
CORE = {"torch", "lightning-utilities", "typing-extensions"}
TEMPLATES = {
    *(f"build_your_own_trainer/{name}" for name in ("README.md", "run.py", "trainer.py")),
    *("digits.py", "digits_learner.py"),
}
# What lies about in a folder that somebody works in.
JUNK = (
    "fabric_lite/__pycache__/fabric.cpython-311.pyc",
    "fabric_lite/cli/.new.py.swp",
    "fabric_lite/cli/new.py~",
    "fabric_lite/.DS_Store",
    "fabric_lite/.mypy_cache/3.10/cache.db",
    "examples/build_your_own_trainer/__pycache__/trainer.cpython-311.pyc",
    "examples/build_your_own_trainer/.mypy_cache/3.10/cache.db",
    "docs/.idea/workspace.xml",
    "build/site/index.html",
    "tests/.pytest_cache/README.md",
)
# What the processes of a test must not inherit. `PIP_*` stays: it says where the index is.
UNWANTED = ("LT_", "OMP_", "PET_", "PL_", "TORCHELASTIC_", "MASTER_", "SLURM_", "PYTHON", "RANK", "LOCAL_RANK", "WORLD")
# torch says so when it is imported.
WITHOUT_NUMPY = "ignore:Failed to initialize NumPy:UserWarning"


def clean_environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)} | more


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip; this one's works on it."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def pip(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.programs / "python"]
        return subprocess.run(
            [*map(str, command), *map(str, arguments)], env=clean_environment(), capture_output=True, text=True
        )

    def run(self, folder: Path, program: str, *arguments: object) -> str:
        """What a program prints that runs in a folder, every warning being an error."""
        done = subprocess.run(
            [str(self.programs / program), *map(str, arguments)],
            cwd=folder,
            env=clean_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS=f"error,{WITHOUT_NUMPY}"),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    def installed(self) -> dict[str, str]:
        """Names and versions of what is installed."""
        found = distributions(path=[str(path) for path in self.folder.rglob("site-packages")])
        return {each.name.lower().replace("_", "-"): each.version for each in found}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the three dependencies."""
    environment = Environment(tmp_path_factory.mktemp("bare"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment.folder)], check=True)
    assert environment.installed() == {}
    # Compiling all of torch takes longer than compiling what is imported.
    done = environment.pip("install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", *CORE)
    if done.returncode:
        pytest.skip(f"pip reaches no package index: {done.stderr.strip().splitlines()[-1]}")
    return environment


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository, those included that are about to be added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only git can tell the files of the repository from others, and this is no git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(bare: Environment, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution that it was built from, made as `make build` makes them."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in JUNK:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("junk")
    done = subprocess.run(
        [sys.executable, "-m", "build"], cwd=source, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, sdist = source / "dist" / f"{NAME}-py3-none-any.whl", source / "dist" / f"{NAME}.tar.gz"
    assert set((source / "dist").iterdir()) - {source / "dist" / ".gitignore"} == {wheel, sdist}
    return wheel, sdist


@pytest.fixture(scope="module")
def core(bare: Environment, built: tuple[Path, Path]) -> Environment:
    """The environment with the wheel: nothing came along with it."""
    before = bare.installed()
    done = bare.pip("--isolated", "install", "-q", "--no-index", built[0])
    assert done.returncode == 0, done.stderr
    assert bare.installed() == {**before, "torch-fabric-lite": __version__}
    return bare


def test_what_is_in_the_wheel(built: tuple[Path, Path], tracked: list[str]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        entry_points = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
        for file in TEMPLATES:
            assert wheel.read(f"fabric_lite/cli/templates/{file}") == (ROOT / "examples" / file).read_bytes()
    about = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert sorted(names) == sorted(
        {name for name in tracked if name.startswith("fabric_lite/")}
        | {f"fabric_lite/cli/templates/{name}" for name in TEMPLATES}
        | {*about, f"{NAME}.dist-info/licenses/LICENSE"}
    )
    assert "fabric_lite/py.typed" in names
    assert entry_points.split("\n")[:2] == ["[console_scripts]", "fabric-lite = fabric_lite.cli:main"]


def test_what_is_in_the_source_distribution(built: tuple[Path, Path], tracked: list[str]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {str(PurePosixPath(name).relative_to(NAME)) for name in archive.getnames()}
    of_the_repository = {name for name in tracked if name.startswith(".ci/") or name == ".pre-commit-config.yaml"}
    assert names == {*tracked, "PKG-INFO"} - of_the_repository


def test_what_it_says_of_itself(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        metadata = message_from_string(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = metadata.get_all("Requires-Dist", [])
    assert {re.split(r"[^\w-]", each)[0] for each in needed if "extra ==" not in each} == CORE
    assert set(metadata.get_all("Provides-Extra", [])) == {"dev", "metrics", "plot", "progress", "tensorboard"}
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_every_module_loads_with_the_core_dependencies_alone(core: Environment, tmp_path: Path) -> None:
    assert core.pip("check").stdout == "No broken requirements found.\n"
    script = """
        import importlib, pkgutil, sys
        from importlib.util import find_spec
        import fabric_lite

        for module in pkgutil.walk_packages(fabric_lite.__path__, "fabric_lite."):
            importlib.import_module(module.name)
        extras = ["matplotlib", "numpy", "rich", "tensorboard", "torchmetrics"]
        print([name for name in extras if find_spec(name)], fabric_lite.__file__)
    """
    absent, file = core.run(tmp_path, "python", "-c", textwrap.dedent(script)).split()
    assert absent == "[]"
    assert Path(file).is_relative_to(core.folder)


def test_each_missing_extra_is_named(core: Environment, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train_loss\n1,0.5\n")
    script = """
        import io, sys
        from fabric_lite import Learner
        from fabric_lite.callbacks import Metrics, Recorder
        from fabric_lite.callbacks.plotting import plot_metrics
        from fabric_lite.callbacks.progress import ProgressPrinter
        from fabric_lite.cli import main
        from fabric_lite.loggers import TensorBoardLogger
        import torch

        def said(function, *arguments):
            try:
                function(*arguments)
            except (ModuleNotFoundError, TypeError) as error:
                print(f"{type(error).__name__}: {error}")

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        said(plot_metrics, {"train": {"loss": [(1, 0.5)]}})
        said(lambda: TensorBoardLogger("logs").experiment)
        said(Metrics, "Accuracy")
        terminal = Terminal()
        data = [(torch.ones(2, 1), torch.ones(2, 1))] * 3
        learner = Learner(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, data=(data, data),
                          callbacks=[Recorder(), ProgressPrinter(terminal)], usedefaultcallbacks=False)
        learner.fit(2)
        print(terminal.getvalue().partition("\\n")[0], terminal.getvalue().count("pip install"))
        sys.stderr = sys.stdout
        print(main(["plot", "metrics.csv"]))
    """
    assert core.run(tmp_path, "python", "-c", textwrap.dedent(script)).splitlines() == [
        'ModuleNotFoundError: Drawing metrics needs the package matplotlib: pip install "torch-fabric-lite[plot]".',
        "ModuleNotFoundError: TensorBoardLogger needs the package tensorboard:"
        ' pip install "torch-fabric-lite[tensorboard]"',
        "TypeError: 'Accuracy' is no metric. Pass a function of predictions and targets, or an object with the methods"
        " `update`, `compute` and `reset`, such as those of the package torchmetrics:"
        ' pip install "torch-fabric-lite[metrics]".',
        'A progress bar needs the package rich: pip install "torch-fabric-lite[progress]". 1',
        'fabric-lite plot: Drawing metrics needs the package matplotlib: pip install "torch-fabric-lite[plot]".',
        "2",
    ]


def test_the_demo_runs_outside_the_repository(core: Environment, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "digits.py", tmp_path)
    check(core.run(tmp_path, "python", "digits.py", "--accelerator", "cpu", "--out", "out", "--epochs", 5))
    assert (tmp_path / "out" / "digits.ckpt").is_file()


def check(output: str) -> None:
    """It has learned, on the data that is there in any case."""
    assert output.count("scikit-learn is not installed: training on drawn digits\n") == 1
    assert re.search(r"^validation accuracy: (0\.9\d+|1\.0+)$", output, re.MULTILINE), output


def test_a_trainer_runs_where_it_was_written(core: Environment, tmp_path: Path) -> None:
    *files, what_next = core.run(tmp_path, "fabric-lite", "new", "trainer", "own").splitlines()
    assert sorted(files) == sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "own").iterdir())
    assert what_next == "Next: python own/run.py"
    for arguments in (["--epochs", 6], ["--epochs", 10, "--devices", 2]):
        check(core.run(tmp_path, "python", "own/run.py", "--accelerator", "cpu", *arguments))


def test_a_loop_and_a_learner_run_where_they_were_written(core: Environment, tmp_path: Path) -> None:
    script = """
        from fabric_lite.cli import main

        for arguments in (["new", "loop", "loop"], ["new", "learner", "learner"], ["new", "-h"], ["-h"], ["--version"]):
            try:
                main(arguments)
            except SystemExit as end:
                print("exit status", end)
    """
    printed = core.run(tmp_path, "python", "-c", textwrap.dedent(script))
    assert printed.startswith("loop/train.py\nNext: python loop/train.py\nlearner/train.py\nNext: python learner/")
    assert "usage: fabric-lite new [-h] {trainer,loop,learner} DIR\n" in printed
    assert set(re.findall(r"^    (\w+)", printed, re.MULTILINE)) >= {"consolidate", "graph", "new", "plot", "run"}
    assert printed.endswith(f"fabric-lite {__version__}\nexit status 0\n")
    # What it learns is looked at above: it is the demo.
    printed = core.run(tmp_path, "python", "loop/train.py", "--epochs", 1, "--accelerator", "cpu")
    assert "validation accuracy: " in printed
    check(core.run(tmp_path, "python", "learner/train.py", "--epochs", 4, "--accelerator", "cpu"))
