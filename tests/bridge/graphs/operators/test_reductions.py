"""Sums, means, extremes with ties, norms, softmax, orders."""

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
TIES = np.array([[1, 2, 2, -1], [0, 0, 0, 0], [3, -1, 3, -1]], np.float32)
WHOLE = np.array([[1, 2, 2, -1], [0, 0, 0, 0], [3, -1, 3, -1]], np.int64)
TRUTH = TIES > 0
VECTOR = np.array([0.5, -2.0, 1.5], np.float32)
SCALAR = np.array(1.5, np.float32)
ZEROS = np.array([[0, 0, 0, 0], [3, -4, 0, 1]], np.float32)
MASKED = np.array([[1, -np.inf, 2, -np.inf], [0, 1, 2, 3]], np.float32)
HIDDEN = np.array([[-np.inf] * 4, [0, 1, 2, 3]], np.float32)
EMPTY = np.zeros((0, 3), np.float32)
LONG = np.array([[100, -100, 99, 0]], np.float32)

CASES: list[Call] = [
    *(
        call(f"{n}.dim{k}", CUBE, d)
        for n, k in (("sum", "_IntList"), ("mean", ""))
        for d in ([-1],)
    ),
    *(call(f"{n}.default", x) for n in ("mean", "prod", "amax", "amin") for x in (CUBE, SCALAR)),
    *(call(f"{n}.default", x) for n in ("max", "min", "argmax", "argmin") for x in (TIES, SCALAR)),
    call("sum.dim_IntList", CUBE, [0, 2], True),
    call("sum.dim_IntList", CUBE, []),
    call("sum.dim_IntList", CUBE, None),
    call("sum.dim_IntList", EMPTY, [0]),
    call("sum.dim_IntList", TRUTH, [1]),
    call("sum.dim_IntList", WHOLE, [1], dtype=torch.float32),
    call("mean.dim", CUBE, [1, -1], True),
    call("mean.dim", CUBE, []),
    call("mean.dim", CUBE, None),
    call("mean.dim", WHOLE, [1], dtype=torch.float32),
    call("prod.default", ZEROS[0]),
    call("prod.dim_int", CUBE, -1),
    call("prod.dim_int", ZEROS, 1, True),
    call("prod.dim_int", WHOLE, 0),
    *(call(f"{n}.default", TIES, [1]) for n in ("amax", "amin")),
    *(call(f"{n}.default", TIES, [0, -1], True) for n in ("amax", "amin")),
    call("amax.default", WHOLE, [1]),
    *(call(f"{n}.dim", x, -1) for n in ("max", "min") for x in (TIES, WHOLE)),
    *(call(f"{n}.dim", TIES, 0, True) for n in ("max", "min")),
    *(
        call(f"{n}.default", TIES, d, k)
        for n in ("argmax", "argmin")
        for d, k in ((1, True), (0, 0))
    ),
    *(call(f"any.{k}", x, *d) for x in (TRUTH, TIES) for k, d in (("default", ()), ("dim", (1,)))),
    call("any.dim", TRUTH, -1, True),
    call("any.dims", TRUTH, [0, 1]),
    call("any.dim", EMPTY, 0),
    call("var.correction", CUBE, [1], correction=1),
    call("var.correction", CUBE, [0, -1], correction=0, keepdim=True),
    call("var.correction", CUBE),
    call("var.correction", CUBE, None, correction=2),
    call("var_mean.correction", CUBE, [2], correction=0, keepdim=True),
    call("var_mean.correction", CUBE, [2]),
    *(
        call("linalg_vector_norm.default", x, order, [-1])
        for x in (CUBE, ZEROS)
        for order in (2, 1, 3, 0.5, 0, float("inf"), float("-inf"))
    ),
    call("linalg_vector_norm.default", CUBE),
    call("linalg_vector_norm.default", CUBE, 2, [0, 1], True),
    call("linalg_vector_norm.default", TIES, float("inf"), [1]),
    *(
        call(f"{n}.default", x, -1, False)
        for n in ("_softmax", "_log_softmax")
        for x in (CUBE, LONG, MASKED)
    ),
    *(call(f"{n}.default", CUBE, 1, False) for n in ("_softmax", "_log_softmax")),
    call("_softmax.default", HIDDEN, 0, False),
    *(call("logsumexp.default", x, [-1]) for x in (CUBE, LONG, MASKED)),
    call("logsumexp.default", HIDDEN, [0], True),
    call("logsumexp.default", CUBE, [0, 1]),
    *(call(f"{n}.default", x, 1) for n in ("cumsum", "cumprod") for x in (CUBE, WHOLE, ZEROS)),
    *(call(f"{n}.default", CUBE, -1) for n in ("cumsum", "cumprod")),
    call("cumsum.default", TRUTH, 0),
    *(call(f"{n}.default", x, 1) for n in ("cummax", "cummin") for x in (TIES, CUBE, WHOLE)),
    *(call(f"{n}.default", CUBE, -1) for n in ("cummax", "cummin")),
    call("sort.stable", TIES, stable=True, dim=1),
    call("sort.stable", TIES, stable=True, dim=-1, descending=True),
    call("sort.default", CUBE, 1),
    call("sort.default", CUBE, -1, True),
    call("topk.default", CUBE, 2),
    call("topk.default", CUBE, 2, 1, False),
    call("topk.default", CUBE, 3, 0 - 2, True, True),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    tried=st.lists(
        st.tuples(
            st.sampled_from(["sum.dim_IntList", "mean.dim", "amax.default"]),
            st.lists(st.integers(0, 2), unique=True).map(tuple),
            st.booleans(),
            st.booleans(),
        ),
        min_size=6,
        max_size=10,
        unique=True,
    )
)
def test_any_axes_are_reduced_as_in_pytorch(
    tried: list[tuple[str, tuple[int, ...], bool, bool]],
) -> None:
    assert_all_equal_torch(
        [
            call(name, CUBE, [dim - 3 * negative for dim in dims], keepdim)
            for name, dims, negative, keepdim in tried
        ]
    )


@pytest.mark.parametrize("largest", [True, False])
def test_the_order_of_equal_values_gives_equal_values(largest: bool) -> None:
    """PyTorch's topk leaves open which of the equal ones it takes: its values alone are fixed."""
    from bridge.graphs.operators import OPERATORS

    ours, _ = OPERATORS["aten.topk.default"](TIES, 2, 1, largest)
    np.testing.assert_array_equal(ours, torch.topk(torch.from_numpy(TIES), 2, 1, largest)[0])
