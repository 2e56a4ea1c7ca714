"""Guaranteed thresholds by hand and against their definitions; what is refused."""

import math
import warnings
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from bridge.routing import calibration_size
from bridge.routing.guarantees import guaranteed_threshold, risk_at

INF = math.inf
SCORES = np.arange(1, 10) / 10
FAILS = np.array([0, 0, 0, 0, 1, 0, 0, 1, 1], bool)


@pytest.fixture(autouse=True)
def warnings_are_looked_for() -> None:
    warnings.simplefilter("ignore", UserWarning)


@pytest.mark.parametrize(
    ("level", "threshold"),
    [
        (0.09, -INF),  # less than 1 / 10
        (0.1, 0.4),  # (0 + 1) / 10 is met exactly
        (0.19, 0.4),
        (0.2, 0.7),
        (0.3, 0.8),
        (0.4, INF),
    ],
)
def test_conformal_thresholds_by_hand(level: float, threshold: float) -> None:
    assert guaranteed_threshold(SCORES, FAILS, level) == threshold
    order = np.random.default_rng(0).permutation(9)
    assert guaranteed_threshold(SCORES[order], FAILS[order], level) == threshold


def test_a_level_that_is_met_exactly_does_not_fail_for_its_rounding() -> None:
    assert 0.29 * 100 < 29
    fails = np.arange(99) < 28
    assert guaranteed_threshold(np.arange(99), fails, 0.29) == INF
    assert guaranteed_threshold(np.arange(99), np.arange(99) < 29, 0.29) == 27


def test_a_sample_of_infinite_score_stays_only_where_all_do() -> None:
    scores = np.append(SCORES[:8], INF)
    assert guaranteed_threshold(scores, FAILS, 0.3) == 0.8
    assert guaranteed_threshold(scores, FAILS, 0.4) == INF


def test_tied_samples_stay_or_go_together() -> None:
    fails = [False, False, False, True]
    # At 1 one fails: (1 + 1) / 5. Were the ties parted, two or three of them could stay at 0.2.
    assert guaranteed_threshold([0, 1, 1, 1], fails, 0.2) == 0
    assert guaranteed_threshold([0, 1, 1, 1], fails, 0.4) == INF
    assert guaranteed_threshold([1, 1, 1, 1], fails, 0.3) == -INF


def test_the_unit_of_several_chips_is_the_chip() -> None:
    losses = np.zeros((4, 3), bool)
    losses[0, 2] = True
    # The chips' mean losses at 3 are 1/3, 0, 0, 0: (1/3 + 1) / 5 = 4/15.
    assert guaranteed_threshold([1, 2, 3], losses, 0.2) == 2
    assert guaranteed_threshold([1, 2, 3], losses, 4 / 15) == INF
    # As twelve samples: (1 + 1) / 13.
    assert guaranteed_threshold([1, 2, 3] * 4, losses.ravel(), 2 / 13) == INF
    own = np.array([[1, 2, 0], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert guaranteed_threshold(own, losses, 0.2) == -INF  # chip 0 fails at its lowest score
    assert guaranteed_threshold(own, losses, 4 / 15) == INF


losses_and_scores = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 8), min_size=n, max_size=n),
        st.lists(st.sampled_from([0, 0, 0, 0.25, 1]), min_size=n, max_size=n),
    )
)


@settings(max_examples=300, deadline=None)
@given(losses_and_scores, st.integers(1, 99))
def test_conformal_thresholds_are_those_of_the_definition(
    both: tuple[list[int], list[float]], percent: int
) -> None:
    scores, losses = both
    level, n = Fraction(percent, 100), len(scores)
    found = guaranteed_threshold(scores, losses, percent / 100)

    def bound(threshold: float) -> Fraction:
        stay = [Fraction(x) for s, x in zip(scores, losses, strict=True) if s <= threshold]
        return (sum(stay, Fraction(0)) + 1) / (n + 1)

    possible = [t for t in sorted(set(scores)) if bound(t) <= level]
    expected = -INF if not possible else max(possible)
    assert found == (INF if expected == max(scores) else expected)


@settings(max_examples=60, deadline=None)
@given(losses_and_scores, st.integers(1, 98))
def test_higher_levels_let_more_stay_and_more_failures_less(
    both: tuple[list[int], list[float]], percent: int
) -> None:
    scores, losses = both
    for confidence in (None, 0.5, 0.9):
        lower = guaranteed_threshold(scores, losses, percent / 100, confidence)
        assert lower <= guaranteed_threshold(scores, losses, (percent + 1) / 100, confidence)
        worse = [1, *losses[1:]]
        assert guaranteed_threshold(scores, worse, percent / 100, confidence) <= lower


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([0.5, 0.9]))
def test_with_a_confidence_the_binomial_tail_decides(
    seed: int, level: float, confidence: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, 120)
    fails = rng.random(120) < rng.random() * scores / 60
    passed = -INF
    for threshold in np.unique(scores):
        if binom.cdf(fails[scores <= threshold].sum(), 120, level) > 1 - confidence:
            break
        passed = threshold
    else:
        passed = INF
    assert guaranteed_threshold(scores, fails, level, confidence) == passed


def test_losses_between_0_and_1_take_the_hoeffding_bentkus_bound() -> None:
    scores, losses = np.arange(200.0), np.full(200, 0.03)
    confidence, n = 0.9, 200
    assert guaranteed_threshold(scores, losses, 0.1, confidence) == INF
    level, risk = 0.05, losses.cumsum() / n
    least = np.minimum(risk, level)
    h = least * np.log(least / level) + (1 - least) * np.log((1 - least) / (1 - level))
    bentkus = np.e * binom.cdf(np.ceil((n * risk).round(9)), n, level)
    p = np.minimum(np.exp(-n * h), bentkus)
    expected = scores[p <= 0.1].max()
    assert 20 < expected < 199
    assert guaranteed_threshold(scores, losses, level, confidence) == expected


def of_stays(scores: np.ndarray, fails: np.ndarray, level: float, error: float) -> float:
    """The definition, threshold by threshold."""
    n, ordered = len(scores), np.sort(scores)
    kept = [n * part // 20 for part in range(1, 21)]
    for tests in range(20, 0, -1):
        if binom.cdf(0, kept[-tests], level) <= error / tests:
            break
    else:
        return -INF
    found = -INF
    for count in kept[-tests:]:
        threshold = INF if count == n else np.nextafter(ordered[count], -INF)
        below = scores <= threshold
        if below.any() and binom.cdf(fails[below].sum(), below.sum(), level) <= error / tests:
            found = threshold
    return found


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([0.05, 0.2]), st.booleans())
def test_of_those_that_stay_the_largest_threshold_that_passes_is_taken(
    seed: int, n: int, level: float, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 10, n).astype(float) if ties else rng.random(n)
    fails = rng.random(n) < rng.random() * scores / scores.max().clip(1e-9)
    expected = of_stays(scores, fails, level, 0.1)
    assert guaranteed_threshold(scores, fails, level, 0.9, of="stays") == expected


def test_failures_at_the_lowest_scores_stop_only_what_keeps_few() -> None:
    """Among those that stay the share falls with the threshold here: no order is presumed."""
    scores = np.arange(2000.0)
    assert guaranteed_threshold(scores, scores < 10, 0.05, 0.95, of="stays") == INF
    fails = (scores < 10) | (scores >= 1500)
    found = guaranteed_threshold(scores, fails, 0.05, 0.95, of="stays")
    assert found == np.nextafter(1500.0, -INF)


def test_of_those_that_stay_a_float32_score_is_compared_as_such() -> None:
    scores = np.linspace(0, 1, 2000, dtype=np.float32)
    found = guaranteed_threshold(scores, scores >= scores[1500], 0.05, 0.95, of="stays")
    assert (scores <= found).sum() == (scores.astype(np.float64) <= found).sum() == 1500


@pytest.mark.parametrize(
    ("level", "confidence", "needed"),
    [
        *((0.01, None, 99), (0.05, None, 19), (0.005, None, 199), (0.5, None, 1), (0.3, None, 3)),
        *((0.01, 0.95, 299), (0.5, 0.75, 2), (0.1, 0.9, 22)),
    ],
)
def test_so_many_are_needed_and_suffice(
    level: float, confidence: float | None, needed: int
) -> None:
    assert calibration_size(level, confidence) == needed
    none = np.zeros(needed, bool)
    assert guaranteed_threshold(np.arange(needed), none, level, confidence) == INF
    chips = np.zeros((needed, 2), bool)
    assert guaranteed_threshold([1, 2], chips, level, confidence) == INF
    if confidence is not None:
        assert guaranteed_threshold(np.arange(needed), none, level, confidence, "stays") == INF
    if needed == 1:
        return
    ways = [("all", none, "samples"), ("all", chips, "chips")]
    ways += [("stays", none, "samples")] * (confidence is not None)
    for of, losses, what in ways:
        scores = [1, 2] if losses.ndim == 2 else np.arange(needed - 1)
        says = rf"{needed - 1} {what} promise nothing at a level of .*: {needed} are needed"
        with pytest.warns(UserWarning, match=says):
            found = guaranteed_threshold(scores, losses[1:], level, confidence, of)
        assert found == -INF


def test_enough_samples_that_fail_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert guaranteed_threshold(SCORES, np.ones(9, bool), 0.1) == -INF


def test_the_risk_of_a_threshold() -> None:
    assert risk_at(0.5, SCORES, FAILS) == pytest.approx(1 / 9)
    assert risk_at(0.5, SCORES, FAILS, of="stays") == pytest.approx(1 / 5)
    assert (risk_at(-INF, SCORES, FAILS), risk_at(INF, SCORES, FAILS)) == (0, 1 / 3)
    assert math.isnan(risk_at(-INF, SCORES, FAILS, of="stays"))
    both = np.stack([FAILS, ~FAILS])
    assert risk_at(0.5, SCORES, both) == pytest.approx(5 / 18)
    own = np.stack([SCORES, SCORES + 1])
    assert risk_at(0.5, own, both) == pytest.approx(1 / 18)
    assert risk_at(0.5, own, both, of="stays") == pytest.approx(1 / 5)


def test_samples_that_chose_the_threshold_are_refused_by_index() -> None:
    here, there = np.arange(9), np.arange(9, 20)
    assert risk_at(0.5, SCORES, FAILS, indices=here, calibrated_on=there) == pytest.approx(1 / 9)
    with pytest.raises(ValueError, match="2 of 9 samples, the first at index 7, chose the thresh"):
        risk_at(0.5, SCORES, FAILS, indices=here, calibrated_on=there - 2)
    with pytest.raises(ValueError, match="give those of these samples too"):
        risk_at(0.5, SCORES, FAILS, calibrated_on=there)
    with pytest.raises(ValueError, match="indices must be unique"):
        risk_at(0.5, SCORES, FAILS, indices=here * 0, calibrated_on=there)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: guaranteed_threshold(SCORES, FAILS, 0), "level must lie between 0 and 1; got 0"),
        (lambda: guaranteed_threshold(SCORES, FAILS, 1.0), "level must lie between 0 and 1"),
        (lambda: guaranteed_threshold(SCORES, FAILS, math.nan), "level must lie between 0 and 1"),
        (lambda: guaranteed_threshold(SCORES, FAILS, "1"), "level must lie between 0 and 1"),
        (lambda: guaranteed_threshold(SCORES, FAILS, 0.1, 1), "confidence must lie between 0 and"),
        (lambda: calibration_size(0.1, 95), "confidence must lie between 0 and 1; got 95"),
        (lambda: calibration_size(5), "level must lie between 0 and 1; got 5"),
        (lambda: guaranteed_threshold([], [], 0.1), "no samples to calibrate on"),
        (lambda: guaranteed_threshold(np.r_[np.nan, SCORES[1:]], FAILS), "scores has 1 NaN of 9"),
        (lambda: guaranteed_threshold(np.r_[-INF, SCORES[1:]], FAILS), "1 of 9 scores are -inf"),
        (lambda: guaranteed_threshold(SCORES[1:], FAILS), "lengths differ: scores 8, losses 9"),
        (lambda: guaranteed_threshold(["a"] * 9, FAILS), "scores must be a vector of real numbers"),
        (lambda: guaranteed_threshold(SCORES, SCORES * 2), "4 of 9 losses are not in .*first 1.2"),
        (
            lambda: guaranteed_threshold(SCORES, [np.nan] * 9),
            "9 of 9 losses are not .*first nan",
        ),
        (lambda: guaranteed_threshold(SCORES, ["no"] * 9), "losses must be a vector of bools or"),
        (
            lambda: guaranteed_threshold(SCORES, True),
            r"losses must be bools or .* bool \(\)",
        ),
        (
            lambda: guaranteed_threshold(SCORES, FAILS[None, None]),
            r"\[samples\] or \[chips, samples\]; got bool \(1, 1, 9\)",
        ),
        (
            lambda: guaranteed_threshold(np.stack([SCORES] * 3), np.stack([FAILS] * 2)),
            "3 chips have scores and 2 outcomes",
        ),
        (lambda: guaranteed_threshold(np.stack([SCORES] * 2), FAILS), "scores must be a vector"),
        (lambda: guaranteed_threshold(SCORES, FAILS, of="stay"), 'of is "all" or "stays"'),
        (lambda: guaranteed_threshold(SCORES, FAILS, of="stays"), "give one, confidence=0.95"),
        (
            lambda: guaranteed_threshold(SCORES, FAILS[None], 0.5, 0.9, of="stays"),
            "call it for each chip",
        ),
        (lambda: risk_at(math.nan, SCORES, FAILS), "the threshold is NaN"),
        (lambda: risk_at(0.5, SCORES, FAILS, of="stay"), 'of is "all" or "stays"'),
    ],
)
def test_what_promises_nothing_is_refused(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()
