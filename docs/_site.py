"""Brings what is kept beside the documentation into the site: examples, benchmarks, changelog.

On GitHub, a page links to ``../examples/digits.py``. In the site, that is a page with the source of the file. And the
words behind the backticks that are for the tests become titles here.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)#\s]+)")
WORDS = re.compile(r"^(```\w+) (?:file=(\S+)|run)$", re.MULTILINE)
FENCED = re.compile(r"^(`{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def beside() -> dict[str, Path]:
    """The files beside the documentation, by their place in the site."""
    benchmarks = ROOT / "benchmarks"
    found = {"CHANGELOG.md": ROOT / "CHANGELOG.md", "benchmarks/results.md": benchmarks / "README.md"}
    for file in (*benchmarks.glob("*.svg"), *(ROOT / "examples").rglob("*")):
        if file.name == "README.md" or file.suffix in (".py", ".svg"):
            found[re.sub(r"\.py$", ".md", file.relative_to(ROOT).as_posix())] = file
    return found


def place(file: Path) -> str | None:
    """Where in the site a file of the repository is; None if it is not there."""
    docs = ROOT / "docs"
    if docs in file.parents:
        return file.relative_to(docs).as_posix()
    if file == ROOT / "README.md":
        return "index.md"
    return next((where for where, other in beside().items() if other == file), None)


def title(words: re.Match[str]) -> str:
    """The beginning of a block of code, as the site wants it."""
    return f'{words[1]} title="{words[2]}"' if words[2] else words[1]


def source_page(file: Path) -> str:
    """A page with the source of a file."""
    return f"# {file.relative_to(ROOT / 'examples').as_posix()}\n\n````python\n{file.read_text('utf-8')}````\n"


def on_config(config):
    """Put the examples into the navigation."""
    folders = {}
    for where, file in beside().items():
        if where.startswith("examples/"):
            folders.setdefault(file.parent.name, {})["" if file.name == "README.md" else file.name] = where
    (examples,) = (entry for entry in config.nav if "Examples" in entry)
    sections = {
        folder: [{name: pages[name]} if name else pages[name] for name in sorted(pages)]
        for folder, pages in sorted(folders.items())
    }
    examples["Examples"] = sections.pop("examples") + [{folder: pages} for folder, pages in sections.items()]
    return config


def on_files(files, config):
    """Add the files from beside the documentation."""
    from mkdocs.structure.files import File

    for where, file in beside().items():
        if file.suffix == ".py":
            files.append(File.generated(config, where, content=source_page(file)))
        else:
            files.append(File.generated(config, where, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links between files of the repository lead to their pages in the site."""
    here = page.file.src_uri
    file = beside().get(here, ROOT / "docs" / here)

    def lead(link: re.Match[str]) -> str:
        target = place(Path(os.path.normpath(file.parent / link[2])))
        return link[0] if target is None else link[1] + posixpath.relpath(target, posixpath.dirname(here) or ".")

    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [LINK.sub(lead, markdown[end : block.start()]), WORDS.sub(title, block[0], count=1)]
        end = block.end()
    return "".join([*parts, LINK.sub(lead, markdown[end:])])
