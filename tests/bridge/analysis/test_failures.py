"""Deciles, intervals and trend against hand-computed numbers, brute force and SciPy."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bridge.analysis.failures import (
    analog_only_failures,
    deciles,
    edge_ties,
    failure_table,
    trend_test,
    within_class_rank,
)
from bridge.analysis.intervals import rate_interval, wilson_interval


def test_failure_is_digital_right_and_analog_wrong():
    digital = np.array([True, True, False, False])
    analog = np.array([True, False, True, False])
    assert analog_only_failures(digital, analog).tolist() == [False, True, False, False]


def test_failures_of_several_chips():
    analog = np.array([[True, False, True, False], [False, False, False, True]])
    failed = analog_only_failures(np.array([True, True, False, False]), analog)
    assert failed.tolist() == [[False, True, False, False], [True, True, False, False]]


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
        ([1.0, 2.0, 3.0], [0, 1], 2, "3 samples need as many indices, not 2"),
    ],
)
def test_deciles_refuse(score, indices, bins, message):
    with pytest.raises(ValueError, match=message):
        deciles(score, indices, bins)


def test_failure_table_by_hand():
    # By score: indices 2 0 | 4 1 | 3 5. The middle bin has one digitally correct sample, which
    # fails; the last has none.
    table = failure_table(
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


def test_failure_table_is_free_of_row_order():
    rng = np.random.default_rng(0)
    score, indices = rng.integers(0, 9, 57) / 8, np.arange(57)
    digital, analog = rng.random(57) < 0.8, rng.random(57) < 0.6
    table = failure_table(score, digital, analog, indices=indices)
    order = rng.permutation(57)
    shuffled = failure_table(score[order], digital[order], analog[order], indices=indices[order])
    assert table.equals(shuffled)
    assert table["tied"].sum() > 0


@pytest.fixture(scope="module")
def three_chips():
    """Score, digital [80] and analog [3, 80]; higher scores fail more often, one chip most."""
    rng = np.random.default_rng(0)
    score, digital = rng.random(80), rng.random(80) < 0.8
    analog = rng.random((3, 80)) > 0.7 * score * np.array([[0.6], [1.0], [1.2]])
    return score, digital, analog


def test_rates_of_several_chips_are_means_over_chips(three_chips):
    score, digital, analog = three_chips
    table = failure_table(score, digital, analog, bins=4)
    alone = [failure_table(score, digital, chip, bins=4) for chip in analog]
    assert set(table["chips"]) == {3}
    assert table["failures"].tolist() == sum(one["failures"] for one in alone).tolist()
    for name in ("rate_of_all", "rate_of_correct"):
        rates = np.array([one[name] for one in alone])
        np.testing.assert_allclose(table[name], rates.mean(0))
        np.testing.assert_allclose(table[f"{name}_min"], rates.min(0))
        np.testing.assert_allclose(table[f"{name}_max"], rates.max(0))


def test_intervals_are_for_the_samples_of_a_bin_and_the_digitally_correct(three_chips):
    score, digital, analog = three_chips
    table = failure_table(score, digital, analog, bins=4, confidence=0.8)
    failed, bin_of = analog_only_failures(digital, analog), deciles(score, np.arange(80), 4)
    for number, row in enumerate(table.itertuples(), 1):
        low, high = rate_interval(failed[:, bin_of == number], 0.8)
        assert (row.rate_of_all_low, row.rate_of_all_high) == (low, high)
        low, high = rate_interval(failed[:, (bin_of == number) & digital], 0.8)
        assert (row.rate_of_correct_low, row.rate_of_correct_high) == (low, high)
        # Samples alone, as if the three chips were all there are, would be narrower.
        alone = wilson_interval(row.failures, 3 * row.digitally_correct, 0.8)
        assert low < alone[0] < alone[1] < high


def test_a_bin_that_never_fails_has_wilsons_interval():
    table = failure_table(np.arange(20.0), np.full(20, True), np.full((4, 20), True), bins=2)
    assert table["rate_of_all"].tolist() == [0, 0]
    assert table["rate_of_all_high"].tolist() == [wilson_interval(0, 10)[1]] * 2
    failing = failure_table(np.arange(20.0), np.full(20, True), np.full((4, 20), False), bins=2)
    assert failing["rate_of_all_low"].tolist() == [wilson_interval(10, 10)[0]] * 2


def test_failure_table_refuses():
    digital = np.full(20, True)
    with pytest.raises(ValueError, match=r"analog_correct must be bools \[samples\], or"):
        failure_table(np.arange(20.0), digital, np.ones((2, 20)))
    with pytest.raises(ValueError, match="lengths differ: digital_correct 20, analog_correct 19"):
        failure_table(np.arange(20.0), digital, digital[:19])


def test_ranks_within_a_class():
    score, labels = [5.0, 1.0, 9.0, 9.0, 2.0], [0, 0, 1, 1, 1]
    found = within_class_rank(score, labels)
    np.testing.assert_allclose(found, [0.75, 0.25, 2 / 3, 2 / 3, 1 / 6])


def test_trend_is_cochran_and_armitages():
    """Against the 2 x k chi-square for trend: (n - 1) r^2, of the counts of a contingency table."""
    failures_of, samples_of = np.array([1, 3, 4, 9]), np.array([20, 20, 20, 20])
    decile = np.repeat([1, 2, 3, 4], samples_of)
    failed = np.concatenate([np.arange(20) < count for count in failures_of])
    d, n, p = np.array([1, 2, 3, 4]), 80, failures_of.sum() / 80
    statistic = (d * (failures_of - samples_of * p)).sum()
    variance = p * (1 - p) * ((samples_of * d**2).sum() - (samples_of * d).sum() ** 2 / n)
    found = trend_test(decile, failed)
    assert found.z == pytest.approx(statistic / np.sqrt(variance * n / (n - 1)))
    assert found.p == pytest.approx(2 * stats.norm.sf(found.z))


def test_trend_over_chips_does_not_count_a_sample_many_times():
    rng = np.random.default_rng(0)
    decile, failed = rng.integers(1, 11, 200), rng.random(200) < 0.3
    assert trend_test(decile, np.tile(failed, (5, 1))) == trend_test(decile, failed)


def test_trend_has_the_permutation_s_level():
    rng = np.random.default_rng(1)
    decile = np.repeat(np.arange(1, 11), 30)
    failed = rng.random((3, 300)) < 0.2
    p = np.array([trend_test(rng.permutation(decile), failed).p for _ in range(1000)])
    assert abs((p < 0.1).mean() - 0.1) < 0.03


@pytest.mark.parametrize(
    ("decile", "failed", "reason"),
    [
        ([1, 2], [False, False], "every sample fails alike"),
        ([1, 2], [True, True], "every sample fails alike"),
        ([1, 1], [False, True], "one bin only"),
        ([1], [True], "fewer than two samples"),
    ],
)
def test_undefined_trend_says_why(decile, failed, reason):
    found = trend_test(decile, failed)
    assert found.reason == reason
    assert np.isnan([found.z, found.p]).all()


def test_the_analysis_needs_neither_torch_nor_jax():
    names = [f"analysis.{name}" for name in ("failures", "predictors", "calibration", "overlap")]
    names += ["analysis.intervals", "routing.curves", "checks"]
    code = (
        f"import sys, bridge, {', '.join(f'bridge.{name}' for name in names)}\n"
        "bridge.failure_table; bridge.compare_predictors; bridge.routing.routing_curve\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'aihwkit', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_chips_of_unequal_numbers_of_samples_are_refused() -> None:
    chips = [[True, False, True], np.array([True, False])]
    with pytest.raises(ValueError, match="analog_correct has chips of 2 and 3 samples; give those"):
        failure_table([0.1, 0.2, 0.3], [True] * 3, chips, bins=2)  # type: ignore[list-item]
