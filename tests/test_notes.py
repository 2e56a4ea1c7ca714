"""BUILD_NOTES is short, and files that the pages name are there."""

import re

import pytest

from tests.conftest import ROOT

NAMED = re.compile(
    r"\b(?:jaxcurv|bridge|experiments|tools|tests|examples)/[\w/.]*\.(?:pyi?|json|sh)\b"
)


PAGES = [
    *("README.md", "BUILD_NOTES.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_named_files_are_there(page: str) -> None:
    named = set(NAMED.findall((ROOT / page).read_text()))
    assert named or page not in ("BUILD_NOTES.md", "CONTRIBUTING.md")
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_build_notes_stay_short() -> None:
    lines = (ROOT / "BUILD_NOTES.md").read_text().splitlines()
    assert len(lines) <= 300
    prose = [line for line in lines if not line.startswith(("|", "    "))]
    assert [line for line in prose if len(line) > 120] == []


@pytest.mark.parametrize("folder", ["notes", "measurements"])
def test_every_page_of_a_folder_is_in_its_list_and_the_folder_in_build_notes(folder: str) -> None:
    place = ROOT / "docs" / folder
    listed = set(
        re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", (place / "index.md").read_text(), re.M)
    )
    assert listed == {path.name for path in place.glob("*.md")} - {"index.md"}
    assert f"docs/{folder}/index.md" in (ROOT / "BUILD_NOTES.md").read_text()
