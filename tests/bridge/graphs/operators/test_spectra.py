"""Fourier transforms of real and complex numbers, there and back."""

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

REAL = draw(2, 6, 4)
COMPLEX = (draw(2, 6, 4) + 1j * draw(2, 6, 4, seed=1)).astype(np.complex64)
PAIRS = draw(2, 3, 2)
WITH_ZERO = COMPLEX * (np.arange(4) > 0)

CASES: list[Call] = [
    *(call("_fft_r2c.default", REAL, d, n, o) for d, n, o in (([2], 0, True), ([1], 1, False))),
    *(call("_fft_c2c.default", COMPLEX, [1], n, f) for n, f in ((0, True), (1, False), (2, False))),
    call("_fft_c2r.default", COMPLEX, [2], 2, 6),
    call("_fft_c2r.default", COMPLEX, [2], 0, 7),
    call("_fft_c2r.default", COMPLEX, [1, 2], 1, 6),
    call("view_as_real.default", COMPLEX),
    call("view_as_complex.default", PAIRS),
    call("complex.default", REAL, REAL + 1),
    call("polar.default", np.abs(REAL), REAL),
    call("_conj.default", COMPLEX),
    call("angle.default", COMPLEX),
    call("angle.default", REAL),
    call("abs.default", WITH_ZERO),
    call("mul.Tensor", COMPLEX, REAL),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    tried=st.lists(
        st.tuples(st.permutations(range(3)).map(tuple), st.integers(1, 3), st.integers(0, 2)),
        min_size=3,
        max_size=4,
        unique=True,
    )
)
def test_any_axes_are_transformed_as_in_pytorch(
    tried: list[tuple[tuple[int, ...], int, int]],
) -> None:
    calls = []
    for dims, count, normalization in tried:
        axes = list(dims[:count])
        length = 2 * (COMPLEX.shape[axes[-1]] - 1)
        calls.append(call("_fft_r2c.default", REAL, axes, normalization, True))
        calls.append(call("_fft_c2c.default", COMPLEX, axes, normalization, False))
        calls.append(call("_fft_c2r.default", COMPLEX, axes, normalization, length))
    assert_all_equal_torch(calls)
