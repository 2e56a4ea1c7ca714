"""Fast execution against AIHWKit's tiles on many more geometries and draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bridge.chips import ADC
from tests.bridge.chips.test_execution import (
    FINE,
    assert_convolution_equals_the_tiles,
    assert_noise_of_several_tiles_has_the_closed_form,
    convolutions,
)

pytestmark = pytest.mark.long


@settings(max_examples=200, deadline=None)
@given(case=convolutions(), columnwise=st.booleans())
def test_any_convolution_equals_the_tiles(
    case: tuple[nn.Conv2d, torch.Tensor], columnwise: bool
) -> None:
    assert_convolution_equals_the_tiles(case, columnwise)


@pytest.mark.parametrize("adc", [None, FINE], ids=["linear", "adc"])
@pytest.mark.parametrize("kind", ["constant", "pcm_read"])
@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_noise_of_several_tiles_has_the_closed_form(
    engine: str, kind: str, adc: ADC | None
) -> None:
    assert_noise_of_several_tiles_has_the_closed_form(engine, kind, adc, 4000)
