"""Analog-only failures and how their rate follows a per-sample score: NumPy in, tables out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pandas as pd

_CHUNK = 1 << 16  # weights held at once by the bootstrap: its arrays stay in the cache, 3x faster


def analog_only_failures(
    digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Samples that the digital model classifies correctly and the analog chip does not.

    Args:
        digital_correct: bool [samples].
        analog_correct: bool [samples], the same samples in the same order.

    Returns:
        bool [samples].

    Raises:
        ValueError: for other dtypes or shapes.
    """
    digital = _vector("digital_correct", digital_correct, "b", "bools")
    analog = _vector("analog_correct", analog_correct, "b", "bools")
    _same_length(digital_correct=digital, analog_correct=analog)
    return digital & ~analog


def deciles(score: npt.ArrayLike, indices: npt.ArrayLike, bins: int = 10) -> npt.NDArray[np.int64]:
    """The bin of each sample, 1 (lowest scores) to `bins` (highest), by rank.

    The sample of rank r = 0 .. n-1 goes to bin floor(r * bins / n) + 1, so sizes differ by at most
    one. Equal scores are ranked by the stable index, so row order never matters; `edge_ties`
    counts the samples for which only the index decided.

    Args:
        score: real [samples], no NaN.
        indices: int [samples], unique.
        bins: how many bins; at most the number of samples.

    Returns:
        int64 [samples].

    Raises:
        ValueError: for NaN, repeated indices, too few samples, other dtypes or shapes.
    """
    score = _score(score)
    indices = _vector("indices", indices, "iu", "integers")
    _same_length(score=score, indices=indices)
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    if len(score) < bins:
        raise ValueError(f"{len(score)} samples cannot fill {bins} bins; score more or ask fewer")
    if len(np.unique(indices)) < len(indices):
        raise ValueError("indices must be unique; make them so before pooling folds")
    rank = np.empty(len(score), np.int64)
    rank[np.lexsort((indices, score))] = np.arange(len(score))
    return rank * bins // len(score) + 1


def edge_ties(score: npt.ArrayLike, decile: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Samples whose score also occurs in another bin: only their index put them where they are.

    Args:
        score: real [samples], no NaN.
        decile: int [samples], as `deciles` returns it.

    Returns:
        bool [samples].

    Raises:
        ValueError: for NaN, other dtypes or shapes.
    """
    score = _score(score)
    decile = _vector("decile", decile, "iu", "integers")
    _same_length(score=score, decile=decile)
    bins_of_value = pd.Series(decile).groupby(score)
    return (bins_of_value.transform("min") != bins_of_value.transform("max")).to_numpy()


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
        confidence: in (0, 1).

    Returns:
        (low, high), float64 fractions.

    Raises:
        ValueError: for other dtypes, failures outside 0 .. trials, confidence outside (0, 1).
    """
    k, n = np.asarray(failures), np.asarray(trials)
    if k.dtype.kind not in "iu" or n.dtype.kind not in "iu":
        raise ValueError(f"failures and trials must be integers; got {k.dtype} and {n.dtype}")
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("failures must lie between 0 and trials")
    _check_confidence(confidence)
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


def decile_table(
    score: npt.ArrayLike,
    indices: npt.ArrayLike,
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    bins: int = 10,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The analog-only failure rate of each score decile, with both denominators.

    Args:
        score: real [samples], no NaN.
        indices: int [samples], unique and stable; breaks ties.
        digital_correct: bool [samples].
        analog_correct: bool [samples].
        bins: how many bins.
        confidence: of the Wilson intervals.

    Returns:
        One row a bin: decile (1 .. bins), the counts samples, digitally_correct, analog_correct,
        failures and tied (`edge_ties`), score_low, score_high (smallest and largest score), and the
        fractions rate_of_all = failures / samples and rate_of_correct = failures /
        digitally_correct, each with _low and _high; NaN where the denominator is 0.

    Raises:
        ValueError: for NaN, repeated indices, too few samples, other dtypes or shapes.
    """
    score = _score(score)
    failed = analog_only_failures(digital_correct, analog_correct)
    _same_length(score=score, correct=failed)
    decile = deciles(score, indices, bins)
    rows = pd.DataFrame(
        {
            "decile": decile,
            "score": score,
            "digital": np.asarray(digital_correct),
            "analog": np.asarray(analog_correct),
            "failed": failed,
            "tied": edge_ties(score, decile),
        }
    )
    table = rows.groupby("decile", as_index=False).agg(
        samples=("score", "size"),
        digitally_correct=("digital", "sum"),
        analog_correct=("analog", "sum"),
        failures=("failed", "sum"),
        tied=("tied", "sum"),
        score_low=("score", "min"),
        score_high=("score", "max"),
    )
    for name, trials in (("all", table["samples"]), ("correct", table["digitally_correct"])):
        low, high = wilson_interval(table["failures"], trials, confidence)
        table[f"rate_of_{name}"] = table["failures"] / trials.where(trials > 0)
        table[f"rate_of_{name}_low"], table[f"rate_of_{name}_high"] = low, high
    return table


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho between a score and failure, and its bootstrap percentile interval.

    `resamples` counts those in which rho was defined; `reason` says why rho is NaN, else it is "".
    """

    rho: float
    low: float
    high: float
    confidence: float
    samples: int
    failures: int
    resamples: int
    reason: str = ""


def rank_correlation(
    score: npt.ArrayLike,
    failure: npt.ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rho between a score and 0/1 failure: Pearson's correlation of average ranks.

    The interval is the percentile bootstrap over samples, re-ranked in each resample. A resample in
    which rho is undefined (no failure drawn, for instance) is left out.

    Args:
        score: real [samples], no NaN.
        failure: bool [samples].
        confidence: in (0, 1).
        resamples: bootstrap resamples, at least 1.
        seed: of the resampling.

    Returns:
        rho in [-1, 1], positive if failures have high scores; NaN with a reason where no sample
        fails, every sample fails, or every score is the same.

    Raises:
        ValueError: for NaN, no samples, other dtypes or shapes.
    """
    failure = _vector("failure", failure, "b", "bools")
    return rank_correlations(score, failure[:, None], confidence, resamples, seed)[0]


def rank_correlations(
    score: npt.ArrayLike,
    failures: npt.ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[RankCorrelation]:
    """`rank_correlation` of one score with each column of failures (bool [samples, columns]).

    All columns share the resamples: cheaper than one call each, and their intervals are paired.
    """
    score = _score(score)
    failures = np.asarray(failures)
    if failures.ndim != 2 or failures.dtype != np.bool_:
        raise ValueError(
            f"failures must be bools [samples, columns]; got {failures.dtype} {failures.shape}"
        )
    _same_length(score=score, failures=failures)
    _check_confidence(confidence)
    n = len(score)
    if n == 0 or resamples < 1:
        raise ValueError(f"need samples and resamples; got {n} and {resamples}")

    # Sorted by score a resample is a vector of counts, and its average ranks are a running sum.
    order = np.lexsort((*failures.T, score))
    score, failed = score[order], failures[order].astype(np.float64)
    is_new = np.concatenate(([True], score[1:] != score[:-1]))
    rho = _weighted_rho(np.ones((1, n)), is_new, failed)[0]

    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    drawn = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        flat = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(flat.ravel(), minlength=size * n).reshape(size, n)
        drawn.append(_weighted_rho(counts.astype(np.float64), is_new, failed))
    resampled = np.concatenate(drawn)

    tail = 50 * (1 - confidence)
    results = []
    for column in range(failures.shape[1]):
        count = int(failures[:, column].sum())
        defined = resampled[:, column][np.isfinite(resampled[:, column])]
        reason = _undefined(count, n, is_new)
        if reason or not len(defined):
            low = high = np.nan
        else:
            low, high = np.percentile(defined, [tail, 100 - tail])
        value = np.nan if reason else rho[column]
        results.append(
            RankCorrelation(
                float(value), float(low), float(high), confidence, n, count, len(defined), reason
            )
        )
    return results


def _weighted_rho(
    weights: npt.NDArray[np.float64],
    is_new: npt.NDArray[np.bool_],
    failed: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Spearman's rho [resamples, columns] where sample i occurs weights[:, i] times.

    Samples are in the order of their scores; `is_new` marks the first of each run of equal scores.
    The ranks of a 0/1 variable are affine in it, so it enters as it is.
    """
    n = weights.shape[1]
    counts = np.add.reduceat(weights, np.flatnonzero(is_new), axis=1)
    rank = np.cumsum(counts, axis=1) - (counts - 1) / 2 - (n + 1) / 2  # average rank, centred
    rank_spread = (counts * rank**2).sum(axis=1, keepdims=True)
    fails = weights @ failed
    covariance = (weights * rank[:, np.cumsum(is_new) - 1]) @ failed
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = covariance / np.sqrt(rank_spread * fails * (n - fails) / n)
    return np.clip(rho, -1, 1)


def _undefined(failures: int, samples: int, is_new: npt.NDArray[np.bool_]) -> str:
    if failures == 0:
        return "no sample fails"
    if failures == samples:
        return "every sample fails"
    return "every score is the same" if is_new.sum() == 1 else ""


def _vector(name: str, values: npt.ArrayLike, kinds: str, want: str) -> npt.NDArray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(f"{name} must be a vector of {want}; got {array.dtype} {array.shape}")
    return array


def _score(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = _vector("score", values, "fiu", "real numbers").astype(np.float64)
    if missing := int(np.isnan(array).sum()):
        raise ValueError(f"score has {missing} NaN of {len(array)}; score these samples again")
    return array


def _same_length(**arrays: npt.NDArray) -> None:
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise ValueError(f"lengths differ: {lengths}; pass the same samples in the same order")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}")
