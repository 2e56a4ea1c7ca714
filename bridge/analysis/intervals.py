"""Confidence intervals: Wilson's, and the bootstrap over samples and chips."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from bridge.checks import require_confidence
from jaxcurv.rows import require_same_rows


def wilson_interval(
    failures: npt.ArrayLike, trials: npt.ArrayLike, confidence: float = 0.95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's score interval of a binomial proportion, elementwise.

    With p = k / n and z the normal quantile of (1 + confidence) / 2:

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

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
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = np.where(n > 0, n, np.nan)
    p = k / n
    centre = p + z**2 / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # The bounds at k = 0 and k = n are exactly 0 and 1; rounding would leave them just beside.
    low = np.where(k == 0, 0 * p, (centre - half) / scale)
    high = np.where(k == n, 1.0, (centre + half) / scale)
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


def chip_counts(rng: np.random.Generator, chips: int, resamples: int) -> npt.NDArray[np.float32]:
    """How often each chip was drawn, [resamples, chips]; 1 each for a single chip."""
    return rng.multinomial(chips, [1 / chips] * chips, resamples).astype(np.float32)


def resampled_failures(
    rng: np.random.Generator,
    chips: npt.NDArray[np.float32],
    failed: npt.NDArray[np.bool_],
    trials: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How many of the drawn samples fail, the mean over the drawn chips, and how many are trials.

    Args:
        rng: draws the samples.
        chips: as `chip_counts` gives them, [resamples, chips].
        failed: [chips, samples].
        trials: [samples], those that count as trials.

    Returns:
        float64 [resamples] each.
    """
    fails, of = [], []
    start = 0
    for counts in sample_counts(rng, len(trials), len(chips)):
        drawn = chips[start : start + len(counts)] / chips.shape[1]
        on_chip = counts @ failed.T.astype(np.float32)
        fails.append((on_chip * drawn).sum(axis=1, dtype=np.float64))
        of.append((counts @ trials.astype(np.float32)).astype(np.float64))
        start += len(counts)
    return np.concatenate(fails), np.concatenate(of)


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
