"""Draws the picture of the house from the list that ``tests/test_architecture.py`` holds the imports to.

``python docs/_layers.py`` writes it anew. No text stands outside of a box, and each box has a ground of its own, so
that the picture reads on a light page and on a dark one.
"""

from __future__ import annotations

import ast
import html
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "assets" / "layers.svg"

# What each row of the list is, from the top down.
ROWS = (
    "the front door and the tools around the package",
    "the two things that a user holds",
    "what setup returns · arguments and environment become one plan",
    "one device, DDP, FSDP2, tensor parallel, and how processes start",
    "objects to files and back · the built-in callbacks",
    "the hook bus, declarations, events · hardware, precision, files · data, loggers",
    "torch and the standard library only",
)
TORCH_FREE = ("hooks", "permissions", "events")
WIDTH, HEIGHT, GAP, LEFT = 760, 62, 8, 12


def layers() -> tuple[tuple[str, ...], ...]:
    """The list, read without running the tests."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text("utf-8"))
    (found,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    return ast.literal_eval(found)


def draw(rows: tuple[tuple[str, ...], ...]) -> str:
    """The picture as SVG."""
    height = len(rows) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" role="img">',
        "<title>The layers of fabric_lite: imports go down only</title>",
    ]
    for index, (names, text) in enumerate(zip(rows, ROWS, strict=True)):
        y = index * (HEIGHT + GAP)
        parts += [
            f'<rect x="0" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#3949ab"/>',
            f'<text x="{LEFT}" y="{y + 19}" font-size="13" fill="#ffffff">'
            f"{len(rows) - 1 - index} · {html.escape(text)}</text>",
        ]
        x = LEFT
        for name in names:
            width = round(len(name) * 8.4) + 16
            ground = "#ffe0b2" if name in TORCH_FREE else "#e8eaf6"
            parts += [
                f'<rect x="{x}" y="{y + 28}" width="{width}" height="26" rx="4" fill="{ground}"/>',
                f'<text x="{x + width / 2:g}" y="{y + 46}" font-size="14" font-family="monospace" text-anchor="middle"'
                f' fill="#1a1a2e">{name}</text>',
            ]
            x += width + GAP
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(draw(layers()), encoding="utf-8")
