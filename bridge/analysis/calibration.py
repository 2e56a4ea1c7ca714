"""The physical predictor's probabilities, and whether they come true: NumPy in, tables out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.intervals import (
    chip_counts,
    percentile_interval,
    resampled_failures,
    wilson_interval,
)
from bridge.checks import (
    chips_of,
    real_scores,
    require_confidence,
    require_resamples,
    same_length,
)


def flip_probability(
    margin: npt.ArrayLike, shift: npt.ArrayLike, variance: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """The probability that noise lifts the runner-up's logit above the prediction's.

        P = Phi(-(m + s) / sd)

    with m the digital logit margin, s and sd^2 the mean and variance of its change. It takes the
    change as Gaussian and sees the digital runner-up alone: a flip to a third class is not in it.
    Where sd = 0 it is 0, 1/2 or 1, as m + s is above, at or below 0.

    >>> flip_probability([2.0, 2.0], [0.0, -1.0], [1.0, 1.0]).round(4)
    array([0.0228, 0.1587])

    Args:
        margin: real [samples], >= 0; largest minus second largest digital logit.
        shift: real [samples]; zeros for the probability that the spread alone gives.
        variance: real [samples], >= 0, in squared units of the margin; of independent sources, the
            sum of theirs.

    Returns:
        float64 [samples] in [0, 1].

    Raises:
        ValueError: for NaN or infinite values, negative margins or variances, other dtypes or
            shapes.
    """
    values = {"margin": margin, "shift": shift, "variance": variance}
    m, s, v = (_finite(name, value) for name, value in values.items())
    same_length(margin=m, shift=s, variance=v)
    if len(m) and m.min() < 0:
        raise ValueError(
            f"margin must not be negative, got {m.min():g}; give the largest minus the second "
            "largest digital logit, not a score of fragility"
        )
    if len(v) and v.min() < 0:
        raise ValueError(f"variance must not be negative, got {v.min():g}; check the moments")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # Both sides a fourth, which is exact, so that neither overflows.
        ratio = (m / 4 + s / 4) / np.sqrt(v / 8)
        total = m + s
    ratio = np.where(v > 0, ratio, np.copysign(np.inf, total))
    ratio[total == 0] = 0.0
    return np.array([math.erfc(value) / 2 for value in ratio])


def calibration_table(
    probability: npt.ArrayLike,
    failed: npt.ArrayLike,
    bins: int = 10,
    confidence: float = 0.95,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Predicted probabilities beside the observed shares, in bins of equal width.

    A sample of probability p is in the bin with low < p <= high, the first of which takes 0 too.
    Intervals are Wilson's for one chip; for several, percentile bootstrap that draws chips and,
    within each bin, samples. In a bin of which no sample fails on any chip, or each on every chip,
    resamples cannot differ; its interval is Wilson's of the samples, as if of one chip.

    >>> table = calibration_table([0.1, 0.2, 0.9], [False, True, True], bins=2)
    >>> table[["low", "high", "samples", "predicted", "observed"]]
       low  high  samples  predicted  observed
    0  0.0   0.5        2       0.15       0.5
    1  0.5   1.0        1       0.90       1.0

    Args:
        probability: real [samples] in [0, 1].
        failed: what it predicts, bool [samples] or [chips, samples]. A flip is a failure only of a
            digitally correct sample: give these samples alone, or flips of all.
        bins: how many.
        confidence: confidence level of the intervals, between 0 and 1.
        resamples: number of bootstrap resamples, where there are several chips.
        seed: seed of the bootstrap.

    Returns:
        One row a bin: bin (1 .. bins), low, high (its edges), samples, predicted (mean
        probability), observed (mean over chips of the share that fails), observed_low and
        observed_high; NaN in an empty bin.

    Raises:
        ValueError: for no samples, NaN, probabilities outside [0, 1], other dtypes or shapes.
    """
    p = real_scores(probability, "probability")
    outcomes = chips_of("failed", failed)
    same_length(probability=p, failed=outcomes)
    if not len(p):
        raise ValueError("no samples to compare; give at least one")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probability must lie in [0, 1]; got {p.min():g}..{p.max():g}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    require_confidence(confidence)
    require_resamples(resamples)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], p, side="left")
    rng = np.random.default_rng(seed)
    chips = chip_counts(rng, len(outcomes), resamples)
    rows = []
    for number in range(bins):
        members = place == number
        row = {"bin": number + 1, "low": edges[number], "high": edges[number + 1]}
        row |= {"samples": int(members.sum())}
        if members.any():
            row["predicted"] = p[members].mean()
            row["observed"] = outcomes[:, members].mean()
            row["observed_low"], row["observed_high"] = _interval(
                rng, chips, outcomes[:, members], confidence
            )
        rows.append(row)
    columns = ["bin", "low", "high", "samples", "predicted"]
    columns += ["observed", "observed_low", "observed_high"]
    return pd.DataFrame(rows, columns=columns)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """The mean distance of observed from predicted, each bin weighted by its share of the samples.

        ECE = sum_b n_b / N |observed_b - predicted_b|

    Sources: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo, Pleiss, Sun and Weinberger, ICML 2017.

    Args:
        table: what `calibration_table` returned.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: the table lacks the columns, or has no samples.
    """
    wanted = ["samples", "predicted", "observed"]
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"the table has no {', '.join(missing)}; give that of calibration_table")
    filled = table[table["samples"] > 0]
    if filled.empty:
        raise ValueError("the table has no samples; give that of calibration_table")
    distance = (filled["observed"] - filled["predicted"]).abs()
    return float((filled["samples"] * distance).sum() / filled["samples"].sum())


def _finite(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = real_scores(values, name)
    if infinite := int(np.isinf(array).sum()):
        raise ValueError(f"{name} has {infinite} infinite values; check the model and the moments")
    return array


def _interval(
    rng: np.random.Generator,
    chips: npt.NDArray[np.float32],
    failed: npt.NDArray[np.bool_],
    confidence: float,
) -> tuple[float, float]:
    """Interval of the mean of `failed` [chips, samples]."""
    if len(failed) == 1 or failed.all() or not failed.any():
        failures = int(failed.sum()) // len(failed)
        low, high = wilson_interval(failures, failed.shape[1], confidence)
        return float(low), float(high)
    fails, samples = resampled_failures(rng, chips, failed, np.full(failed.shape[1], True))
    return percentile_interval(fails / samples, confidence)
