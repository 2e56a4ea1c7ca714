"""Upsampling to the nearest pixel and between pixels, by sizes and by factors."""

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

IMAGES = draw(2, 3, 4, 5)
PLACES = draw(2, 3, 6, 2)  # a third of them beyond the border
ON_PIXELS = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 4)), -1)
ON_PIXELS = np.stack([ON_PIXELS, ON_PIXELS]).astype(np.float32)

CASES: list[Call] = [
    *(call("upsample_nearest2d.vec", IMAGES, size, None) for size in ([8, 10], [7, 3], [1, 1])),
    *(call("upsample_nearest2d.vec", IMAGES, None, f) for f in ([2.0, 2.0], [1.6, 0.7])),
    *(
        call("upsample_bilinear2d.vec", IMAGES, size, corners, None)
        for size in ([8, 10], [7, 3], [1, 1])
        for corners in (False, True)
    ),
    *(
        call("upsample_bilinear2d.vec", IMAGES, None, corners, [1.6, 0.7])
        for corners in (False, True)
    ),
    call("upsample_bilinear2d.vec", IMAGES[:, :, :1], [3, 5], True, None),
    *(
        call("grid_sampler_2d.default", IMAGES, PLACES, kind, beyond, corners)
        for kind in (0, 1, 2)
        for beyond in (0, 1, 2)
        for corners in (False, True)
    ),
    *(
        call(f"_upsample_{kind}2d_aa.default", IMAGES, size, corners)
        for kind in ("bilinear", "bicubic")
        for size in ([8, 3], [2, 2])
        for corners in (False, True)
    ),
    call("_upsample_bilinear2d_aa.default", IMAGES, [6, 3], False, 1.6, 0.7),
    call("grid_sampler_2d.default", IMAGES, ON_PIXELS, 0, 0, True),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    tried=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()),
        min_size=4,
        max_size=6,
        unique=True,
    )
)
def test_any_size_is_pytorchs(tried: list[tuple[int, int, bool]]) -> None:
    calls = []
    for rows, columns, corners in tried:
        size = [rows, columns]
        calls.append(call("upsample_bilinear2d.vec", IMAGES, size, corners, None))
        calls.append(call("upsample_nearest2d.vec", IMAGES, size, None))
    assert_all_equal_torch(calls)
