"""Slices, gathers, scatters, embeddings."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.graphs.operators import OPERATORS
from tests.bridge.graphs.operators.against_torch import (
    Call,
    assert_all_equal_torch,
    assert_equals_torch,
    call,
    draw,
)

CUBE = draw(3, 4, 5)
PLANE = draw(3, 4)
ROW = draw(4)
SCALAR = np.array(0.5, np.float32)
WHOLE = np.arange(12).reshape(3, 4)
ENDLESS = sys.maxsize
SOME = np.array([2, 0, 2])
BACKWARD = np.array([-1, 0, -3])
SQUARE = np.array([[0, 2], [1, 1]])
MASK = np.array([[True, False, False, True]] * 3)
ROWS = np.array([True, False, True])
CHOSEN = np.array([[0, 2, 1, 0], [1, 1, 2, 0]])
ONCE = np.array([[0, 2], [1, 0]])  # which of two values stays where is left open
WITH_END = np.array([0, 3, 3, 8])
BAGS = np.array([0, 3, 3, 6])
TIED = np.array([[1, 1, 0, 2], [1, 0, 0, 1], [0, 1, 3, 2]], np.float32)
PLACES = np.array([-0.5, 0.0, 0.7], np.float32)

CASES: list[Call] = [
    *(call("select.int", CUBE, dim, index) for dim, index in ((0, 1), (-1, -2), (1, 3))),
    *(
        call("slice.Tensor", CUBE, *where)
        for where in (
            (),
            (1, 1, 3),
            (-1, 0, ENDLESS, 2),
            (2, -3, -1),
            (1, None, None, 3),
            (2, 3, 2),
            (2, -99, 99),
            (0, 5, 9),
        )
    ),
    call("slice.Tensor", WHOLE, 1, 2),
    *(
        call("slice_scatter.default", CUBE, source, *where)
        for source, where in (
            (CUBE[:, 1:3], (1, 1, 3)),
            (CUBE[..., ::2], (-1, 0, ENDLESS, 2)),
            (CUBE[..., -3:-1], (2, -3, -1)),
            (CUBE, ()),
        )
    ),
    call("index.Tensor", CUBE, [SOME]),
    call("index.Tensor", CUBE, [BACKWARD]),
    call("index.Tensor", CUBE, [None, SOME]),
    call("index.Tensor", CUBE, [SOME, None, SOME]),
    call("index.Tensor", CUBE, [None, SQUARE, SQUARE]),
    call("index.Tensor", CUBE, [SQUARE, SOME[:2]]),
    call("index.Tensor", CUBE, [None, None, np.array(3)]),
    call("index.Tensor", WHOLE, [SOME]),
    call("index_put.default", CUBE, [SOME[:2]], CUBE[:2]),
    call("index_put.default", CUBE, [SOME[:2]], SCALAR),
    call("index_put.default", CUBE, [None, SOME[:2]], CUBE[:, :2]),
    call("index_put.default", CUBE, [SOME], CUBE, True),
    call("index_put.default", PLANE, [MASK], SCALAR),
    call("index_put.default", PLANE, [MASK], SCALAR[None], True),
    call("index_put.default", CUBE, [ROWS], SCALAR),
    call("index_put.default", PLANE, [BACKWARD[:1], SOME[:1]], SCALAR),
    *(call("index_select.default", CUBE, dim, SOME) for dim in (0, 1, -1)),
    call("gather.default", PLANE, 0, CHOSEN),
    call("gather.default", PLANE, -1, CHOSEN[:, :2]),
    call("gather.default", CUBE, 1, CHOSEN[:, :, None]),
    call("gather.default", SCALAR, 0, np.array(0)),
    *(call("scatter.src", PLANE, dim, ONCE, PLANE[:2, :2] * 2) for dim in (0, -1)),
    call("scatter.src", WHOLE, 1, ONCE, WHOLE * 2),
    call("scatter.value", PLANE, 1, SQUARE, 2.5),
    call("scatter.value", WHOLE, 1, SQUARE, 2),
    *(call("scatter_add.default", PLANE, dim, CHOSEN[:, :3], PLANE[:2, :3]) for dim in (0, 1)),
    call("embedding.default", PLANE, SQUARE),
    call("embedding.default", PLANE, SOME),
    call("embedding.default", PLANE, np.array(2)),
    *(
        call("_embedding_bag.default", PLANE, CHOSEN.ravel(), bags, False, mode, False, *more)
        for mode in (0, 1, 2)
        for bags, more in ((BAGS, ()), (WITH_END, (None, True)), (BAGS, (None, False, 2)))
    ),
    call("_embedding_bag.default", PLANE, SOME, BAGS[:1], False, 0, False, draw(3)),
    call("_embedding_bag.default", TIED, CHOSEN.ravel(), BAGS, False, 2),
    *(call("bucketize.Tensor", PLANE, PLACES, right=right) for right in (False, True)),
    call("bucketize.Tensor", PLACES, PLACES),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


ENDS = st.none() | st.integers(-6, 6)
INDICES = st.sampled_from([None, SOME, BACKWARD, np.array([1])])


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    where=st.lists(
        st.tuples(st.integers(-3, 2), ENDS, ENDS, st.integers(1, 3)),
        min_size=10,
        max_size=12,
        unique=True,
    )
)
def test_any_slice_is_pytorchs(where: list[tuple[int, int | None, int | None, int]]) -> None:
    assert_all_equal_torch([call("slice.Tensor", CUBE, *one) for one in where])


@settings(max_examples=2, deadline=None, derandomize=True)
@given(tried=st.lists(st.lists(INDICES, min_size=1, max_size=3), min_size=8, max_size=10))
def test_any_index_is_pytorchs(tried: list[list[np.ndarray | None]]) -> None:
    some = [axes for axes in tried if any(axis is not None for axis in axes)]
    assert_all_equal_torch([call("index.Tensor", CUBE, axes) for axes in some])


def test_a_mask_that_is_given_an_array_is_refused() -> None:
    put = OPERATORS["aten.index_put.default"]
    with pytest.raises(ValueError, match=r"torch\.where"):
        put(PLANE, [MASK], ROW[:3])
