"""What the documentation site is given beside the pages in docs/, as hooks of MkDocs.

The command line, the columns of tables and the lists of public names are made from the program
itself, so that they are never out of date. A file of the repository that a page links to, outside
of docs/, is copied into the site under `repository/`, Markdown as a page of its own. A notebook is
a page beside its file.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from experiments.cli import commands
from experiments.columns import dictionary
from experiments.runs.stage_names import STAGE_NAMES
from tools.site_notebooks import page_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

COMMANDS = {
    "A run and its stages": [f"{name} digits" for name in ("run", *STAGE_NAMES)],
    "More about a finished run": [
        *("rank-correlation digits", "rescore digits", "validate digits", "layers digits"),
        *("drift digits", "compare-noise digits", "atlas digits", "remedies digits"),
        *("finetune digits", "student digits", "figure-one", "gallery", "compare", "columns"),
    ],
    "Your own model, images, scores and predictions": [
        *("score --model x", "merge", "analyse --scores x"),
    ],
    "The paper's results": ["table-one", "fit-paper", "reproduce"],
    "Speed and memory": [
        f"benchmark {subject}" for subject in ("curvature", "analog", "load", "costs")
    ],
    "Presets": ["presets"],
}
"""Every command, under the headings of its page, with what `--help` needs in front of it."""

_COLUMNS = "84"
"""Characters of a line of help: as many as a page has room for in a window of 1280 pixels."""

_DOCTEST = re.compile(r"^(?P<indent> *)>>> (?:.*\n?)(?:(?P=indent).*\S.*\n?)*", re.MULTILINE)
_GROUP = "\n\nFlags"
_ENTRY = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)
_SHORT = re.compile(r"<code>(?=[^<\n]{1,32}</code>)")
_PICTURE = re.compile(r'<img [^>]*src="(?P<file>[^"]+)"[^>]*>')
_COMMAND_LINE = "<!-- the command line -->"
_COLUMNS_OF_TABLES = "<!-- the columns -->"
_NAMES = re.compile(r"<!-- names of ([\w.]+) -->")
_LINK = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)"
    r"|(?P<mark>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.DOTALL,
)
"""A link or a picture, or code, in which nothing is a link."""


def command_line() -> str:
    """The help of every command, as Markdown; flags that a command shares with `run` once."""
    parts = [f"```text\n{_said(['--help'])}\n```"]
    of_run = set(_groups("run digits")[1:])
    for heading, lines in COMMANDS.items():
        parts.append(f"## {heading}")
        for line in lines:
            name = line.removesuffix(" digits").removesuffix(" x")
            groups = _groups(line)
            shown = [group for group in groups if name == "run" or group not in of_run]
            parts.append(f"### {name}\n\n```text\n{_GROUP.join(shown)}\n```")
            if len(shown) < len(groups):
                parts.append("The other flags are those of [`run`](#run).")
    return "\n\n".join(parts)


def _groups(line: str) -> list[str]:
    """The help of a command: what it does, then its groups of flags."""
    asked = [line] if line == "presets" else [*line.split(), "--help"]
    return _said(asked).split(_GROUP)


def _said(arguments: list[str]) -> str:
    """What a command prints."""
    printed = io.StringIO()
    with patch.dict(os.environ, COLUMNS=_COLUMNS), redirect_stdout(printed):
        code = commands.run(arguments)
    if code:
        raise ValueError(f"python -m experiments {' '.join(arguments)} ended with {code}")
    return printed.getvalue().strip()


def public_names(package: str) -> list[str]:
    """Names that a package shows, without its namespaces, with the package in front."""
    module = importlib.import_module(package)
    shown = getattr(module, "__all__", None) or _defined(module)
    return [f"{package}.{name}" for name in shown if f"{package}.{name}" not in NAMESPACES]


def _defined(module: ModuleType) -> list[str]:
    """The public functions and classes that a module without `__all__` defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


NAMESPACES = [
    "jaxcurv",
    *(
        f"jaxcurv.{name}"
        for name in ("estimators", "margins", "data", "models", "training", "engine")
    ),
    "bridge",
    *(
        f"bridge.{name}"
        for name in ("analysis", "chips", "graphs", "jax_chips", "routing", "weights")
    ),
]
"""Packages and modules whose names are public. A name that several show is documented once."""


def documented() -> dict[str, list[str]]:
    """The names that each namespace's page documents: those that no earlier one has shown.

    A class or function is known again by its place in the code, other values by identity.
    """
    seen: set[Any] = set()
    found: dict[str, list[str]] = {}
    for package in ("jaxcurv", "bridge", *NAMESPACES):
        if package in found:
            continue
        found[package] = []
        for path in public_names(package):
            name = path.rpartition(".")[2]
            value = getattr(importlib.import_module(package), name)
            named = hasattr(value, "__qualname__")
            place = (value.__module__, value.__qualname__) if named else id(value)
            if place not in seen:
                seen.add(place)
                found[package].append(path)
    return found


def with_made_parts(markdown: str) -> str:
    """A page with its marks replaced by what the program says."""
    if _COMMAND_LINE in markdown:
        markdown = markdown.replace(_COMMAND_LINE, command_line())
    if _COLUMNS_OF_TABLES in markdown:
        _, _, tables = dictionary.markdown().partition("\n")  # the page has its heading
        markdown = markdown.replace(_COLUMNS_OF_TABLES, tables.strip())

    return _NAMES.sub(lambda match: _reference(documented()[match[1]]), markdown)


def _reference(paths: list[str]) -> str:
    """A list of names, each with what it is in a sentence, then the documentation of each."""
    rows, entries = [], []
    for path in paths:
        package, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(package), name)
        place, options = path, ""
        if getattr(value, "__module__", "") == path:  # which would show the module of that name
            place = f"{path}.{name}"
            options = f"\n    options:\n      heading: {path}\n      toc_label: {name}"
        first = (value.__doc__ or "").strip().partition("\n\n")[0] if callable(value) else ""
        rows.append(f"- [`{name}`](#{place})" + f": {' '.join(first.split())}" * bool(first))
        entries.append(f"::: {place}{options}")
    return "\n\n".join(["\n".join(rows), *entries])


def fenced(docstring: str) -> str:
    """A docstring with a fence around each doctest, which ends at an empty line."""

    def fence(match: re.Match[str]) -> str:
        indent = match["indent"]
        return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"

    return _DOCTEST.sub(fence, docstring)


def one_each(docstring: str) -> str:
    """A docstring whose entries for several names, `a, b: text`, are an entry for each name.

    So that the site shows each with its own type and default.
    """

    def divided(match: re.Match[str]) -> str:
        names = match["names"].split(", ")
        return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in names)

    return _ENTRY.sub(divided, docstring)


def links(markdown: str) -> Iterator[str]:
    """The targets of a page's links and pictures, code left aside."""
    return (match["target"] for match in _LINK.finditer(markdown) if not match["code"])


def linked_files() -> dict[str, Path]:
    """Files outside of docs/ that the pages lead to, by their place in the site."""
    waiting, found = sorted(DOCS.rglob("*.md")), dict[str, Path]()
    while waiting:
        page = waiting.pop()
        for target in links(page.read_text()):
            path = _target(page, target)
            if path is None or path.is_relative_to(DOCS) or not path.is_file():
                continue
            place = f"repository/{path.relative_to(ROOT).as_posix()}"
            if place not in found:
                found[place] = path
                waiting += [path] * (path.suffix == ".md")
    return found


def _target(page: Path, target: str) -> Path | None:
    """The file that a link names; None for an address or a place in the page."""
    name = target.partition("#")[0]
    if not name or "://" in name or name.startswith("mailto:"):
        return None
    return (page.parent / name).resolve()


def with_links_of_the_site(markdown: str, page: Path, place: str) -> str:
    """A page whose links lead to where the site has the files.

    Args:
      markdown: its text.
      page: its file.
      place: its place in the site.
    """

    def moved(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        mark, text, target = match["mark"], match["text"], match["target"]
        path = _target(page, target)
        if path is None:
            return match[0]
        if path.is_dir() and not path.is_relative_to(DOCS):
            return text
        there = (
            path.relative_to(DOCS).as_posix()
            if path.is_relative_to(DOCS)
            else f"repository/{path.relative_to(ROOT).as_posix()}"
        )
        _, hash_, anchor = target.partition("#")
        if path.suffix == ".ipynb":
            there = there.removesuffix(".ipynb") + ".md"
        relative = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{mark}[{text}]({relative}{hash_}{anchor})"

    return _LINK.sub(moved, markdown)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: adds notebooks as pages, and the files outside of docs/ that pages lead to."""
    from mkdocs.structure.files import File

    for notebook in sorted(DOCS.rglob("*.ipynb")):
        folder, page = notebook.parent.relative_to(DOCS), page_of(notebook)
        made: dict[str, str | bytes] = {f"{notebook.stem}.md": page.markdown, **page.pictures}
        for name, content in made.items():
            files.append(File.generated(config, (folder / name).as_posix(), content=content))
    for place, path in linked_files().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs' event: makes what the program says, and leads links to their files in the site."""
    path = Path(page.file.abs_src_path or DOCS / page.file.src_uri)  # a notebook's has no file
    return with_made_parts(with_links_of_the_site(markdown, path, page.file.src_uri))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs' event: marks code that is short (site.css), and leads each picture to its file.

    In a narrow window the words of a figure are small; its file opens at its own size.
    """
    html = _SHORT.sub('<code class="short">', html)
    return _PICTURE.sub(lambda match: f'<a href="{match["file"]}">{match[0]}</a>', html)
