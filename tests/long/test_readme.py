"""Pages' Python with the whole ResNet-18, which takes most of its time to compile."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import run_page
from tests.test_readme import EARLIER_README, run_blocks

pytestmark = pytest.mark.long


def test_the_blocks_of_version_0_1_0_run_with_the_whole_network(tmp_path: Path) -> None:
    run_blocks(EARLIER_README, tmp_path, before="")


def test_flip_probabilities_of_the_whole_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run_page(ROOT / "docs/guides/flip-probability.md", tmp_path, monkeypatch)
    assert len(names["flips"]) == 40  # type: ignore[arg-type]
