"""Deciles, intervals and rank correlation against hand-computed numbers and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bridge.failures import (
    analog_only_failures,
    decile_table,
    deciles,
    edge_ties,
    rank_correlation,
    rank_correlations,
    wilson_interval,
)


def test_failure_is_digital_right_and_analog_wrong():
    digital = np.array([True, True, False, False])
    analog = np.array([True, False, True, False])
    assert analog_only_failures(digital, analog).tolist() == [False, True, False, False]


def test_failures_refuse_integers_and_unequal_lengths():
    with pytest.raises(ValueError, match="digital_correct must be a vector of bools; got int64"):
        analog_only_failures(np.array([1, 0]), np.array([True, False]))
    with pytest.raises(ValueError, match="lengths differ: digital_correct 2, analog_correct 1"):
        analog_only_failures(np.array([True, False]), np.array([True]))


def test_deciles_rank_by_score_not_by_row():
    assert deciles([0.3, 0.1, 0.2, 0.4], [0, 1, 2, 3], bins=2).tolist() == [2, 1, 1, 2]


def test_equal_scores_are_ranked_by_index():
    score, indices = np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 5, 6, 9])
    assert deciles(score, indices, bins=2).tolist() == [2, 1, 2, 1]
    # Scores 0, 1 | 1, 1: the three ones lie on both sides of the edge, the zero does not.
    assert edge_ties(score, deciles(score, indices, bins=2)).tolist() == [True, True, True, False]


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=10, max_size=120),
    bins=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_bins_are_even_ordered_and_free_of_row_order(scores, bins, seed):
    score, indices = np.array(scores), np.arange(len(scores)) * 3
    found = deciles(score, indices, bins)
    sizes = np.bincount(found, minlength=bins + 1)[1:]
    assert len(sizes) == bins
    assert sizes.max() - sizes.min() <= 1
    for edge in range(1, bins):
        assert score[found <= edge].max() <= score[found > edge].min()
    shuffle = np.random.default_rng(seed).permutation(len(score))
    np.testing.assert_array_equal(deciles(score[shuffle], indices[shuffle], bins), found[shuffle])


@pytest.mark.parametrize(
    ("score", "indices", "bins", "message"),
    [
        (np.arange(9.0), np.arange(9), 10, "9 samples cannot fill 10 bins"),
        (np.arange(9.0), np.arange(9), -1, "bins must be at least 1; got -1"),
        ([1.0, np.nan], [0, 1], 2, "score has 1 NaN of 2"),
        ([1.0, 2.0], [0, 0], 2, "indices must be unique"),
        ([1.0, 2.0], [0.0, 1.0], 2, "indices must be a vector of integers"),
        ([[1.0, 2.0]], [0, 1], 2, "score must be a vector of real numbers"),
        ([1.0, 2.0, 3.0], [0, 1], 2, "lengths differ: score 3, indices 2"),
    ],
)
def test_deciles_refuse(score, indices, bins, message):
    with pytest.raises(ValueError, match=message):
        deciles(score, indices, bins)


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


def test_decile_table_by_hand():
    # By score: indices 2 0 | 4 1 | 3 5. The middle bin has one digitally correct sample, which
    # fails; the last has none.
    table = decile_table(
        score=[0.2, 0.4, 0.1, 0.5, 0.3, 0.6],
        indices=[0, 1, 2, 3, 4, 5],
        digital_correct=[True, False, True, False, True, False],
        analog_correct=[True, True, False, False, False, True],
        bins=3,
    )
    assert table["decile"].tolist() == [1, 2, 3]
    assert table["samples"].tolist() == [2, 2, 2]
    assert table["digitally_correct"].tolist() == [2, 1, 0]
    assert table["analog_correct"].tolist() == [1, 1, 1]
    assert table["failures"].tolist() == [1, 1, 0]
    assert table["tied"].tolist() == [0, 0, 0]
    assert table["score_low"].tolist() == [0.1, 0.3, 0.5]
    assert table["score_high"].tolist() == [0.2, 0.4, 0.6]
    assert table["rate_of_all"].tolist() == [0.5, 0.5, 0.0]
    np.testing.assert_array_equal(table["rate_of_correct"], [0.5, 1.0, np.nan])
    low, high = wilson_interval(1, 2)
    assert table["rate_of_all_low"].tolist() == [low, low, 0.0]
    assert table["rate_of_all_high"][0] == high
    np.testing.assert_array_equal(table["rate_of_correct_high"].isna(), [False, False, True])


def test_decile_table_is_free_of_row_order():
    rng = np.random.default_rng(0)
    score, indices = rng.integers(0, 9, 57) / 8, np.arange(57)
    digital, analog = rng.random(57) < 0.8, rng.random(57) < 0.6
    table = decile_table(score, indices, digital, analog)
    order = rng.permutation(57)
    shuffled = decile_table(score[order], indices[order], digital[order], analog[order])
    assert table.equals(shuffled)
    assert table["tied"].sum() > 0


@pytest.mark.parametrize("levels", [7, 10**9])
def test_rho_is_scipys(levels):
    rng = np.random.default_rng(1)
    score = rng.integers(0, levels, 300) / 7
    failure = rng.random(300) < 0.1 + 0.3 * (score > np.median(score))
    found = rank_correlation(score, failure)
    assert found.rho == pytest.approx(stats.spearmanr(score, failure).statistic, abs=1e-12)
    assert found.low < found.rho < found.high
    assert (found.samples, found.failures) == (300, failure.sum())
    assert (found.resamples, found.reason) == (1000, "")


def test_bootstrap_reranks_each_resample_as_scipy_does():
    rng = np.random.default_rng(2)
    score, failure = np.sort(rng.integers(0, 6, 40) / 5), np.tile([False, True], 20)
    order = np.lexsort((failure, score))  # the order in which samples are drawn
    draws = np.random.default_rng(3).integers(40, size=(200, 40))
    expected = [stats.spearmanr(score[order][d], failure[order][d]).statistic for d in draws]
    found = rank_correlation(score, failure, confidence=0.9, resamples=200, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [5, 95])))


def test_interval_is_free_of_row_order_and_bound_to_the_seed():
    rng = np.random.default_rng(4)
    score, failure = rng.integers(0, 20, 200), rng.random(200) < 0.2
    found, order = rank_correlation(score, failure), rng.permutation(200)
    assert rank_correlation(score[order], failure[order]) == found
    assert rank_correlation(score, failure, seed=1) != found


def test_perfect_order_has_the_largest_rho_that_ties_allow():
    found = rank_correlation(np.arange(4.0), np.array([False, False, True, True]))
    assert found.rho == pytest.approx(2 / np.sqrt(5))  # ranks 1 2 3 4 against 0 0 1 1


@pytest.mark.parametrize(
    ("score", "failure", "reason"),
    [
        ([1.0, 2.0], [False, False], "no sample fails"),
        ([1.0, 2.0], [True, True], "every sample fails"),
        ([1.0, 1.0], [False, True], "every score is the same"),
    ],
)
def test_undefined_rho_says_why(score, failure, reason):
    found = rank_correlation(score, failure)
    assert found.reason == reason
    assert np.isnan([found.rho, found.low, found.high]).all()


def test_resamples_without_a_failure_are_left_out():
    found = rank_correlation(np.arange(20.0), np.arange(20) == 19)
    assert 500 < found.resamples < 800  # 1 - (1 - 1/20)^20 = 64 % draw the one failure


def test_columns_share_resamples():
    rng = np.random.default_rng(5)
    score, failures = rng.random(100), rng.random((100, 3)) < 0.3
    for column, found in enumerate(rank_correlations(score, failures)):
        alone = rank_correlation(score, failures[:, column])
        assert (found.rho, found.low, found.high) == pytest.approx(
            (alone.rho, alone.low, alone.high)
        )


def test_rank_correlation_refuses():
    with pytest.raises(ValueError, match="failure must be a vector of bools; got int64"):
        rank_correlation([1.0], [1])
    with pytest.raises(ValueError, match="score has 1 NaN of 2"):
        rank_correlation([1.0, np.nan], [True, False])
    with pytest.raises(ValueError, match="lengths differ"):
        rank_correlation([1.0], [True, False])
    with pytest.raises(ValueError, match="need samples and resamples; got 1 and 0"):
        rank_correlation([1.0], [True], resamples=0)
