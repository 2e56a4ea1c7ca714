"""Files that README and BUILD_NOTES name are there."""

import re

import pytest

from tests.conftest import ROOT

NAMED = re.compile(
    r"\b(?:jaxcurv|bridge|experiments|tools|tests|examples)/[\w/.]*\.(?:pyi?|json|sh)\b"
)


@pytest.mark.parametrize("page", ["README.md", "BUILD_NOTES.md"])
def test_named_files_are_there(page: str) -> None:
    named = set(NAMED.findall((ROOT / page).read_text()))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
