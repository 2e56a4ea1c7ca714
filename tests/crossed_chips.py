"""Simulated chips whose failures are known in advance, and how often intervals cover them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from bridge import compare_predictors, failure_table
from bridge.analysis import rate_interval


@dataclass(frozen=True)
class Population:
    """Chips and samples that outcomes are drawn for.

    Chip k fails on sample i with probability expit(logit(rate) + c_k + d_i + b_k s_i), all of them
    independently normal: c_k of standard deviation `spread`, d_i, what makes the sample difficult
    on every chip, of `difficulty`, b_k of mean `slope` and standard deviation `slope_spread`, the
    score s_i standard.
    """

    rate: float
    spread: float
    difficulty: float = 0.0
    slope: float = 0.0
    slope_spread: float = 0.0

    def expected_rate(self) -> float:
        """The mean over chips and samples, without slopes; by Gauss and Hermite's quadrature."""
        assert self.slope == self.slope_spread == 0
        nodes, weights = np.polynomial.hermite_e.hermegauss(101)
        at = logit(self.rate) + np.hypot(self.spread, self.difficulty) * nodes
        return float(expit(at) @ weights / weights.sum())

    def draw(
        self, rng: np.random.Generator, chips: int, samples: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The scores [samples], and what fails [chips, samples]."""
        score, difficulty = rng.standard_normal((2, samples))
        of_chip, slope = rng.standard_normal((2, chips, 1))
        at = logit(self.rate) + self.spread * of_chip + self.difficulty * difficulty
        at = at + (self.slope + self.slope_spread * slope) * score
        return score, rng.random((chips, samples)) < expit(at)


@dataclass(frozen=True)
class Coverage:
    """How often intervals cover, how often they end below the truth or begin above, and the mean
    of their widths."""

    rate: float
    below: float
    above: float
    width: float


def _covered(intervals: list[tuple[float, float]], truth: float) -> Coverage:
    low, high = np.array(intervals).T
    below, above = (high < truth).mean(), (low > truth).mean()
    return Coverage(1 - below - above, below, above, (high - low).mean())


def rate_coverage(
    population: Population,
    *,
    chips: int,
    samples: int,
    replications: int,
    seed: int,
    through_table: bool = False,
) -> Coverage:
    """Of 95 % intervals of the failure rate, as `rate_interval` or `failure_table` gives them."""
    rng = np.random.default_rng(seed)
    intervals = []
    for _ in range(replications):
        score, failed = population.draw(rng, chips, samples)
        if through_table:
            row = failure_table(score, np.full(samples, True), ~failed, bins=1).iloc[0]
            intervals.append((row["rate_of_correct_low"], row["rate_of_correct_high"]))
        else:
            intervals.append(rate_interval(failed))
    return _covered(intervals, population.expected_rate())


def measure_coverage(
    population: Population,
    *,
    chips: int,
    samples: int,
    replications: int,
    resamples: int,
    seed: int,
) -> dict[str, Coverage]:
    """Of 95 % intervals of `compare_predictors`, of the score and of its difference to a noisy one.

    The truth is the mean of what is measured in all replications, whose own error is the
    standard deviation's / sqrt(replications).
    """
    rng = np.random.default_rng(seed)
    names = ("auroc", "average_precision", "auroc_difference")
    rows = []
    for _ in range(replications):
        score, failed = population.draw(rng, chips, samples)
        scores = {"noisy": score + rng.standard_normal(samples), "score": score}
        table = compare_predictors(
            scores, np.full(samples, True), ~failed, resamples=resamples, seed=int(rng.integers(99))
        )
        rows.append(table.iloc[1])
    return {
        name: _covered(
            [(row[f"{name}_low"], row[f"{name}_high"]) for row in rows],
            float(np.mean([row[name] for row in rows])),
        )
        for name in names
    }
