"""Normalisation by running statistics, over features, groups and instances."""

import numpy as np
import pytest

from tests.bridge.graphs.operators.against_torch import Call, assert_equals_torch, call, draw

IMAGES = draw(2, 4, 3, 3) * 3 + 1
ROWS = draw(5, 4)
WEIGHT, BIAS, MEAN = draw(4, seed=1), draw(4, seed=2), draw(4, seed=3)
VARIANCE = np.square(draw(4, seed=4)) + 0.1
OFFSET = draw(2, 4, 3, 3) + 1000
LAYER, GROUP = "native_layer_norm.default", "native_group_norm.default"
RUNNING, BATCH = "_native_batch_norm_legit_no_training.default", "_native_batch_norm_legit.no_stats"

CASES: list[Call] = [
    *(
        call(RUNNING, x, *affine, MEAN, VARIANCE, 0.1, eps).of_fixed(MEAN, VARIANCE)
        for x, affine, eps in (
            (IMAGES, (WEIGHT, BIAS), 1e-5),
            (IMAGES, (None, None), 1e-3),
            (IMAGES, (WEIGHT, None), 1e-3),
            (ROWS, (WEIGHT, BIAS), 1e-5),
            (draw(2, 4, 6), (WEIGHT, BIAS), 1e-5),
        )
    ),
    call(BATCH, IMAGES, WEIGHT, BIAS, True, 0.1, 1e-5),
    call(BATCH, IMAGES, None, None, True, 0.1, 1e-5),
    call(BATCH, ROWS, WEIGHT, BIAS, True, 0.1, 1e-5),
    call(LAYER, ROWS, [4], WEIGHT, BIAS, 1e-5),
    call(LAYER, ROWS, [4], None, None, 1e-5),
    call(LAYER, ROWS, [4], WEIGHT, None, 1e-6),
    call(LAYER, IMAGES, [3, 3], draw(3, 3), draw(3, 3), 1e-5),
    call(LAYER, ROWS[0], [4], WEIGHT, BIAS, 1e-5),
    call(LAYER, np.ones((2, 4), np.float32), [4], WEIGHT, BIAS, 1e-5),
    call(GROUP, IMAGES, WEIGHT, BIAS, 2, 4, 9, 2, 1e-5),
    call(GROUP, IMAGES, None, None, 2, 4, 9, 4, 1e-5),
    call(GROUP, ROWS, WEIGHT, BIAS, 5, 4, 1, 1, 1e-5),
]


@pytest.mark.parametrize("tried", CASES, ids=str)
def test_values_and_gradients_are_pytorchs(tried: Call) -> None:
    assert_equals_torch(tried, CASES)
