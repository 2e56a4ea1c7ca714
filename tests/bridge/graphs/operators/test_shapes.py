"""Reshaping, joining, padding, and arrays made of a shape."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.graphs.operators.against_torch import (
    Call,
    assert_all_equal_torch,
    assert_equals_torch,
    call,
    draw,
)

CUBE = draw(2, 3, 4)
PLANE = draw(2, 3)
IMAGES = draw(2, 1, 4, 5)
SCALAR = np.array(1.5, np.float32)
WHOLE = np.arange(6).reshape(2, 3)
TRUTH = WHOLE > 2
NOTHING = np.zeros(0, np.float32)
FLAT = draw(1, 3, 1)

CASES: list[Call] = [
    *(call("view.default", CUBE, shape) for shape in ([6, 4], [-1], [2, -1, 2], [1, 24, 1])),
    call("view.default", SCALAR, [1, 1]),
    call("view.default", draw(1, 1), []),
    call("view.default", np.zeros((0, 3), np.float32), [0, 1, 3]),
    *(call("permute.default", CUBE, dims) for dims in ([2, 0, 1], [-1, 1, 0])),
    call("permute.default", SCALAR, []),
    *(call("expand.default", FLAT, shape) for shape in ([2, 3, 4], [-1, 3, -1], [2, -1, -1, 4])),
    call("expand.default", SCALAR, [2, 3]),
    *(call("unsqueeze.default", PLANE, dim) for dim in (0, 1, -1, -3)),
    call("unsqueeze.default", SCALAR, 0),
    *(call("squeeze.dims", FLAT, dims) for dims in ([0], [0, 2], [-1], [1], [-3, -1], [])),
    call("squeeze.dims", SCALAR, [0]),
    *(call("repeat.default", PLANE, repeats) for repeats in ([1, 2], [2, 1, 3], [2, 2])),
    call("repeat.default", SCALAR, [3]),
    call("cat.default", [CUBE, CUBE], -1),
    call("cat.default", [CUBE, CUBE[:1]]),
    call("cat.default", [NOTHING, PLANE], 1),
    call("cat.default", [WHOLE, PLANE], 1),
    call("cat.default", [NOTHING, NOTHING]),
    *(call("split_with_sizes.default", CUBE, [1, 0, 3], dim) for dim in (2, -1)),
    call("split_with_sizes.default", PLANE, [1, 1]),
    *(call("flip.default", CUBE, dims) for dims in ([0], [1, -1], [])),
    *(call("diagonal.default", CUBE, *a) for a in ((), (1, 1, 2), (-1, -1, -2), (0, 2, 0))),
    call("diagonal_scatter.default", CUBE, draw(2, 3), 0, 1, -1),
    call("diagonal_scatter.default", CUBE, draw(4, 1), -1, 0, 1),
    call("diagonal_scatter.default", PLANE, draw(1), 2),
    *(call("unfold.default", CUBE, *a) for a in ((2, 2, 1), (-1, 3, 2), (1, 3, 5), (0, 1, 1))),
    call("unfold.default", SCALAR, 0, 1, 1),
    *(call(f"{n}_indices.default", 3, 4, o) for n in ("tril", "triu") for o in (-1, 0, 1)),
    call("constant_pad_nd.default", CUBE, [1, 2]),
    call("constant_pad_nd.default", CUBE, [1, 0, 0, 2, 1, 1], 3.5),
    call("constant_pad_nd.default", CUBE, [-1, 2, 1, -1]),
    call("constant_pad_nd.default", WHOLE, [1, 1], 7),
    call("constant_pad_nd.default", TRUTH, [1, 1], True),
    call("constant_pad_nd.default", PLANE, [1, 1], -math.inf),
    *(call("full.default", s, v) for s, v in (([2, 3], 1.5), ([], 2), ([2], True), ([0], 1.0))),
    call("full.default", [2], 1.5, dtype=torch.int64),
    call("full_like.default", CUBE, 2),
    call("full_like.default", WHOLE, 2.5),
    call("arange.start_step", 0, 5, layout=torch.strided),
    call("arange.start_step", 1.5, 7.0, 2.5),
    call("arange.start_step", 5, -1, -2),
    call("arange.start_step", 0, 3, 1, dtype=torch.float32),
    *(call("scalar_tensor.default", value) for value in (2, 1.5, True, -math.inf)),
]
"""What PyTorch leaves empty has no values to compare."""


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


@st.composite
def _shapes(drawn: st.DrawFn) -> list[int]:
    shape = list(drawn(st.permutations([2, 2, 2, 3])))
    open_axis = drawn(st.none() | st.integers(0, 3))
    if open_axis is not None:
        shape[open_axis] = -1
    return shape


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    orders=st.lists(st.permutations(range(3)), min_size=3, max_size=4),
    shapes=st.lists(_shapes(), min_size=6, max_size=8),
    pads=st.lists(st.lists(st.integers(-1, 2), min_size=1, max_size=3), min_size=6, max_size=8),
)
def test_any_reshaping_and_padding_is_pytorchs(
    orders: list[list[int]], shapes: list[list[int]], pads: list[list[int]]
) -> None:
    assert_all_equal_torch(
        [
            *(call("permute.default", CUBE, dims) for dims in orders),
            *(call("view.default", CUBE, shape) for shape in shapes),
            *(
                call("constant_pad_nd.default", CUBE, [p for p in one for _ in range(2)])
                for one in pads
            ),
        ]
    )
