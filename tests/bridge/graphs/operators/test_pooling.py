"""Pooling: strides, padding, dilation, ceil_mode, ties, sizes that do not divide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.graphs.operators.against_torch import (
    Call,
    assert_all_equal_torch,
    assert_equals_torch,
    call,
    draw,
)

IMAGES = draw(2, 3, 7, 5)
VOLUME = draw(2, 2, 5, 4, 4)
TIES = np.tile(np.array([[1, 1, 0], [1, 1, 2], [0, 2, 2]], np.float32), (1, 1, 2, 2))
BELOW = -1 - np.abs(draw(1, 2, 4, 4))  # padding with zeros would win
MAX2, MAX3 = "max_pool2d_with_indices.default", "max_pool3d_with_indices.default"
AVG2, AVG3 = "avg_pool2d.default", "avg_pool3d.default"

CASES: list[Call] = [
    call(MAX2, IMAGES, [2, 2]),
    call(MAX2, IMAGES, [3, 2], [2, 1], [1, 1]),
    call(MAX2, IMAGES, [3], [2], [1], [1], True),
    call(MAX2, IMAGES, [2, 2], [3, 3], [0, 0], [2, 2]),
    call(MAX2, IMAGES[0], [2, 2], [2, 2]),
    call(MAX2, TIES, [2, 2], [1, 1]),
    call(MAX2, TIES, [3, 3], [2, 2], [1, 1]),
    call(MAX2, BELOW, [3, 3], [1, 1], [1, 1]),
    call(MAX2, IMAGES[:, :, :1], [1, 3], [1, 2]),
    call(MAX3, VOLUME, [2, 2, 2]),
    call(MAX3, VOLUME, [3, 2, 2], [2, 2, 2], [1, 0, 1], [1, 1, 1], True),
    call(AVG2, IMAGES, [2, 2]),
    *(
        call(AVG2, IMAGES, [3, 3], [2, 2], [1, 1], ceil, count)
        for ceil in (False, True)
        for count in (False, True)
    ),
    call(AVG2, IMAGES, [2, 2], [2, 2], [0, 0], True, True, 3),
    call(AVG2, IMAGES[0], [3], [1], [1]),
    call(AVG3, VOLUME, [2, 2, 2]),
    call(AVG3, VOLUME, [2, 3, 2], [2, 2, 2], [1, 1, 1], True, False),
    *(call("_adaptive_avg_pool2d.default", IMAGES, s) for s in ([1, 1], [3, 5], [3, 2], [9, 7])),
    call("_adaptive_avg_pool2d.default", IMAGES[0], [2, 2]),
    *(call("_adaptive_avg_pool3d.default", VOLUME, s) for s in ([1, 1, 1], [3, 1, 2])),
    *(call("adaptive_max_pool2d.default", IMAGES, s) for s in ([1, 1], [3, 5], [3, 2])),
    call("adaptive_max_pool2d.default", TIES, [4, 4]),
    call("adaptive_max_pool2d.default", TIES, [1, 1]),
    call("adaptive_max_pool2d.default", IMAGES[0], [2, 2]),
    call("adaptive_max_pool3d.default", VOLUME, [2, 3, 1]),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


@st.composite
def _windows(drawn: st.DrawFn) -> tuple[int, int, int, bool, bool]:
    kernel, stride = drawn(st.integers(1, 3)), drawn(st.integers(1, 3))
    padding = min(drawn(st.integers(0, 1)), kernel // 2)
    return kernel, stride, padding, drawn(st.booleans()), drawn(st.booleans())


@settings(max_examples=2, deadline=None, derandomize=True)
@given(tried=st.lists(_windows(), min_size=6, max_size=8, unique=True))
def test_any_pooling_is_pytorchs(tried: list[tuple[int, int, int, bool, bool]]) -> None:
    calls = []
    for kernel, stride, padding, ceil, count in tried:
        window = ([kernel] * 2, [stride] * 2, [padding] * 2)
        calls.append(call(MAX2, IMAGES, *window, [1, 1], ceil))
        calls.append(call(AVG2, IMAGES, *window, ceil, count))
    assert_all_equal_torch(calls)
