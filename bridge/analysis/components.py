"""How much of the failures is the sample's own, how much the chip's, and how much is of the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from bridge.analysis.intervals import crossed_error
from bridge.checks import chips_of, require_confidence
from jaxcurv.rows import require_same_rows

_PARTS = ("sample", "chip", "rest")


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the variance of failure, with intervals; fractions that add up to 1.

    Attributes:
        sample: the sample's own share: the correlation of two chips' outcomes on one sample.
        chip: the chip's own share: the correlation of two samples' outcomes on one chip.
        rest: what only the pair of sample and chip decides.
        sample_low, sample_high, chip_low, chip_high, rest_low, rest_high: their intervals, for
            other samples on other chips.
    """

    sample: float
    chip: float
    rest: float
    sample_low: float
    sample_high: float
    chip_low: float
    chip_high: float
    rest_low: float
    rest_high: float


def variance_shares(failed: npt.ArrayLike, confidence: float = 0.95) -> VarianceShares:
    """Divides the variance of failure among samples, chips and the rest.

    With y_ki = 1 where chip k fails on sample i, else 0, the model of two crossed random effects is

        y_ki = m + a_i + b_k + e_ki,

    a_i the sample's, b_k the chip's, e_ki of the pair, uncorrelated and of mean 0. The method of
    moments takes the mean squares of the two-way analysis of variance (K chips, n samples; a bar is
    a mean, a dot the index that it is over) for their expectations:

        MS_sample = K sum_i (ybar_.i - ybar)^2 / (n - 1)  =  V_rest + K V_sample
        MS_chip   = n sum_k (ybar_k. - ybar)^2 / (K - 1)  =  V_rest + n V_chip
        MS_rest   = sum_ki (y_ki - ybar_k. - ybar_.i + ybar)^2 / ((K - 1) (n - 1))  =  V_rest

    A negative variance counts as 0, but for the intervals. Shares are those of V_sample + V_chip +
    V_rest. The rest has no part that another run of the same chip would change, unless noise is
    drawn at each operation. For rare failures the shares are far from those of a normal latent
    score: where each sample has its own probability p_i and nothing else matters, the sample's
    share is var(p_i) / (p (1 - p)).

    An interval takes the variances that leaving out one chip, and one sample, at a time give (the
    jackknife), added up and with the quantile of `intervals.crossed_error`, on the logit scale. It
    needs three chips and three samples. Where failures are a normal latent score beyond a
    threshold, at rates of 5 to 30 %, intervals of 95 % covered 0.92 to 1.00 with 5 to 100 chips and
    300 to 2,000 samples, and 0.82 at worst with 3 and 60.

    Sources: S. R. Searle, G. Casella, C. E. McCulloch, Variance Components (1992), chapter 4, for
    the moments; B. Efron, C. Stein, Ann. Stat. 9 (1981) 586-596, for the jackknife.

    >>> other = [True, False, False, False]
    >>> shares = variance_shares([[True, True, False, False], [True, True, False, False], other])
    >>> round(shares.sample, 3), round(shares.chip, 3), round(shares.rest, 3)
    (0.727, 0.0, 0.273)

    Args:
        failed: bool [chips, samples], among the digitally correct samples.
        confidence: confidence level of the intervals, between 0 and 1.

    Returns:
        The shares; NaN with fewer than two chips or samples, or where all or none fail.

    Raises:
        ValueError: for other dtypes or shapes, confidence outside (0, 1).
    """
    require_same_rows(failed=failed)
    outcomes = chips_of("failed", failed)
    confidence = require_confidence(confidence)
    chips, samples = outcomes.shape
    on, of = outcomes.sum(axis=0, dtype=np.int64), outcomes.sum(axis=1, dtype=np.int64)
    total, squares_on, squares_of = int(on.sum()), int(on @ on), int(of @ of)
    found = _shares(chips, samples, total, squares_on, squares_of)
    # Sums of squares without one chip, whose outcomes leave the samples' counts; the other way too.
    # float64 holds these whole numbers exactly.
    real = outcomes.astype(np.float64)
    without_chip = _shares(
        chips - 1, samples, total - of, squares_on - 2 * (real @ on) + of, squares_of - of**2
    )
    without_sample = _shares(
        chips, samples - 1, total - on, squares_on - on**2, squares_of - 2 * (of @ real) + on
    )
    values: dict[str, float] = {}
    kept = np.clip(found, 0.0, None)
    for number, name in enumerate(_PARTS):
        values[name] = float(kept[number] / kept.sum())
        values[f"{name}_low"], values[f"{name}_high"] = _interval(
            float(found[number]), without_chip[number], without_sample[number], confidence
        )
    return VarianceShares(**values)


def _shares(
    chips: int,
    samples: int,
    total: npt.ArrayLike,
    squares_on: npt.ArrayLike,
    squares_of: npt.ArrayLike,
) -> npt.NDArray[np.float64]:
    """The shares of sample, chip and rest `[3, ...]`, of which the first two may be negative.

    NaN where they are not defined.

    Args:
        chips, samples: how many.
        total: failures.
        squares_on: sum of the squares of the samples' failures; `squares_of`: of the chips'.
    """
    total, squares_on, squares_of = (
        np.asarray(one, float) for one in (total, squares_on, squares_of)
    )
    if min(chips, samples) < 2:
        return np.full((3, *total.shape), np.nan)
    correction = total**2 / (chips * samples)
    of_samples, of_chips = squares_on / chips - correction, squares_of / samples - correction
    rest = (total - correction - of_samples - of_chips) / ((chips - 1) * (samples - 1))
    sample = (of_samples / (samples - 1) - rest) / chips
    chip = (of_chips / (chips - 1) - rest) / samples
    parts = np.stack([sample, chip, rest])
    whole = parts.sum(axis=0)
    return parts / np.where((total > 0) & (total < chips * samples), whole, np.nan)


def _interval(
    share: float,
    without_chip: npt.NDArray[np.float64],
    without_sample: npt.NDArray[np.float64],
    confidence: float,
) -> tuple[float, float]:
    """The interval of a share from those without one chip, and without one sample."""
    if np.isnan(share):
        return np.nan, np.nan
    variances = []
    for left in (without_chip, without_sample):
        count = len(left)
        variances.append((count - 1) / count * float(((left - left.mean()) ** 2).sum()))
    if not np.isfinite(variances).all():  # without one of two there is no share
        return np.nan, np.nan
    variance, quantile = crossed_error(
        chip=variances[0],
        sample=variances[1],
        interaction=0.0,
        chips=len(without_chip),
        samples=len(without_sample),
        confidence=confidence,
    )
    half = quantile * np.sqrt(variance)
    if not 0 < share < 1:  # which has no logit
        low, high = np.clip([share - half, share + half], 0.0, 1.0)
        return float(low), float(high)
    half /= share * (1 - share)
    return float(expit(logit(share) - half)), float(expit(logit(share) + half))
