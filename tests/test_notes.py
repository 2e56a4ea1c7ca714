"""Files that README, BUILD_NOTES, CONTRIBUTING and the documentation name are there."""

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
