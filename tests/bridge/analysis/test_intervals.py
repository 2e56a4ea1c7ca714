"""Intervals against numbers by hand, SciPy and simulated chips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from bridge.analysis.intervals import (
    crossed_mean_interval,
    mean_interval,
    rate_interval,
    wilson_interval,
)
from tests.crossed_chips import Population, measure_coverage, rate_coverage

OUTCOMES = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (5, 10), (10, 10), (3, 977), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_wilson_interval_is_scipys(k, n, confidence):
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(k, n, confidence)
    assert float(low) == pytest.approx(expected.low, abs=1e-12)
    assert float(high) == pytest.approx(expected.high, abs=1e-12)


def test_wilson_interval_by_hand_and_elementwise():
    z2 = 1.959963984540054**2  # 0 of 10: [0, z^2 / (10 + z^2)]
    low, high = wilson_interval(np.array([0, 10, 0]), np.array([10, 10, 0]))
    np.testing.assert_allclose(low, [0, 10 / (10 + z2), np.nan], rtol=1e-12)
    np.testing.assert_allclose(high, [z2 / (10 + z2), 1, np.nan], rtol=1e-12)
    assert low[0] == 0
    assert high[1] == 1


@pytest.mark.parametrize(
    ("k", "n", "confidence", "message"),
    [
        (3, 2, 0.95, "between 0 and trials"),
        (-1, 2, 0.95, "between 0 and trials"),
        (0.5, 2, 0.95, "must be integers; got float64"),
        (1, 2, 95, "confidence must lie between 0 and 1; got 95"),
    ],
)
def test_wilson_interval_refuses(k, n, confidence, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(k, n, confidence)


def test_rate_interval_by_hand():
    """Two chips, of which one fails on two of five samples and the other on the first of them."""
    failed = np.array([[True, True, False, False, False], [True, False, False, False, False]])
    # Rates of the chips 2/5 and 1/5, of the samples 1, 1/2, 0, 0, 0; the mean is 3/10.
    chip = 0.02 / 2
    sample = ((1 + 0.25) / 5 - 0.09) / 5
    interaction = (0.21 - 0.01 - 0.16) / 5
    variance = chip + sample - interaction
    share = chip / variance
    z = share * stats.t.ppf(0.95, 1) + (1 - share) * stats.norm.ppf(0.95)
    # The roots of (p - x)^2 = z^2 V x (1 - x) / (p (1 - p)): Wilson's, with V's number of trials.
    z2 = z**2 * variance / 0.21
    expected = np.sort(np.roots([1 + z2, -0.6 - z2, 0.09]).real)
    np.testing.assert_allclose(rate_interval(failed, 0.9), expected, rtol=1e-12)


@given(
    failed=arrays(bool, st.integers(1, 40)),
    chips=st.integers(1, 6),
    confidence=st.sampled_from([0.5, 0.95]),
)
def test_chips_that_fail_alike_count_as_one(failed, chips, confidence):
    expected = wilson_interval(int(failed.sum()), len(failed), confidence)
    found = rate_interval(np.tile(failed, (chips, 1)), confidence)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert rate_interval(failed, confidence) == expected


@given(failed=OUTCOMES)
def test_rate_interval_holds_the_rate_within_0_and_1(failed):
    low, high = rate_interval(failed)
    assert 0 <= low <= failed.mean() <= high <= 1
    np.testing.assert_allclose(rate_interval(~failed), (1 - high, 1 - low), atol=1e-12)


@given(failed=OUTCOMES, samples=st.integers(36, 300))
def test_more_failures_alike_never_lower_the_upper_end(failed, samples):
    """The same pattern once, twice, ... among samples that survive: three chips with one failure
    among 1,000 samples may fail more often than three with none."""
    highs = []
    for copies in range(6):
        outcomes = np.zeros((len(failed), samples), bool)
        outcomes[:, : copies * failed.shape[1]] = np.tile(failed, copies)
        highs.append(rate_interval(outcomes)[1])
    assert np.all(np.diff(highs) >= -1e-12)


def test_chips_without_a_shared_failure_say_no_more_of_other_samples_than_one():
    """A share of z^2 / (n + z^2) of the samples that none of these n are like may always fail."""
    apart = np.eye(3, 1000, dtype=bool)  # one failure a chip, each on another sample
    none = wilson_interval(0, 1000)[1]
    assert rate_interval(np.zeros((3, 1000), bool)) == (0.0, none)
    assert rate_interval(apart)[1] == none
    assert rate_interval(~apart)[0] == wilson_interval(1000, 1000)[0]


def test_rate_interval_refuses():
    assert np.isnan(rate_interval(np.zeros((3, 0), bool))).all()
    with pytest.raises(ValueError, match=r"failed must be bools \[samples\], or"):
        rate_interval(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1; got 95"):
        rate_interval(np.zeros((3, 5), bool), 95)


@pytest.fixture(scope="module")
def resampled():
    """A measure of three chips, and its resamples, which vary together and each on its own."""
    rng = np.random.default_rng(0)
    drawn = 0.7 + 0.03 * rng.normal(size=(500, 1)) + 0.05 * rng.normal(size=(500, 3))
    return np.array([0.6, 0.72, 0.75]), drawn


def test_mean_interval_by_hand(resampled):
    values, drawn = resampled
    sample = drawn.mean(axis=1).var() * 20 / 19
    own = (drawn.var(axis=0).mean() - drawn.mean(axis=1).var()) / 2  # of 0.05^2 / 3
    assert own == pytest.approx(0.05**2 / 3, rel=0.1)
    chip = values.var(ddof=1) / 3
    variance = chip + sample - own
    assert variance > max(chip, sample)
    share = chip / variance
    half = share * stats.t.ppf(0.975, 2) + (1 - share) * stats.t.ppf(0.975, 19)
    half *= np.sqrt(variance)
    settings = {"confidence": 0.95, "informative": 20}
    found = mean_interval(values, drawn, **settings, fraction=False)
    np.testing.assert_allclose(found, (0.69 - half, 0.69 + half), rtol=1e-12)
    odds = 0.69 / 0.31 * np.exp(np.array([-1, 1]) * half / (0.69 * 0.31))
    found = mean_interval(values, drawn, **settings, fraction=True)
    np.testing.assert_allclose(found, odds / (1 + odds), rtol=1e-12)


def test_mean_interval_of_one_chip_and_of_chips_without_the_measure(resampled):
    values, drawn = resampled
    settings = {"confidence": 0.9, "informative": 30, "fraction": True}
    half = stats.t.ppf(0.95, 29) * drawn[:, 0].std() * np.sqrt(30 / 29)
    odds = 0.6 / 0.4 * np.exp(np.array([-1, 1]) * half / (0.6 * 0.4))
    one = mean_interval(values[:1], drawn[:, :1], **settings)
    np.testing.assert_allclose(one, odds / (1 + odds), rtol=1e-12)
    values, drawn = values.copy(), drawn.copy()
    values[1:], drawn[:, 1:] = np.nan, np.nan
    drawn[::7] = np.nan  # resamples without a failure
    expected = mean_interval(values[:1], drawn[:, :1][np.arange(500) % 7 > 0], **settings)
    assert mean_interval(values, drawn, **settings) == expected
    assert np.isnan(mean_interval(values * np.nan, drawn, **settings)).all()


def test_mean_interval_where_resamples_say_nothing(resampled):
    values, drawn = resampled
    settings = {"confidence": 0.95, "fraction": True}
    best = mean_interval(np.ones(3), np.ones((9, 3)), informative=8, **settings)
    assert best == (wilson_interval(8, 8)[0], 1.0)
    worst = mean_interval(np.zeros(3), np.zeros((9, 3)), informative=8, **settings)
    assert worst == (0.0, wilson_interval(0, 8)[1])
    assert mean_interval(values, drawn, informative=1, **settings) == (0.0, 1.0)
    settings = {"confidence": 0.95, "fraction": False}
    assert mean_interval(values, drawn, informative=1, **settings) == (-1.0, 1.0)
    alike = np.zeros(3), np.zeros((9, 3))
    assert mean_interval(*alike, informative=1, **settings) == (0.0, 0.0)


@pytest.mark.parametrize("difficulty", [0.0, 2.0])
def test_the_rate_of_three_chips_is_covered(difficulty):
    """More cells in tests/long/test_interval_coverage.py."""
    population = Population(rate=0.2, spread=0.5, difficulty=difficulty)
    covered = rate_coverage(population, chips=3, samples=100, replications=1000, seed=0)
    assert covered.rate > 0.93


def test_auroc_of_three_chips_is_covered():
    population = Population(rate=0.2, spread=0.5, slope=1.0, slope_spread=0.4)
    covered = measure_coverage(
        population, chips=3, samples=200, replications=200, resamples=100, seed=0
    )
    # Three standard errors below 0.95.
    assert covered["auroc"].rate > 0.904
    assert covered["auroc_difference"].rate > 0.904


# --- the mean over seeds and chips


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_of_one_factor_it_is_students(shape):
    values = np.random.default_rng(0).normal(size=7)
    expected = stats.t.interval(0.9, 6, values.mean(), stats.sem(values))
    np.testing.assert_allclose(crossed_mean_interval(values.reshape(shape), 0.9), expected)


def test_of_two_factors_by_hand():
    """Rows 1 and 3 on average, columns 2, 2 and 2: all of the spread is the rows'."""
    values = np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    half = stats.t.ppf(0.975, 1) * np.sqrt(2 / 2)
    np.testing.assert_allclose(crossed_mean_interval(values), (2 - half, 2 + half))
    # Residuals of 1 and -1 alone: rows and columns have no spread.
    np.testing.assert_allclose(crossed_mean_interval([[1.0, -1.0], [-1.0, 1.0]]), (0, 0))
    values = np.array([[0.0, 1.0], [2.0, 5.0]])  # rows 0.5, 3.5; columns 1, 3; residuals +-0.5
    row, column, rest = 4.5 / 2, 2.0 / 2, 1.0 / 4
    variance = row + column - rest
    quantile = stats.t.ppf(0.975, 1)
    half = quantile * np.sqrt(variance)
    np.testing.assert_allclose(crossed_mean_interval(values), (2 - half, 2 + half))


def test_it_covers_other_rows_and_columns():
    """Three seeds and five chips, each with an effect of its own: at least what it says."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        rows, columns = rng.normal(size=(3, 1)), rng.normal(size=(1, 5))
        low, high = crossed_mean_interval(rows + columns + rng.normal(size=(3, 5)))
        inside += low < 0 < high
    assert inside / 400 > 0.92


@pytest.mark.parametrize("values", [[1.0, 2.0], [[]], [[1.0, np.nan]]])
def test_other_values_have_no_mean_interval(values):
    with pytest.raises(ValueError, match="values must be finite numbers"):
        crossed_mean_interval(values)


def test_a_single_value_has_no_interval():
    assert np.isnan(crossed_mean_interval([[3.0]])).all()
