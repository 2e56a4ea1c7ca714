"""Shares of the variance of failure: by hand, by explicit sums, and of known components."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from bridge.analysis import variance_shares


def drawn(
    rng: np.random.Generator, chips: int, samples: int, *, sample: float, chip: float, rate: float
) -> np.ndarray:
    """Failures where a normal score of variance 1 lies below a threshold: `sample` and `chip` of
    the variance are the sample's and the chip's."""
    score = (
        np.sqrt(sample) * rng.normal(size=samples)
        + np.sqrt(chip) * rng.normal(size=(chips, 1))
        + np.sqrt(1 - sample - chip) * rng.normal(size=(chips, samples))
    )
    return score < norm.ppf(rate)


def correlation(latent: float, rate: float) -> float:
    """The correlation of two failures whose scores are correlated by `latent`."""
    threshold = norm.ppf(rate)
    both = multivariate_normal.cdf([threshold, threshold], cov=[[1, latent], [latent, 1]])
    return (both - rate**2) / (rate * (1 - rate))


def by_sums(failed: np.ndarray) -> list[float]:
    """The shares from the residuals themselves."""
    y = failed.astype(float)
    chips, samples = y.shape
    of_chip, of_sample = y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    rest = ((y - of_chip - of_sample + y.mean()) ** 2).sum() / ((chips - 1) * (samples - 1))
    sample = max(of_sample.var(ddof=1) - rest / chips, 0)
    chip = max(of_chip.var(ddof=1) - rest / samples, 0)
    return [part / (sample + chip + rest) for part in (sample, chip, rest)]


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_shares_are_those_of_the_sums_of_squares(seed: int) -> None:
    failed = drawn(np.random.default_rng(seed), 5, 17, sample=0.4, chip=0.3, rate=0.3)
    shares = variance_shares(failed)
    found = [shares.sample, shares.chip, shares.rest]
    np.testing.assert_allclose(found, by_sums(failed), rtol=1e-12)
    assert min(found) > 0.05  # none is cut


def test_interval_is_that_of_leaving_out_one_at_a_time() -> None:
    """The sums of the jackknife are made without leaving anything out."""
    failed = drawn(np.random.default_rng(0), 5, 17, sample=0.4, chip=0.3, rate=0.3)
    variance, parts = 0.0, []
    for axis, count in ((0, 5), (1, 17)):
        left = np.array([by_sums(np.delete(failed, one, axis))[0] for one in range(count)])
        parts.append((count - 1) ** 2 / count * left.var(ddof=1))
        variance += parts[-1]
    weight = parts[0] / variance
    quantile = weight * 2.776445 + (1 - weight) * 2.119905  # Student's, 4 and 16 degrees
    shares = variance_shares(failed)
    half = quantile * np.sqrt(variance) / (shares.sample * (1 - shares.sample))
    middle = np.log(shares.sample / (1 - shares.sample))
    ends = 1 / (1 + np.exp([half - middle, -half - middle]))
    np.testing.assert_allclose([shares.sample_low, shares.sample_high], ends, rtol=1e-6)


@pytest.mark.parametrize(
    ("rate", "sample", "chip"), [(0.2, 0.6, 0.05), (0.3, 0.4, 0.3), (0.1, 0.8, 0.1)]
)
def test_known_components_are_found_and_covered(rate: float, sample: float, chip: float) -> None:
    rng = np.random.default_rng(1)
    found = [
        variance_shares(drawn(rng, 20, 300, sample=sample, chip=chip, rate=rate))
        for _ in range(200)
    ]
    truth = {"sample": correlation(sample, rate), "chip": correlation(chip, rate)}
    truth["rest"] = 1 - truth["sample"] - truth["chip"]
    for name, true in truth.items():
        mean = np.mean([getattr(one, name) for one in found])
        assert mean == pytest.approx(true, abs=0.012)
        covered = [
            getattr(one, f"{name}_low") <= true <= getattr(one, f"{name}_high") for one in found
        ]
        assert np.mean(covered) >= 0.9


def test_extremes() -> None:
    same = np.tile([True, False, False], (4, 1))
    assert [variance_shares(same).sample, variance_shares(same).rest] == [1, 0]
    shares = variance_shares(same.T[:, :3])  # whole chips fail
    assert (shares.sample, shares.chip, shares.rest) == (0, 1, 0)


@pytest.mark.parametrize(
    "failed",
    [np.zeros((3, 4), bool), np.ones((3, 4), bool), [[True, False]], np.ones((3, 0), bool)],
)
def test_undefined_shares(failed: np.ndarray) -> None:
    assert np.isnan([*asdict(variance_shares(failed)).values()]).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="failed must be bools"):
        variance_shares([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        variance_shares([[True, False], [False, True]], 1.5)
