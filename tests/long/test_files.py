"""Every memory with every compensation and mapping comes back from its file to the bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.bridge.chips.test_files_product import assert_comes_back_at_every_time, memories

pytestmark = pytest.mark.long


@pytest.mark.parametrize("memory", list(memories()), ids=repr)
def test_a_memory_comes_back_at_every_time(memory: Any, tmp_path: Path) -> None:
    assert_comes_back_at_every_time(memory, tmp_path)
