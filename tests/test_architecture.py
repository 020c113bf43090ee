"""The shape of the house, held by tests: layers, cycles, what stays free of torch, public names, sizes.

Each rule is a function from a package's modules to a list of complaints; it is run over fabric_lite, where it must find
nothing, and over a small made-up package that breaks the rule, where it must name the culprit.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the top down: a module imports from its own row and from the rows under it.
LAYERS = (
    ("__init__", "__main__", "cli", "testing"),
    ("fabric", "learner"),
    ("wrappers", "connector"),
    ("strategies",),
    ("checkpoint", "callbacks"),
    ("hooks", "permissions", "events", "accelerators", "plugins", "data", "loggers"),
    ("utilities", "__about__"),
)
PUBLIC = [
    "AbstractTrainingPhase",
    "AbstractValidationPhase",
    "Callback",
    "CallbackGraph",
    "CallbackGraphError",
    "CancelEpochException",
    "CancelFittingException",
    "CancelStepException",
    "ConditionalCallback",
    "CyclicDependencyError",
    "Event",
    "Fabric",
    "FitException",
    "Learner",
    "MissingStateError",
    "NoConflict",
    "Phase",
    "Protected",
    "ProtectedException",
    "Read",
    "RunFirst",
    "SerialExecutor",
    "State",
    "ThreadedExecutor",
    "TrainingPhase",
    "Unresolvable",
    "ValidationPhase",
    "Write",
    "WriteConflictError",
    "is_wrapped",
    "seed_everything",
    "throttle",
]
TORCH_FREE = ("hooks", "permissions")
TORCH_FREE_MAY_IMPORT = (*TORCH_FREE, "events")
REQUIRED = ("torch", "lightning_utilities", "typing_extensions")
# The oldest supported Python does not know the newest modules.
STDLIB = sys.stdlib_module_names | {"annotationlib", "tomllib"}
FILE_LINES, FUNCTION_LINES = 420, 62

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
GUARDS = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@dataclass(frozen=True)
class Import:
    """One imported module; ``deferred`` when the import does not run while the importing module is loaded."""

    target: str
    line: int
    deferred: bool


@dataclass(frozen=True)
class Module:
    """One source file of a package, under the dotted name that an import would use."""

    name: str
    path: Path

    @cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


Package = dict[str, Module]


def read(root: Path) -> Package:
    """The modules of the package in the folder ``root``, by dotted name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path)
    return modules


def statements(node: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement under ``node``, with whether it waits for a call or a type checker."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, deferred
    deferred = deferred or isinstance(node, (*FUNCTIONS, ast.Lambda))
    skipped = node.body if isinstance(node, ast.If) and ast.unparse(node.test) in GUARDS else []
    for child in ast.iter_child_nodes(node):
        yield from statements(child, deferred or child in skipped)


def imports(module: Module, package: Package) -> Iterator[Import]:
    """What ``module`` imports, relative names resolved, ``from a import b`` as ``a.b`` where that is a module."""
    for statement, deferred in statements(module.tree):
        if isinstance(statement, ast.Import):
            targets = [alias.name for alias in statement.names]
        else:
            base = statement.module or ""
            if statement.level:
                above = statement.level - module.is_package
                start = module.name.rsplit(".", above)[0] if above else module.name
                base = f"{start}.{base}".rstrip(".")
            targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in package else base for a in statement.names]
        for target in dict.fromkeys(targets):
            yield Import(target, statement.lineno, deferred)


def internal(module: Module, package: Package) -> Iterator[Import]:
    top = module.name.partition(".")[0]
    return (i for i in imports(module, package) if i.target.partition(".")[0] == top)


def room(name: str) -> str:
    """The part of a dotted name that the list of layers speaks of."""
    return [*name.split("."), "__init__"][1]


def layer_problems(package: Package) -> list[str]:
    """Modules without a layer, and imports that go up."""
    height = {name: -depth for depth, names in enumerate(LAYERS) for name in names}
    found = [
        f"{name} belongs to no layer: add {room(name)!r} to LAYERS in tests/test_architecture.py, at its height"
        for name in package
        if room(name) not in height
    ]
    for module in package.values():
        for i in internal(module, package):
            here, there = height.get(room(module.name)), height.get(room(i.target))
            if there is None and i.target not in package:
                found.append(f"{module.name}:{i.line} imports {i.target}, which belongs to no layer")
            elif here is not None and there is not None and there > here:
                found.append(
                    f"{module.name}:{i.line} imports {i.target}, which is above it: imports go down only "
                    f"(pass the object in, or declare what is needed of it as a Protocol)"
                )
    return found


def cycle_problems(package: Package) -> list[str]:
    """The first cycle among imports that run while a module is loaded."""
    graph = {
        name: {i.target for i in internal(module, package) if not i.deferred and i.target != name}
        for name, module in package.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["import cycle: " + " -> ".join(reversed(error.args[1]))]
    return []


def torch_problems(package: Package) -> list[str]:
    """Imports that would bring torch, or anything not allowed, into the rooms that stay free of it."""
    found = []
    for module in package.values():
        if room(module.name) not in TORCH_FREE_MAY_IMPORT:
            continue
        for i in imports(module, package):
            top = i.target.partition(".")[0]
            own = top == module.name.partition(".")[0]
            if not (room(i.target) in TORCH_FREE_MAY_IMPORT if own else top in STDLIB or top == "typing_extensions"):
                found.append(
                    f"{module.name}:{i.line} imports {i.target}: {', '.join(TORCH_FREE)} and what they import "
                    f"take the standard library, typing_extensions and {', '.join(TORCH_FREE_MAY_IMPORT)} only"
                )
    return found


def extra_problems(package: Package) -> list[str]:
    """Third-party imports at module level of something that a plain install does not bring along."""
    found = []
    for module in package.values():
        known = {*STDLIB, *REQUIRED, module.name.partition(".")[0]}
        found += [
            f"{module.name}:{i.line} imports {i.target} when it is loaded: import it where it is used"
            for i in imports(module, package)
            if not i.deferred and i.target.partition(".")[0] not in known
        ]
    return found


def isort_style(name: str) -> tuple[int, str]:
    """CONSTANTS, Classes, the rest: the order that ``ruff check --fix`` puts ``__all__`` in (RUF022)."""
    return (0 if len(name) > 1 and name.isupper() else 1 if name[0].isupper() else 2), name


def name_problems(module: ModuleType, is_package: bool) -> list[str]:
    """Where ``__all__`` and the names that can be imported from ``module`` differ."""
    listed = getattr(module, "__all__", None)
    if listed is None and not is_package:
        return []
    listed = list(listed or ())
    found = []
    if listed != sorted(set(listed), key=isort_style):
        found.append(f"{module.__name__}.__all__ is not sorted: {sorted(set(listed), key=isort_style)}")
    found += [f"{module.__name__}.__all__ lists {n!r}, which is not there" for n in listed if not hasattr(module, n)]
    if is_package:
        found += [
            f"{module.__name__}.{name} can be imported but is not in __all__: list it, or give it an underscore"
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in listed
            if not isinstance(value, ModuleType) and type(value).__module__ != "__future__"
        ]
    return found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of a function without its docstring, blank lines and comments."""
    docstring: range = range(0)
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        docstring = range(first.lineno, (first.end_lineno or 0) + 1)
    span = range(function.lineno, (function.end_lineno or 0) + 1)
    return sum(
        n not in docstring and not lines[n - 1].lstrip().startswith("#") and lines[n - 1].strip() != "" for n in span
    )


def size_problems(package: Package) -> list[str]:
    """Files and functions that have grown past one subject."""
    found = []
    for module in package.values():
        lines = module.source.splitlines()
        if len(lines) >= FILE_LINES:
            found.append(
                f"{module.name} has {len(lines)} lines, the house keeps under {FILE_LINES}: split it by subject"
            )
        for node in ast.walk(module.tree):
            if isinstance(node, FUNCTIONS) and (count := code_lines(node, lines)) >= FUNCTION_LINES:
                found.append(
                    f"{module.name}:{node.lineno} {node.name} has {count} lines of code, "
                    f"the house keeps under {FUNCTION_LINES}"
                )
    return found


FABRIC_LITE = read(ROOT / "fabric_lite")


@pytest.mark.parametrize(
    "problems",
    [layer_problems, cycle_problems, torch_problems, extra_problems, size_problems],
    ids=lambda f: f.__name__,
)
def test_the_package_keeps_to_the_rules(problems: Callable[[Package], list[str]]) -> None:
    assert problems(FABRIC_LITE) == []


@pytest.mark.parametrize("name", FABRIC_LITE)
def test_public_names_do_not_drift(name: str) -> None:
    assert name_problems(importlib.import_module(name), FABRIC_LITE[name].is_package) == []


def test_names_of_the_front_door() -> None:
    import fabric_lite

    assert fabric_lite.__all__ == PUBLIC


def test_version_is_the_one_that_is_built() -> None:
    import fabric_lite
    from fabric_lite import __about__

    assert fabric_lite.__version__ == __about__.__version__
    assert f'__version__ = "{__about__.__version__}"' in (ROOT / "fabric_lite" / "__about__.py").read_text()


@pytest.mark.parametrize("name", [name for name in TORCH_FREE if f"fabric_lite.{name}" in FABRIC_LITE])
def test_imports_where_torch_cannot_be_imported(name: str) -> None:
    script = f"""
        import importlib, pkgutil, sys, types
        sys.modules["torch"] = None
        package = sys.modules["fabric_lite"] = types.ModuleType("fabric_lite")
        package.__path__ = [{str(ROOT / "fabric_lite")!r}]
        room = importlib.import_module("fabric_lite.{name}")
        for module in pkgutil.walk_packages(getattr(room, "__path__", []), room.__name__ + "."):
            importlib.import_module(module.name)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The rules find what they are there to find.


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., Package]:
    """Writes a package called ``house`` from a mapping of path to source, and reads it."""

    def build(files: dict[str, str]) -> Package:
        for name, source in {"__init__.py": "", **files}.items():
            path = tmp_path / "house" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return read(tmp_path / "house")

    return build


@pytest.mark.parametrize(
    "line",
    [
        "from house.fabric import Fabric",
        "from house import fabric",
        "import house.fabric",
        "from ..fabric import Fabric",
        "from .. import fabric",
        "def f():\n    from house.fabric import Fabric",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..fabric import Fabric",
        "class A:\n    try:\n        from house.fabric import Fabric\n    except ImportError:\n        Fabric = None",
    ],
)
def test_an_upward_import_is_found_however_it_is_written(house: Callable[..., Package], line: str) -> None:
    package = house({"fabric.py": "", "utilities/__init__.py": "", "utilities/seed.py": line})
    (problem,) = layer_problems(package)
    assert problem.startswith(
        f"house.utilities.seed:{line.count(chr(10)) + 1 if 'try' not in line else 3} imports house.fabric, "
    )
    assert "above it" in problem


def test_a_name_of_the_front_door_is_above_everything_else(house: Callable[..., Package]) -> None:
    (problem,) = layer_problems(house({"__init__.py": "", "fabric.py": "from house import __version__"}))
    assert problem.startswith("house.fabric:1 imports house, which is above it")


def test_imports_within_a_layer_and_down_are_fine(house: Callable[..., Package]) -> None:
    package = house(
        {
            "__init__.py": "from house.fabric import Fabric",
            "fabric.py": "from . import utilities\nfrom .hooks import a\nimport torch",
            "hooks/__init__.py": "from .a import b\nfrom house.events import c",
            "hooks/a.py": "b = 1",
            "events.py": "",
            "utilities/__init__.py": "",
        }
    )
    assert layer_problems(package) == []
    assert cycle_problems(package) == []


def test_a_module_without_a_layer_is_named(house: Callable[..., Package]) -> None:
    (problem,) = layer_problems(house({"helpers/__init__.py": "", "fabric.py": "from house.helpers import x"}))
    assert (
        problem
        == "house.helpers belongs to no layer: add 'helpers' to LAYERS in tests/test_architecture.py, at its height"
    )


def test_an_import_of_nothing_is_named(house: Callable[..., Package]) -> None:
    assert layer_problems(house({"fabric.py": "from house.gone import x"})) == [
        "house.fabric:1 imports house.gone, which belongs to no layer"
    ]


def test_a_cycle_is_spelt_out_in_the_direction_of_the_imports(house: Callable[..., Package]) -> None:
    files = {"plugins/__init__.py": "", "plugins/a.py": "from .b import x", "plugins/b.py": "from . import c"}
    (problem,) = cycle_problems(house({**files, "plugins/c.py": "import house.plugins.a"}))
    _, _, chain = problem.partition("import cycle: ")
    steps = [step.removeprefix("house.plugins.") for step in chain.split(" -> ")]
    assert steps[0] == steps[-1]
    assert set(pairwise(steps)) == {("a", "b"), ("b", "c"), ("c", "a")}


def test_an_import_from_the_own_package_is_half_a_cycle(house: Callable[..., Package]) -> None:
    package = house({"plugins/__init__.py": "from .a import x", "plugins/a.py": "from house.plugins import y"})
    (problem,) = cycle_problems(package)
    assert "house.plugins -> house.plugins.a" in problem
    assert "house.plugins.a -> house.plugins" in problem


@pytest.mark.parametrize(
    "line",
    ["def f():\n    from .a import x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import x"],
)
def test_an_import_that_does_not_run_at_loading_makes_no_cycle(house: Callable[..., Package], line: str) -> None:
    package = house({"plugins/__init__.py": "", "plugins/a.py": "from .b import x", "plugins/b.py": line})
    assert cycle_problems(package) == []


@pytest.mark.parametrize(
    ("files", "culprit"),
    [
        ({"hooks/__init__.py": "import torch"}, "house.hooks:1 imports torch"),
        ({"permissions.py": "def f():\n    from torch import nn"}, "house.permissions:2 imports torch"),
        ({"hooks/__init__.py": "import lightning_utilities"}, "house.hooks:1 imports lightning_utilities"),
        (
            {"hooks/__init__.py": "from ..utilities import x", "utilities.py": ""},
            "house.hooks:1 imports house.utilities",
        ),
        ({"hooks/__init__.py": "from ..events import x", "events.py": "import torch"}, "house.events:1 imports torch"),
    ],
)
def test_torch_in_the_hooks_is_found(house: Callable[..., Package], files: dict[str, str], culprit: str) -> None:
    (problem,) = torch_problems(house(files))
    assert problem.startswith(culprit + ": ")


def test_the_standard_library_is_welcome_in_the_hooks(house: Callable[..., Package]) -> None:
    source = (
        "from __future__ import annotations\nimport os.path\nfrom typing_extensions import Self\nfrom ..events import x"
    )
    assert torch_problems(house({"hooks/__init__.py": source, "events.py": "", "fabric.py": "import torch"})) == []


def test_an_optional_package_at_module_level_is_found(house: Callable[..., Package]) -> None:
    package = house({"loggers.py": "import torch, rich.progress\ndef f():\n    import tensorboard"})
    assert extra_problems(package) == [
        "house.loggers:1 imports rich.progress when it is loaded: import it where it is used"
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("A = 1\nb = 2\n__all__ = ['b', 'A']", "house.__all__ is not sorted: ['A', 'b']"),
        ("A = 1\n__all__ = ['A', 'A']", "house.__all__ is not sorted: ['A']"),
        ("__all__ = ['Gone']", "house.__all__ lists 'Gone', which is not there"),
        ("A = 1\n__all__ = []", "house.A can be imported but is not in __all__: list it, or give it an underscore"),
        ("A = 1", "house.A can be imported but is not in __all__: list it, or give it an underscore"),
    ],
)
def test_drifted_names_are_found(source: str, problem: str) -> None:
    module = ModuleType("house")
    exec(source, vars(module))
    assert name_problems(module, is_package=True) == [problem]


def test_names_that_agree(house: Callable[..., Package]) -> None:
    module = ModuleType("house")
    exec(
        "from __future__ import annotations\nimport os\nTHE = Any = any_ = _x = 1\n__all__ = ['THE', 'Any', 'any_']",
        vars(module),
    )
    assert name_problems(module, is_package=True) == []
    exec("other = 1", vars(module))
    assert name_problems(module, is_package=False) == []


def test_what_has_grown_too_large_is_found(house: Callable[..., Package]) -> None:
    body = "    x = 1\n" * (FUNCTION_LINES - 2)
    package = house({"fabric.py": f"def long():\n    x = 1\n{body}", "learner.py": "x = 1\n" * FILE_LINES})
    assert size_problems(package) == [
        f"house.fabric:1 long has {FUNCTION_LINES} lines of code, the house keeps under {FUNCTION_LINES}",
        f"house.learner has {FILE_LINES} lines, the house keeps under {FILE_LINES}: split it by subject",
    ]


def test_docstrings_comments_and_blank_lines_are_not_code(house: Callable[..., Package]) -> None:
    talk = '    """One.\n\n    Two.\n    """\n' + "    # why\n\n" * FUNCTION_LINES
    assert size_problems(house({"fabric.py": f"def f():\n{talk}    return 1\n"})) == []
