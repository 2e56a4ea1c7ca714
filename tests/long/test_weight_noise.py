"""AIHWKit's PyTorch tiles against the compiled one, by more draws than are quick."""

import pytest

from tests.bridge.chips.test_weight_noise import assert_ours_is_that_of_the_compiled_tile, each_kind

pytestmark = pytest.mark.long


@each_kind
def test_ours_is_that_of_the_compiled_tile(kind: str) -> None:
    assert_ours_is_that_of_the_compiled_tile(kind, "aihwkit", 500)
