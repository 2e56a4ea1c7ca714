"""Confidence intervals: Wilson's, those over samples and chips, and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtrit

from bridge.checks import chips_of, require_confidence
from jaxcurv.rows import require_same_rows


def wilson_interval(
    failures: npt.ArrayLike, trials: npt.ArrayLike, confidence: float = 0.95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's score interval of a binomial proportion, elementwise.

    With p = k / n and z the normal quantile of (1 + confidence) / 2:

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    >>> low, high = wilson_interval(failures=[0, 5], trials=10)
    >>> low.round(3), high.round(3)
    (array([0.   , 0.237]), array([0.278, 0.763]))

    Source: E. B. Wilson, JASA 22 (1927) 209-212.

    Args:
        failures: int, any shape; 0 <= failures <= trials.
        trials: int, broadcasts with `failures`; 0 trials give NaN.
        confidence: confidence level of the interval, between 0 and 1.

    Returns:
        (low, high), float64 fractions.

    Raises:
        ValueError: for other dtypes, failures outside 0 .. trials, confidence outside (0, 1).
    """
    require_same_rows(failures=failures, trials=trials)
    k, n = np.asarray(failures), np.asarray(trials)
    if k.dtype.kind not in "iu" or n.dtype.kind not in "iu":
        raise ValueError(f"failures and trials must be integers; got {k.dtype} and {n.dtype}")
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("failures must lie between 0 and trials")
    confidence = require_confidence(confidence)
    n = np.where(n > 0, n, np.nan)
    return _score_interval(k / n, n, _normal_quantile(confidence))


def rate_interval(failed: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the failure rate that other samples on other chips would have.

    The rate p of K chips on the same n samples varies with the choice of either. With p_k the rate
    of a chip and q_i the share of the chips on which a sample fails, `crossed_error` combines

        V_chip = var(p_k) / K,  V_sample = var(q_i) / n,
        V_interaction = (p (1 - p) - var(p_k) - var(q_i)) / ((K - 1) n),

    the first with divisor K - 1, the others with n and K: the two-way analysis of variance. The
    interval is Wilson's with the quantile that belongs to this variance V and p (1 - p) / V trials
    in place of n, at most K n. So K chips that fail on the same samples count as one, whose
    interval is Wilson's.

    Samples like none of these may fail on every chip, or on none, and n of them say no more about
    it than one chip's: the interval reaches at least from Wilson's lower bound of n failures to his
    upper bound of none. Where all or none of the outcomes are failures, it is his.

    With three to ten chips whose rates are normal on the logit scale, intervals of 95 % cover 0.94
    or more up to a standard deviation of 0.5, up to 1.00 where chips are alike or failures rare;
    0.91 to 0.96 at 1.0 and rates from 5 to 50 %, for few chips seldom show the worst.

    Sources: A. B. Owen, Ann. Appl. Stat. 1 (2007) 386-411, and A. C. Cameron, J. B. Gelbach, D. L.
    Miller, J. Bus. Econ. Stat. 29 (2011) 238-249, for the variance; E. L. Korn, B. I. Graubard,
    Survey Methodology 24 (1998) 193-201, and N. Dean, M. Pagano, J. Surv. Stat. Methodol. 3 (2015)
    484-503, for the effective number of trials.

    >>> chips = [[True, True, False, False, False], [True, False, False, False, False]]
    >>> low, high = rate_interval(chips)
    >>> round(low, 3), round(high, 3)
    (0.019, 0.905)

    Args:
        failed: bool [chips, samples], or [samples] of one chip.
        confidence: confidence level of the interval, between 0 and 1.

    Returns:
        (low, high), fractions; (NaN, NaN) without samples.

    Raises:
        ValueError: for other dtypes or shapes, chips whose pandas indexes differ, confidence
            outside (0, 1).
    """
    require_same_rows(failed=failed)
    outcomes = chips_of("failed", failed)
    confidence = require_confidence(confidence)
    chips, samples = outcomes.shape
    z = _normal_quantile(confidence)
    if not samples:
        return np.nan, np.nan
    rates, shares = outcomes.mean(axis=1), outcomes.mean(axis=0)
    rate = rates.mean()
    binomial = rate * (1 - rate)
    trials, quantile = float(samples), z
    if chips > 1 and binomial > 0:
        between_chips, between_samples = rates.var(), shares.var()
        left = max(binomial - between_chips - between_samples, 0.0)
        variance, quantile = crossed_error(
            chip=between_chips / (chips - 1),
            sample=between_samples / samples,
            interaction=left / ((chips - 1) * samples),
            chips=chips,
            samples=np.inf,  # Wilson's interval, of one chip, takes the normal quantile
            confidence=confidence,
        )
        trials = binomial / max(variance, binomial / outcomes.size)
    low, high = _score_interval(rate, trials, quantile)
    lows, highs = _score_interval([0.0, 1.0], samples, z)
    return float(min(low, lows[1])), float(max(high, highs[0]))


def crossed_error(
    *,
    chip: float,
    sample: float,
    interaction: float,
    chips: int,
    samples: float,
    confidence: float,
) -> tuple[float, float]:
    """The variance of a mean over samples and chips, and the quantile for its interval.

    Each part alone contains what the two share, which `interaction` estimates once more:

        V = max(chip + sample - interaction, chip, sample)

    With w = chip / V, the quantile is w t_K + (1 - w) t_n of Student's t of K - 1 and n - 1 degrees
    of freedom: the variance between K chips is known as badly as that of K numbers. Satterthwaite's
    degrees of freedom in its place make intervals that cover less than they say with few chips: a
    variance between them that came out small by chance would then count as well known too.

    Sources: Cameron, Gelbach and Miller (2011), as above, for V; W. G. Cochran, Biometrics 20
    (1964) 191-195, for the quantile.

    Args:
        chip: variance of the mean that the spread of the chips' own values suggests.
        sample: the same of the samples.
        interaction: what both contain.
        chips: K; where it is 1, chip is 0.
        samples: n, above 1; infinity for the normal quantile in place of t_n.
        confidence: confidence level of the interval, between 0 and 1.

    Returns:
        (V, quantile).
    """
    variance = max(chip + sample - interaction, chip, sample)
    upper = (1 + confidence) / 2
    quantile = float(stdtrit(samples - 1, upper))
    if chip > 0:
        weight = chip / variance
        quantile = weight * float(stdtrit(chips - 1, upper)) + (1 - weight) * quantile
    return variance, quantile


def crossed_mean_interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a mean over two crossed factors, such as training seeds and chips.

    With x_ij the value of level i of R and j of C, a_i and b_j the means of a row and of a column,
    m the mean of all and r_ij = x_ij - a_i - b_j + m,

        V_row = var(a_i) / R,  V_column = var(b_j) / C,
        V_interaction = sum of r_ij^2 / ((R - 1) (C - 1) R C),

    the first two with divisors R - 1 and C - 1. `crossed_error` combines them, with Student's t of
    R - 1 and of C - 1 degrees of freedom, each by its part of the variance. The interval is for
    other rows and other columns. Where a factor has one level it is for other levels of the other
    factor alone: `m -+ t s / sqrt(n)` of their n values.

    With 2 to 5 rows and 3 to 5 columns of normal effects, whose standard deviations were 0 to 2 of
    the residual's, intervals of 95 % covered 0.95 to 0.99 (24 cases, 2,000 draws each).

    Source: as for `crossed_error`.

    >>> low, high = crossed_mean_interval([[1.0, 2.0, 3.0]])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)

    Args:
        values: real [rows, columns], finite.
        confidence: confidence level of the interval, between 0 and 1.

    Returns:
        (low, high), in the unit of the values; (NaN, NaN) of a single value.

    Raises:
        ValueError: for values of another shape or not finite, rows whose pandas indexes differ,
            confidence outside (0, 1).
    """
    require_same_rows(values=values)
    confidence = require_confidence(confidence)
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"values must be finite numbers [rows, columns]; got shape {x.shape}")
    if x.size == 1:
        return np.nan, np.nan
    mean = float(x.mean())
    if 1 in x.shape:
        error = float(x.std(ddof=1)) / math.sqrt(x.size)
        half = float(stdtrit(x.size - 1, (1 + confidence) / 2)) * error
        return mean - half, mean + half
    rows, columns = x.shape
    of_row, of_column = x.mean(axis=1), x.mean(axis=0)
    rest = x - of_row[:, None] - of_column + mean
    variance, quantile = crossed_error(
        chip=float(of_column.var(ddof=1)) / columns,
        sample=float(of_row.var(ddof=1)) / rows,
        interaction=float((rest**2).sum()) / ((rows - 1) * (columns - 1) * x.size),
        chips=columns,
        samples=rows,
        confidence=confidence,
    )
    half = quantile * math.sqrt(variance)
    return mean - half, mean + half


def mean_interval(
    values: npt.NDArray[np.float64],
    resampled: npt.NDArray[np.float64],
    confidence: float,
    *,
    informative: int,
    fraction: bool,
) -> tuple[float, float]:
    """Interval of a measure's mean over chips that other samples on other chips would have.

    From one bootstrap over the samples that all chips share. With a_k the measure of chip k of K,
    a_k* one resample's and m the `informative` samples,

        V_chip = var(a_k) / K,  V_sample = var(mean over k of a_k*) m / (m - 1),
        V_interaction = (mean over k of var(a_k*) - var(mean over k of a_k*)) / (K - 1),

    the first with divisor K - 1; `crossed_error` combines them, with Student's t of m - 1 degrees
    of freedom for the samples, for m of them alone tell how the rarer outcome scores. The factor
    m / (m - 1) is the divisor that a bootstrap lacks. For a fraction the interval is symmetric in
    its logit, whose standard error is sqrt(V) / (a (1 - a)) by the delta method, and so lies within
    [0, 1]; otherwise in the measure itself. A mean of exactly 0 or 1 has no logit, nor do resamples
    differ: its interval is Wilson's of m trials. With one such sample it is all that can be.

    Args:
        values: [chips], NaN where a chip does not define the measure; these are left out.
        resampled: [resamples, chips]; NaN likewise.
        confidence: confidence level of the interval, between 0 and 1.
        informative: how many samples there are of the rarer outcome.
        fraction: whether the measure is one, in [0, 1]; else it lies in [-1, 1].

    Returns:
        (low, high); (NaN, NaN) where no chip defines the measure, or no resample.
    """
    kept = np.isfinite(values) & np.isfinite(resampled).any(axis=0)
    values, resampled = values[kept], resampled[:, kept]
    if not len(values):
        return np.nan, np.nan
    mean, chips = values.mean(), len(values)
    if fraction and mean in (0, 1):
        low, high = wilson_interval(informative * int(mean), informative, confidence)
        return float(low), float(high)
    if not fraction and not values.any() and not np.nan_to_num(resampled).any():
        return 0.0, 0.0
    if informative < 2:
        return (0.0, 1.0) if fraction else (-1.0, 1.0)
    of_mean = float(np.nanvar(mean_defined(resampled)))
    variance, quantile = crossed_error(
        chip=values.var() / (chips - 1) if chips > 1 else 0.0,
        sample=of_mean * informative / (informative - 1),
        interaction=max(np.nanvar(resampled, axis=0).mean() - of_mean, 0.0) / max(chips - 1, 1),
        chips=chips,
        samples=informative,
        confidence=confidence,
    )
    half = quantile * np.sqrt(variance)
    if not fraction:
        return float(max(mean - half, -1.0)), float(min(mean + half, 1.0))
    half /= mean * (1 - mean)
    return float(expit(logit(mean) - half)), float(expit(logit(mean) + half))


def mean_defined(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean along the last axis of what is no NaN; NaN where all is."""
    defined = np.isfinite(values)
    count = defined.sum(axis=-1)
    return np.where(defined, values, 0).sum(axis=-1) / np.where(count > 0, count, np.nan)


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _score_interval(
    p: npt.ArrayLike, n: npt.ArrayLike, z: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's interval of the proportion p of n trials, which need not be whole numbers."""
    p, n = np.asarray(p), np.asarray(n)
    centre = p + z**2 / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # The bounds at 0 and 1 are exactly these; rounding would leave them just beside.
    low = np.where(p == 0, 0 * p, (centre - half) / scale)
    high = np.where(p == 1, 1.0, (centre + half) / scale)
    return low, high


_CHUNK = 1 << 20  # counts held at once: a few MB, whatever the number of samples


def sample_counts(
    rng: np.random.Generator, samples: int, resamples: int
) -> Iterator[npt.NDArray[np.float32]]:
    """How often each sample was drawn, in blocks [rows, samples] of `resamples` rows in all.

    float32, in which these counts and their sums are exact, is the type that multiplies fastest.
    """
    rows = max(1, _CHUNK // samples)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        flat = rng.integers(samples, size=(size, samples)) + samples * np.arange(size)[:, None]
        counts = np.bincount(flat.ravel(), minlength=size * samples)
        yield counts.reshape(size, samples).astype(np.float32)


def percentile_interval(values: npt.NDArray, confidence: float) -> tuple[float, float]:
    """The bootstrap percentile interval of resampled values; NaN ones, undefined, are left out.

    (NaN, NaN) where all are.
    """
    defined = values[np.isfinite(values)]
    if not len(defined):
        return np.nan, np.nan
    tail = 50 * (1 - confidence)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)
