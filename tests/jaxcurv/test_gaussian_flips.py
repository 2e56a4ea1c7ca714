"""Flip probabilities under a Gaussian change of the margin, against scipy."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxcurv.gaussian_flips import gaussian_flip_probability


def test_flip_probability_is_scipy_s_normal_tail():
    rng = np.random.default_rng(0)
    margin, shift = rng.exponential(size=200), rng.normal(size=200)
    variance = rng.exponential(size=200)
    expected = norm.cdf(-(margin + shift) / np.sqrt(variance))
    found = gaussian_flip_probability(margin, shift, variance)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_far_tails_neither_cancel_nor_saturate_early():
    found = gaussian_flip_probability([30.0, 0.0], [0.0, -30.0], [1.0, 1.0])
    np.testing.assert_allclose(found[0], norm.sf(30.0), rtol=1e-10)
    assert found[1] == 1.0


def test_flip_probability_is_that_of_draws():
    change = np.random.default_rng(1).normal(-0.4, 0.8, 200_000)
    drawn = np.mean(1.0 + change < 0)
    found = gaussian_flip_probability([1.0], [-0.4], [0.64])
    assert found[0] == pytest.approx(drawn, abs=5 * np.sqrt(0.25 / 200_000))


def test_without_variance_the_sign_decides():
    found = gaussian_flip_probability([1.0, 1.0, 1.0, 0.0], [0.0, -1.0, -2.0, 0.0], np.zeros(4))
    assert found.tolist() == [0.0, 0.5, 1.0, 0.5]
    assert gaussian_flip_probability([1.0], [0.0], [5e-324]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("margin", "shift", "variance", "message"),
    [
        ([np.nan], [0.0], [1.0], "margin has 1 NaN values of 1"),
        ([1.0], [np.nan], [1.0], "shift has 1 NaN values of 1"),
        ([1.0], [0.0], [np.nan], "variance has 1 NaN values of 1"),
        ([1.0], [0.0], [np.inf], "variance has 1 infinite"),
        ([1.0], [0.0], [-1.0], "variance must not be negative, got -1"),
        ([-1.0], [0.0], [1.0], "margin must not be negative, got -1; give the largest minus"),
        ([1.0, 2.0], [0.0], [1.0], "lengths differ: margin 2, shift 1, variance 1"),
        ([[1.0]], [0.0], [1.0], "margin must be a vector of real numbers"),
    ],
)
def test_flip_probability_refuses(margin, shift, variance, message):
    with pytest.raises(ValueError, match=message):
        gaussian_flip_probability(margin, shift, variance)
