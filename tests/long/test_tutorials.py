"""Each tutorial runs from its first cell to its last, and says what it is kept with."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tools.tutorials import TUTORIALS, executed

pytestmark = pytest.mark.long

NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
POINTS = 5.0
"""How far a percentage may be from the kept one: training differs between CPUs."""


def shown(cells: Sequence[Any]) -> list[list[tuple[str, ...]]]:
    """The kinds of each code cell's outputs: what it prints, tables, figures."""
    return [
        [tuple(sorted(output.get("data", ["text"]))) for output in cell["outputs"]]
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def figures(cells: Sequence[Any]) -> dict[str, float]:
    """The percentages that cells print, by the words ahead of each: `words: 12.3 %`."""
    found = {}
    for cell in cells:
        for output in cell.get("outputs", []):
            for line in "".join(output.get("text", [])).splitlines():
                if match := re.match(r"(.+?): (?:mean )?(-?[\d.]+) ?%", line):
                    found[match[1]] = float(match[2])
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_says_what_is_kept(notebook: Path, tmp_path: Path) -> None:
    kept = json.loads(notebook.read_text())["cells"]
    new = executed(notebook, tmp_path).cells
    assert shown(new) == shown(kept)
    expected = figures(kept)
    assert expected
    assert figures(new) == pytest.approx(expected, abs=POINTS)
