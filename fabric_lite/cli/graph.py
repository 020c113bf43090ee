"""``fabric-lite graph``: in which order callbacks run, and why."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections.abc import Mapping, Sequence, Set
from types import ModuleType
from typing import Any

from fabric_lite.cli._errors import CommandError
from fabric_lite.cli._target import loaded
from fabric_lite.fabric.fabric import _CREATORS
from fabric_lite.hooks import Callbacks
from fabric_lite.permissions import CallbackGraph, CallbackGraphError, is_guarded

_VALUES = (str, bytes, bool, int, float, complex, Mapping, Sequence, Set, ModuleType, type(None))
_WANTED = (
    "Name a callback, a list or tuple of them, a Fabric, or a function without arguments that returns one of these."
)


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "graph",
        help="show in which order callbacks run, and why",
        description="Checks callbacks against each other, without running them; prints their order with the reasons.",
        epilog="The exit status is 1 if the callbacks cannot work together.",
    )
    parser.add_argument(
        "target",
        metavar="path/to/module.py:name",
        help="a callback, a list of them, a Fabric, or a function that returns one of these",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--mermaid", action="store_true", help="print a Mermaid flowchart instead")
    form.add_argument("--dot", action="store_true", help="print a digraph for Graphviz instead")
    form.add_argument("--svg", metavar="FILE", help="draw it into a file instead; needs the extra `plot`")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the callbacks and show their graph.

    Returns:
        0, or 1 if they cannot work together.

    Raises:
        CommandError: If there is nothing to show.
    """
    try:
        with loaded(arguments.target) as found:
            graph = graph_of(found, arguments.target.rpartition(":")[2])
    except CallbackGraphError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.svg is not None:
        from fabric_lite.cli._draw import write_svg

        write_svg(graph, arguments.svg)
    elif arguments.mermaid or arguments.dot:
        print(graph.to_mermaid() if arguments.mermaid else graph.to_dot(), end="")
    else:
        print(graph.explain())
    return 0


def graph_of(found: Any, name: str) -> CallbackGraph:
    """The graph of what a name stands for.

    Args:
        found: The object.
        name: Its name, for the error messages.

    Raises:
        CallbackGraphError: If the callbacks cannot work together.
        CommandError: If it holds no callbacks.
    """
    if inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial):
        found, name = _called(found, name), f"{name}()"
    held = getattr(found, "callbacks", found)  # of a Fabric
    if isinstance(held, Callbacks):
        graph: CallbackGraph = held.graph
        return graph
    several = isinstance(found, (list, tuple))
    callbacks = list(found) if several else [found]
    for place, callback in enumerate(callbacks):
        _check(callback, f"{name}[{place}]" if several else name, alone=not several)
    return CallbackGraph(callbacks, _CREATORS)


def _called(function: Any, name: str) -> Any:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature that can be read
        parameters = {}.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise CommandError(
            f"{name!r} cannot be called without {', '.join(map(repr, needed))}; give defaults, or name a function that"
            " calls it."
        )
    return function()


def _check(callback: Any, name: str, alone: bool) -> None:
    """Raise if this is no callback. Any object may be one: refused is what was more likely meant otherwise."""
    if is_guarded(callback):
        return
    if inspect.isclass(callback):
        raise CommandError(f"{name} is the class {callback.__name__}; write {callback.__name__}(...) instead.")
    if isinstance(callback, _VALUES) or inspect.isroutine(callback):
        raise CommandError(f"{name} is {_shown(callback)}, which is no callback. {_WANTED}")
    if alone and not any(hook.startswith("on_") for hook in dir(callback)):
        raise CommandError(f"{name} is {_shown(callback)}, which has no method called on_... . {_WANTED}")


def _shown(value: Any) -> str:
    """A value, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
