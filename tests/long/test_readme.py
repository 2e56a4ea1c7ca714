"""The README's Python with the whole ResNet-18, which takes most of its time to compile."""

from pathlib import Path

import pytest

from tests.test_readme import EARLIER_README, README, run_blocks

pytestmark = pytest.mark.long


@pytest.mark.parametrize("page", [README, EARLIER_README], ids=["today", "0.1.0"])
def test_the_blocks_run_with_the_whole_network(page: Path, tmp_path: Path) -> None:
    run_blocks(page, tmp_path, before="")
