"""Rho by scipy, its influence function by moving weights, its intervals by simulation."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

from bridge.analysis.spearman import spearman, spearman_difference, spearman_interval


def pairs(n: int, seed: int = 0, *, ties: bool = False) -> np.ndarray:
    """Three variables `[3, n]` that are related, and not as normal ones are."""
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=n)
    y = x**2 + rng.exponential(size=n)
    z = x + 2 * rng.normal(size=n)
    found = np.stack([x, y, z])
    return np.round(found) if ties else found


def weighted_rho(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Rho of a distribution with these weights, by counting all pairs of samples."""

    def ranks(values: np.ndarray) -> np.ndarray:
        below = values[:, None] < values
        return weights @ (below + 0.5 * (values[:, None] == values))

    u, v = ranks(x), ranks(y)
    u, v = u - weights @ u, v - weights @ v
    return weights @ (u * v) / np.sqrt((weights @ u**2) * (weights @ v**2))


@pytest.mark.parametrize("ties", [False, True])
def test_rho_is_scipy_s(ties: bool) -> None:
    x, y, _ = pairs(200, ties=ties)
    assert (len(set(x)) < 20) is ties
    assert spearman(x, y).rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_influence_is_the_derivative_by_a_sample_s_weight(ties: bool) -> None:
    n, step = 40, 1e-6
    x, y, _ = pairs(n, ties=ties)
    found = spearman(x, y)
    even = np.full(n, 1 / n)
    assert found.influence.mean() == pytest.approx(0, abs=1e-12)
    for sample in range(n):
        towards = np.eye(n)[sample] - even
        rhos = [weighted_rho(x, y, even + sign * step * towards) for sign in (1, -1)]
        assert found.influence[sample] == pytest.approx((rhos[0] - rhos[1]) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_standard_errors_are_the_bootstrap_s(ties: bool) -> None:
    n, z = 400, 1.959964
    x, y, other = pairs(n, ties=ties)
    one, two = spearman(x, y), spearman(x, other)
    rng = np.random.default_rng(1)
    draws = rng.integers(n, size=(1000, n))
    rhos = np.array([[spearman(x[d], y[d]).rho, spearman(x[d], other[d]).rho] for d in draws])
    low, high = spearman_interval(one)
    assert (high - low) / (2 * z) == pytest.approx(rhos[:, 0].std(), rel=0.1)
    difference, low, high = spearman_difference(one, two)
    assert difference == pytest.approx(one.rho - two.rho)
    assert (high - low) / 2 == pytest.approx(difference - low)
    spread = (rhos[:, 0] - rhos[:, 1]).std()
    assert (high - low) / (2 * z) == pytest.approx(spread, rel=0.1)
    # They share samples: two independent ones would spread more.
    assert spread < 0.95 * np.hypot(*rhos.std(axis=0))


def test_intervals_cover_as_often_as_they_say() -> None:
    """Normal variables, whose rho is 6 / pi asin(r / 2); Bonett and Wright's error is of these."""
    n, draws, r = 100, 1000, np.array([0.8, 0.6])
    true = 6 / np.pi * np.arcsin(r / 2)
    covariance = np.array([[1, *r], [r[0], 1, 0.5], [r[1], 0.5, 1]])
    normal = multivariate_normal(cov=covariance, seed=np.random.default_rng(2))
    covered, widths = np.zeros(3), []
    for x, y, z in normal.rvs((draws, n)).transpose(0, 2, 1):
        found = spearman(x, y), spearman(x, z)
        intervals = [*map(spearman_interval, found), spearman_difference(*found)[1:]]
        wanted = [*true, true[0] - true[1]]
        covered += [low < one < high for one, (low, high) in zip(wanted, intervals, strict=True)]
        widths.append(np.diff(np.arctanh(intervals[0])).item())
    assert np.all(covered / draws > 0.925), covered
    assert np.all(covered / draws < 0.97), covered
    bonett_wright = 2 * 1.96 * np.sqrt((1 + true[0] ** 2 / 2) / (n - 3))
    assert np.mean(widths) == pytest.approx(bonett_wright, rel=0.05)


def test_confidence_widens() -> None:
    found = spearman(*pairs(100)[:2])
    (low, high), (lower, higher) = spearman_interval(found, 0.9), spearman_interval(found, 0.99)
    assert lower < low < found.rho < high < higher


@pytest.mark.parametrize("n", [3, 10, 12_345])
def test_a_perfect_order_is_exact(n: int) -> None:
    x = np.random.default_rng(0).permutation(n)
    for y, rho in ((np.exp(x / n), 1), (-x, -1)):
        found = spearman(x, y)
        assert found.rho == rho
        assert spearman_interval(found) == (rho, rho)


def test_a_constant_has_no_rank_correlation() -> None:
    found = spearman([1, 2, 3], [5, 5, 5])
    assert np.isnan([found.rho, *spearman_interval(found)]).all()
    assert np.isnan(spearman_difference(found, found)).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2], "same samples, at least 3; got 3 and 2"),
        ([1, 2], [1, 2], "same samples, at least 3; got 2 and 2"),
        ([1, 2, np.nan], [1, 2, 3], "x has 1 NaN of 3"),
        ([1, 2, 3], [[1, 2, 3]], "y must be a vector"),
    ],
)
def test_what_cannot_be_ranked_is_refused(x: list, y: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spearman(x, y)


def test_correlations_of_other_samples_and_impossible_confidences_are_refused() -> None:
    three, four = spearman([1, 2, 3], [1, 3, 2]), spearman([1, 2, 3, 4], [1, 3, 2, 4])
    with pytest.raises(ValueError, match="got 3 and 4 samples"):
        spearman_difference(three, four)
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence"):
            spearman_interval(three, confidence)
