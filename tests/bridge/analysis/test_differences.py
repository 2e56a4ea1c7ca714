"""Differences of results beside formulas by hand, resampling, and known truths."""

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from bridge.analysis.differences import Measured, accuracy, auroc, difference, failure_rate


def outcomes(seed=0, chips=3, samples=200, rate=0.3):
    """Chips that fail more often on some samples than on others."""
    rng = np.random.default_rng(seed)
    fragile = rng.beta(2 * rate, 2 * (1 - rate), samples)
    return rng.random(samples) < 0.8, rng.random((chips, samples)) > fragile, fragile


def test_pairs_are_compared_by_what_differs():
    """McNemar's table: 14 right in the first alone, 5 in the second alone, of 60."""
    first = np.repeat([True, True, False, False], [30, 14, 5, 11])
    second = np.repeat([True, False, True, False], [30, 14, 5, 11])
    found = difference(accuracy(first), accuracy(second), same_samples=True, same_chips=True)
    variance = ((14 + 5) - (14 - 5) ** 2 / 60) / 60**2 + 1 / 60**2
    half = student.ppf(0.975, 59) * np.sqrt(variance)
    np.testing.assert_allclose(found, [9 / 60, 9 / 60 - half, 9 / 60 + half])


def test_other_samples_add_their_variances():
    first, second = np.arange(50) < 40, np.arange(80) < 20
    found = difference(accuracy(first), accuracy(second), same_samples=False, same_chips=True)
    variance = 0.8 * 0.2 / 50 + 1 / 50**2 + 0.25 * 0.75 / 80 + 1 / 80**2
    half = student.ppf(0.975, 49) * np.sqrt(variance)
    np.testing.assert_allclose(found, [0.55, 0.55 - half, 0.55 + half])


def test_nothing_that_differs_is_no_certainty():
    right = accuracy(np.arange(100) < 70)
    found = difference(right, right, same_samples=True, same_chips=True)
    half = student.ppf(0.975, 99) / 100
    np.testing.assert_allclose(found, [0, -half, half], atol=1e-15)


@pytest.mark.parametrize("same_chips", [True, False])
@pytest.mark.parametrize("same_samples", [True, False])
def test_chips_and_samples_by_hand(same_samples, same_chips):
    """The docstring's formulas, entry by entry."""
    a, b = (outcomes(seed)[1] for seed in (1, 2))
    chips, samples = a.shape
    found = difference(accuracy(a), accuracy(b), same_samples=same_samples, same_chips=same_chips)
    d = a.astype(float) - b
    sides = [one.astype(float) for one in (a, b)]

    def parts(one):
        own = np.mean([np.var(chip) for chip in one])
        return own - np.var(one.mean(axis=0))

    of_chips = [d] if same_chips else sides
    of_samples = [d] if same_samples else sides
    chip = sum(one.mean(axis=1).var(ddof=1) / chips for one in of_chips)
    sample = sum(one.mean(axis=0).var() / samples + 1 / samples**2 for one in of_samples)
    shared = sum(parts(one) for one in ([d] if same_chips and same_samples else sides))
    shared /= (chips - 1) * samples
    variance = max(chip + sample - shared, chip, sample)
    weight = chip / variance
    quantile = weight * student.ppf(0.975, chips - 1)
    quantile += (1 - weight) * student.ppf(0.975, samples - 1)
    half = quantile * np.sqrt(variance)
    np.testing.assert_allclose(found, [d.mean(), d.mean() - half, d.mean() + half])


def test_auroc_is_scikit_learns():
    digital, analog, fragile = outcomes()
    score = np.round(fragile, 1)  # with ties
    found = auroc(score, digital, analog)
    for value, right in zip(found.values, analog, strict=True):
        wanted = roc_auc_score(~right[digital], score[digital])
        assert value == pytest.approx(wanted)
    assert found.informative == min(
        (~analog[:, digital]).any(0).sum(), analog[:, digital].any(0).sum()
    )


def test_auroc_s_influences_are_delong_s():
    """From the matrix of all pairs of a failing and a surviving sample."""
    digital, analog, fragile = outcomes(chips=1)
    score = np.round(fragile, 1)
    found = auroc(score, digital, analog)
    fails, survives = digital & ~analog[0], digital & analog[0]
    pairs = (score[fails][:, None] > score[survives]) + 0.5 * (
        score[fails][:, None] == score[survives]
    )
    value, samples = pairs.mean(), len(digital)
    own = found.influence[0]
    assert (own[~digital] == 0).all()
    np.testing.assert_allclose(own[fails], (pairs.mean(axis=1) - value) * samples / fails.sum())
    np.testing.assert_allclose(
        own[survives], (pairs.mean(axis=0) - value) * samples / survives.sum()
    )


@pytest.mark.parametrize("measure", ["failure rate", "auroc"])
def test_influences_foretell_resampling(measure):
    digital, analog, fragile = outcomes(samples=400, chips=2)

    def measured(rows) -> Measured:
        if measure == "auroc":
            return auroc(fragile[rows], digital[rows], analog[:, rows])
        return failure_rate(digital[rows], analog[:, rows])

    found = measured(np.arange(400))
    rng = np.random.default_rng(0)
    drawn = [measured(rng.integers(400, size=400)).mean for _ in range(600)]
    foretold = np.sqrt(found.influence.mean(axis=0).var() / 400)
    assert np.std(drawn) == pytest.approx(foretold, rel=0.12)
    np.testing.assert_allclose(found.influence.mean(axis=1), 0, atol=1e-12)


def test_failures_are_of_each_network_s_own_correct_samples():
    digital = np.array([True, True, True, True, False])
    analog = np.array([[True, False, True, False, True]])
    assert failure_rate(digital, analog).mean == 0.5
    assert failure_rate(~digital, analog).mean == 0


def test_what_is_shared_narrows_the_interval():
    digital, analog, _ = outcomes(chips=4)
    other = analog.copy()
    other[:, :5] = ~other[:, :5]
    pair = accuracy(analog), accuracy(other)
    widths = {
        same: np.diff(difference(*pair, same_samples=same, same_chips=same)[1:])[0]
        for same in (True, False)
    }
    assert widths[True] < 0.5 * widths[False]
    assert difference(*pair, same_samples=True, same_chips=True).value == pytest.approx(
        analog.mean() - other.mean()
    )
    assert digital.any()


def test_intervals_cover():
    """Two networks of 0.65 and 0.75 on chips that share half of their spread."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        shared, own = rng.normal(0, 0.05, 3), rng.normal(0, 0.05, (2, 3))
        easy = rng.uniform(-0.2, 0.2, 150)
        right = [
            rng.random((3, 150)) < level + easy + (shared + one)[:, None]
            for level, one in zip((0.65, 0.75), own, strict=True)
        ]
        found = difference(*map(accuracy, right), same_samples=True, same_chips=True)
        covered += found.low <= -0.1 <= found.high
    assert covered / 300 >= 0.92


def test_a_chip_without_failures_has_no_auroc():
    digital, analog, fragile = outcomes()
    analog[1] = True
    found = auroc(fragile, digital, analog)
    assert np.isnan(found.values).tolist() == [False, True, False]
    assert found.mean == pytest.approx(found.values[[0, 2]].mean())
    other = auroc(-fragile, digital, outcomes()[1])
    result = difference(found, other, same_samples=True, same_chips=True)
    assert result.value == pytest.approx(found.mean - other.values[[0, 2]].mean())
    nothing = auroc(fragile, digital, np.ones_like(analog))
    assert np.isnan(difference(nothing, other, same_samples=True, same_chips=True)).all()


def test_one_failing_sample_tells_nothing():
    digital = np.ones(20, bool)
    analog = np.arange(20) != 3
    one = auroc(np.arange(20.0), digital, analog)
    found = difference(one, one, same_samples=True, same_chips=True)
    assert found == (0, -1, 1)


def test_refusals():
    ten, twenty = accuracy(np.ones(10, bool)), accuracy(np.ones(20, bool))
    with pytest.raises(ValueError, match="the same samples must be as many: got 10 and 20"):
        difference(ten, twenty, same_samples=True, same_chips=True)
    three = accuracy(np.ones((3, 10), bool))
    with pytest.raises(ValueError, match="the same chips must be as many: got 3 and 1"):
        difference(three, ten, same_samples=True, same_chips=True)
    with pytest.raises(ValueError, match="confidence"):
        difference(ten, ten, same_samples=True, same_chips=True, confidence=1.0)
    with pytest.raises(ValueError, match="no digitally correct samples"):
        failure_rate(np.zeros(4, bool), np.ones(4, bool))
