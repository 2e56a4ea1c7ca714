"""The examples: each runs as it is, and the guides show them."""

import re
import runpy
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import PAGES, name_of, section_of, snippets_of

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MADE = {"torch_to_report": "report.html", "own_estimator": "scores.parquet"}
"""Files that an example leaves."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(example.parent)  # as for `python examples/NAME.py`
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert (tmp_path / MADE.get(example.stem, "")).exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example: Path) -> None:
    marks = ("# --8<--", "# isort")
    lines = [line for line in example.read_text().splitlines() if not line.startswith(marks)]
    assert len([line for line in lines if line.strip()]) < 40


def test_guides_show_every_section_of_every_example() -> None:
    shown = [snippet for page in PAGES for snippet in snippets_of(page)]
    sections = [
        (name_of(example), name)
        for example in EXAMPLES
        for name in re.findall(r"\[start:([\w-]+)\]", example.read_text())
    ]
    assert sorted(shown) == sorted(sections)


def test_a_section_is_what_stands_between_its_marks(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text("a\n# --8<-- [start:one]\nb\n\n\n# --8<-- [end:one]\n# --8<-- [start:two]\nc\n")
    assert section_of(file, "one") == "b\n"
    with pytest.raises(ValueError, match="substring not found"):
        section_of(file, "two")
