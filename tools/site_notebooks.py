"""A notebook as a page of the site: its text, its code, and the outputs that it is kept with.

Nothing is run, and nothing is loaded from elsewhere when the page is read.
"""

from __future__ import annotations

import base64
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STYLE = re.compile(r"<style.*?</style>\s*|(?<=<table) [^>]*|(?<=<tr) [^>]*", re.DOTALL)
"""How pandas styles a table; the site has a style of its own, for tables without any."""

_WIDTH = 72
"""Characters of a line of output on a page of the site."""


@dataclass(frozen=True)
class NotebookPage:
    """A notebook's Markdown, and its pictures by the names under which the Markdown shows them."""

    markdown: str
    pictures: dict[str, bytes]


def cells(notebook: Path, kind: str) -> list[str]:
    """The text of a notebook's cells of a kind, "markdown" or "code"."""
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def page_of(notebook: Path) -> NotebookPage:
    """Makes a page of a notebook: a link to its file first, then cell after cell."""
    pictures: dict[str, bytes] = {}
    name = notebook.name
    parts, heading = [], ""
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            heading = [heading, *re.findall(r"^#+ (.+)$", source, re.MULTILINE)][-1]
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{notebook.stem}-{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                parts.append(f"![Figure {len(pictures)}: {heading}]({picture})")
            elif "text/html" in data:
                parts.append(_STYLE.sub("", "".join(data["text/html"])).strip())
            elif said := _text(output).strip("\n"):
                parts.append(f"```text\n{said}\n```")
    title, _, rest = "\n\n".join(parts).partition("\n")
    download = f'<a href="{name}" download>Download this notebook</a>'
    return NotebookPage(f"{title}\n\n{download}\n{rest}\n", pictures)


def _text(output: dict[str, Any]) -> str:
    """What an output says in words, in lines that fit on a page, as a notebook shows it."""
    said = "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
    return "\n".join(
        line if len(line) <= _WIDTH else textwrap.fill(line, _WIDTH) for line in said.split("\n")
    )
