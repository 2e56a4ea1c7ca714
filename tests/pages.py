"""README and the pages of docs/: their Python, run as a user would paste it."""

import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

_MODULE = "page"
_SNIPPET = re.compile(r"^--8<--\n([\w./-]+):([\w-]+)\n--8<--\n", re.MULTILINE)


def name_of(page: Path) -> str:
    """A page's place in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[str]:
    """The page's blocks of Python, with what they take of the examples in its place."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return [
        _SNIPPET.sub(lambda match: section_of(ROOT / match[1], match[2]), one) for one in blocks
    ]


def snippets_of(page: Path) -> list[tuple[str, str]]:
    """The files and sections that a page takes in, as the site does."""
    return _SNIPPET.findall(page.read_text())


def section_of(file: Path, name: str) -> str:
    """What stands between a section's two marks."""
    marks = (f"# --8<-- [{place}:{name}]\n" for place in ("start", "end"))
    start, end = (file.read_text().index(mark) for mark in marks)
    return file.read_text()[start:end].partition("\n")[2].rstrip() + "\n"


def run_page(page: Path, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs a page's blocks one after the other, in the folder; returns the names they leave."""
    patch.chdir(folder)
    module = ModuleType(_MODULE)
    patch.setitem(sys.modules, _MODULE, module)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("error", "(?s).*the earlier name works until")
        for block in blocks_of(page):
            exec(compile(block, name_of(page), "exec"), vars(module))
    return vars(module)


def write_digits(folder: Path, count: int = 40) -> None:
    """Gray noise of 28x28 in ten folders of classes: what README calls images/test."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class {number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
