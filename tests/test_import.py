"""``import fabric_lite`` has no side effects, and takes nothing but the core dependencies.

The import runs in a fresh process, between two looks at everything global that an import could touch. The same looks
are taken around a module that touches all of it, which shows that they see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

LOOK_AROUND = """
    import importlib, json, logging, multiprocessing, os, random, signal, sys, threading, warnings
    import torch, torch.utils.data

    PLAIN = ([], logging.NOTSET, True, False)  # a logger that has merely been asked for

    def loggers():
        known = logging.Logger.manager.loggerDict
        named = {n: log for n, log in [*known.items(), ("root", logging.root)] if isinstance(log, logging.Logger)}
        state = {n: (list(log.handlers), log.level, log.propagate, log.disabled) for n, log in named.items()}
        return {n: s for n, s in state.items() if s != PLAIN}

    def children():
        try:
            return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT), "some"
        except (AttributeError, ChildProcessError):  # macOS got waitid with Python 3.13
            return "none"

    def look():
        return {
            "threads": threading.enumerate(),
            "system threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1,
            "processes": children(),
            "torch.compile": torch.compile,
            "torch.nn.Module": dict(vars(torch.nn.Module)),
            "torch.Tensor": dict(vars(torch.Tensor)),
            "torch.optim.Optimizer": dict(vars(torch.optim.Optimizer)),
            "DataLoader": dict(vars(torch.utils.data.DataLoader)),
            "loggers": loggers(),
            "warnings.filters": list(warnings.filters),
            "warnings": (warnings.formatwarning, warnings.showwarning, warnings.warn),
            "os.environ": dict(os.environ),
            "sys.path": list(sys.path),
            "hooks of the interpreter": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
            "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
            "default dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
            "random numbers": (random.getstate(), torch.get_rng_state().tolist()),
            "switches": (
                torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(),
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.benchmark,
                torch.get_num_threads(),
                multiprocessing.get_start_method(allow_none=True),
                torch.multiprocessing.get_sharing_strategy(),
            ),
            "device started": torch.cuda.is_initialized(),
        }

    look()  # whatever looking itself sets off is done before the first look that counts
    modules, before = set(sys.modules), look()
    importlib.import_module(sys.argv[1])
    after = look()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    print(json.dumps({
        "modules": sorted(set(sys.modules) - modules),
        "changed": {name: [repr(value)[:2000] for value in values] for name, values in changed.items()},
        "looked at": list(before),
    }))
"""
SABOTAGE = """
    import logging, multiprocessing, os, random, signal, subprocess, sys, threading, warnings
    import torch, torch.utils.data

    threading.Thread(target=threading.Event().wait, daemon=True).start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    torch.compile = lambda f: f
    torch.nn.Module.__setattr__ = object.__setattr__
    torch.Tensor.backward = None
    torch.optim.Optimizer.step = None
    torch.utils.data.DataLoader.__init__ = object.__init__
    logging.getLogger("lightning").addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    warnings.formatwarning = str
    os.environ["SABOTAGE"] = "1"
    sys.path.append("/nowhere")
    sys.excepthook = print
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_default_dtype(torch.float64)
    random.random()
    torch.set_grad_enabled(False)
"""
# `import torch` leaves these for later, and so do we: each costs more than our whole import may.
HEAVY = (
    "fsspec",
    "lightning",
    "matplotlib",
    "numpy",
    "rich",
    "sklearn",
    "tensorboard",
    "tensorboardX",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.utils.flop_counter",
    "torch.utils.tensorboard",
    "torchmetrics",
)
OPTIONAL = (
    *("accelerate", "click", "fsspec", "lightning", "matplotlib", "numpy", "pluggy", "pytest", "pytorch_lightning"),
    *("rich", "scipy", "sklearn", "tensorboard", "tensorboardX", "torchmetrics", "tqdm"),
)


def run(script: str, *args: str, folder: Path = ROOT) -> Any:
    """What ``script`` prints as JSON, run in a new process that can import from ``folder`` (and fabric_lite)."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return run(LOOK_AROUND, "fabric_lite")


def test_the_import_changes_nothing_global(seen: dict[str, Any]) -> None:
    assert seen["changed"] == {}


def test_the_import_leaves_heavy_modules_for_later(seen: dict[str, Any]) -> None:
    assert "fabric_lite" in seen["modules"]
    assert [m for m in seen["modules"] if any(f"{m}.".startswith(f"{heavy}.") for heavy in HEAVY)] == []


def test_a_module_that_changes_all_of_it_is_seen(tmp_path: Path) -> None:
    (tmp_path / "sabotage.py").write_text(textwrap.dedent(SABOTAGE))
    seen = run(LOOK_AROUND, "sabotage", folder=tmp_path)
    assert set(seen["looked at"]) - set(seen["changed"]) == {"device started"}


def test_every_module_loads_with_the_core_dependencies_alone() -> None:
    script = '''
        import importlib, json, pkgutil, sys, warnings
        from importlib.machinery import PathFinder

        class Installed:
            """The path finder of a machine that lacks the packages of argv."""

            def find_spec(self, name, path=None, target=None):
                absent = name.partition(".")[0] in sys.argv[1:]
                return None if absent else PathFinder.find_spec(name, path, target)

        sys.meta_path[:] = [Installed() if finder is PathFinder else finder for finder in sys.meta_path]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it misses numpy
            import torch
        import fabric_lite
        names = ["fabric_lite", *(m.name for m in pkgutil.walk_packages(fabric_lite.__path__, "fabric_lite."))]
        failed = {}
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                failed[name] = str(error)
        print(json.dumps({"failed": failed, "loaded": names, "present": sorted(set(sys.argv[1:]) & set(sys.modules))}))
    '''
    result = run(script, *OPTIONAL)
    assert result["failed"] == {}
    assert result["present"] == []
    assert "fabric_lite.utilities" in result["loaded"]
