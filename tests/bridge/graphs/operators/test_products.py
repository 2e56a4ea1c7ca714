"""Linear layers, products of matrices, attention."""

import numpy as np
import pytest

from bridge.graphs.operators import OPERATORS
from tests.bridge.graphs.operators.against_torch import Call, assert_equals_torch, call, draw

X, W, BIAS = draw(3, 4), draw(5, 4, seed=1), draw(5, seed=2)
CUBE = draw(2, 3, 4)
HEADS, KEYS = draw(2, 4, 3, 4), draw(2, 2, 5, 4, seed=1)
VALUES = draw(2, 2, 5, 6, seed=2)
SEEN = np.array([[True, False, True, True, False], [False] * 5, [True] * 5])
SHIFT = np.where(SEEN, draw(3, 5), -np.inf).astype(np.float32)
ATTENTION = "scaled_dot_product_attention.default"

CASES: list[Call] = [
    call("linear.default", X, W, BIAS),
    call("linear.default", X, W),
    call("linear.default", CUBE, W, BIAS),
    call("linear.default", X[0], W, BIAS),
    call("linear.default", X, W[0]),
    *(
        call("matmul.default", a, b)
        for a, b in (
            (X, W.T),
            (CUBE, W.T),
            (CUBE, CUBE.swapaxes(1, 2)),
            (X[0], W[0]),
            (X, W[0]),
            (X[0], W.T),
            (HEADS, KEYS[:, :1].swapaxes(2, 3)),
        )
    ),
    call("mm.default", X, W.T),
    call("bmm.default", CUBE, CUBE.swapaxes(1, 2)),
    call("addmm.default", BIAS, X, W.T),
    call("addmm.default", draw(3, 5), X, W.T, beta=0.5, alpha=2),
    call("addmv.default", BIAS[:3], X, W[0], beta=0.5),
    call("_trilinear.default", X, draw(5, 4, 2), draw(3, 2), [1, 3], [0], [1, 2], [2, 3]),
    call("_trilinear.default", X, draw(5, 4, 2), draw(3, 2), [1, 3], [0], [1, 2], [3]),
    *(call("_cdist_forward.default", X, W, p, None) for p in (2.0, 1.0, 3.0, float("inf"))),
    call("_cdist_forward.default", CUBE, CUBE[:1], 2.0, 1),
    call(ATTENTION, HEADS[:, :2], KEYS, VALUES),
    call(ATTENTION, HEADS[:, :2], KEYS, VALUES, SEEN),
    call(ATTENTION, HEADS[:, :2], KEYS, VALUES, SHIFT),
    call(ATTENTION, HEADS[:, :2], KEYS, VALUES, None, 0.0, True),
    call(ATTENTION, CUBE, CUBE, CUBE, is_causal=True),
    call(ATTENTION, CUBE, CUBE, CUBE, scale=0.3),
    call(ATTENTION, HEADS, KEYS, VALUES, enable_gqa=True),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)


def test_attention_that_drops_at_random_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eval\(\)"):
        OPERATORS[f"aten.{ATTENTION}"](CUBE, CUBE, CUBE, dropout_p=0.1)
