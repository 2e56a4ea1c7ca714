"""Analog-only failures and how their rate follows a per-sample score: NumPy in, tables out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.intervals import rate_interval
from bridge.checks import (
    chips_of,
    real_scores,
    require_confidence,
    require_count,
    same_length,
    sample_indices,
    vector,
    warn_of_repeated_samples,
)
from jaxcurv.rows import require_same_rows


def analog_only_failures(
    digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Samples that the digital model classifies correctly and the analog chip does not.

    >>> analog_only_failures([True, True, False], [True, False, False])
    array([False,  True, False])

    Args:
        digital_correct: bool [samples].
        analog_correct: bool [samples], the same samples in the same order; or [chips, samples].

    Returns:
        bool, of the shape of `analog_correct`.

    Raises:
        ValueError: for other dtypes or shapes.
    """
    require_same_rows(digital_correct=digital_correct, analog_correct=analog_correct)
    digital = vector("digital_correct", digital_correct, "b", "bools")
    analog = chips_of("analog_correct", analog_correct)
    same_length(digital_correct=digital, analog_correct=analog)
    return (digital & ~analog).reshape(np.shape(analog_correct))


def deciles(score: npt.ArrayLike, indices: npt.ArrayLike, bins: int = 10) -> npt.NDArray[np.int64]:
    """The bin of each sample, 1 (lowest scores) to `bins` (highest), by rank.

    The sample of rank r = 0 .. n-1 goes to bin floor(r * bins / n) + 1, so sizes differ by at most
    one. Equal scores are ranked by the stable index, so row order never matters; `edge_ties`
    counts the samples for which only the index decided.

    >>> deciles([0.3, 0.1, 0.2, 0.9], indices=[0, 1, 2, 3], bins=2)
    array([2, 1, 1, 2])

    Args:
        score: real [samples], no NaN.
        indices: int [samples], unique.
        bins: how many bins; at most the number of samples.

    Returns:
        int64 [samples].

    Raises:
        ValueError: for NaN, repeated indices, too few samples, other dtypes or shapes.
    """
    require_same_rows(score=score, indices=indices)
    score = real_scores(score)
    indices = sample_indices(indices, len(score))
    bins = require_count("bins", bins)
    if len(score) < bins:
        raise ValueError(f"{len(score)} samples cannot fill {bins} bins; score more or ask fewer")
    rank = np.empty(len(score), np.int64)
    rank[np.lexsort((indices, score))] = np.arange(len(score))
    return rank * bins // len(score) + 1


def edge_ties(score: npt.ArrayLike, decile: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Samples whose score also occurs in another bin: only their index put them where they are.

    >>> edge_ties([0.1, 0.2, 0.2, 0.9], decile=[1, 1, 2, 2])
    array([False,  True,  True, False])

    Args:
        score: real [samples], no NaN.
        decile: int [samples], as `deciles` returns it.

    Returns:
        bool [samples].

    Raises:
        ValueError: for NaN, other dtypes or shapes.
    """
    require_same_rows(score=score, decile=decile)
    score = real_scores(score)
    decile = vector("decile", decile, "iu", "integers")
    same_length(score=score, decile=decile)
    bins_of_value = pd.Series(decile).groupby(score)
    return (bins_of_value.transform("min") != bins_of_value.transform("max")).to_numpy()


def within_class_rank(score: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A score's rank among the samples of its own class, as a share of the class.

    (r + 1/2) / n for the sample of rank r = 0 .. n-1 among the n of its class: classes differ in
    difficulty, and this ranks within each. Equal scores share their mean rank.

    >>> within_class_rank([0.1, 0.5, 7.0, 9.0], labels=[0, 0, 1, 1])
    array([0.25, 0.75, 0.25, 0.75])

    Args:
        score: real [samples], no NaN.
        labels: int [samples].

    Returns:
        float64 [samples] in (0, 1).

    Raises:
        ValueError: for NaN, other dtypes or shapes.
    """
    require_same_rows(score=score, labels=labels)
    score = real_scores(score)
    labels = vector("labels", labels, "iu", "integers")
    same_length(score=score, labels=labels)
    groups = pd.Series(score).groupby(labels)
    return ((groups.rank() - 0.5) / groups.transform("size")).to_numpy(np.float64)


@dataclass(frozen=True)
class Trend:
    """Whether failures rise from bin to bin: z > 0 where they do.

    Attributes:
      z: standard normal if there is no trend; NaN where undefined.
      p: two-sided p-value; NaN where undefined.
      reason: why z and p are NaN, else "".
    """

    z: float
    p: float
    reason: str = ""


def trend_test(decile: npt.ArrayLike, failed: npt.ArrayLike) -> Trend:
    """Test of a linear trend of the failure rate over the bins; Cochran-Armitage for one chip.

    With d a sample's bin, f the share of the chips on which it fails and r Pearson's correlation of
    the two, z = r sqrt(n - 1): the permutation distribution of the sum of d f, in its normal limit.
    The unit is the sample, so that chips which fail on the same samples do not count as evidence
    many times. p is two-sided.

    >>> found = trend_test([1, 1, 1, 1, 2, 2, 2, 2], [False] * 4 + [True] * 4)
    >>> round(found.z, 3), round(found.p, 3)  # r = 1: z = sqrt(7)
    (2.646, 0.008)

    Sources: P. Armitage, Biometrics 11 (1955) 375-386; with n - 1 after N. Mantel, JASA 58 (1963).

    Args:
        decile: int [samples].
        failed: bool [samples], or [chips, samples].

    Raises:
        ValueError: for other dtypes or shapes.
    """
    require_same_rows(decile=decile, failed=failed)
    decile = vector("decile", decile, "iu", "integers")
    failed = chips_of("failed", failed)
    same_length(decile=decile, failed=failed)
    if len(decile) < 2:
        return Trend(np.nan, np.nan, "fewer than two samples")
    d = decile - decile.mean()
    share = failed.mean(axis=0)
    f = share - share.mean()
    if not f.any():
        return Trend(np.nan, np.nan, "every sample fails alike")
    if not d.any():
        return Trend(np.nan, np.nan, "one bin only")
    # Sums and not products of vectors, whose last bits depend on BLAS's number of threads.
    squares = np.sum(d * d) * np.sum(f * f)
    z = float(np.sum(d * f) / np.sqrt(squares / (len(d) - 1)))
    return Trend(z, 2 * NormalDist().cdf(-abs(z)))


def failure_table(
    score: npt.ArrayLike,
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    bins: int = 10,
    *,
    indices: npt.ArrayLike | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The analog-only failure rate in bins of the score, deciles by default.

    Rates are fractions of all samples of a bin, and of those that the digital model gets right.
    Intervals are for other samples of the bin on other chips (`rate_interval`); Wilson's for one
    chip.

    >>> curvature = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    >>> digital = [True, True, True, True, True, False]
    >>> analog = [True, True, True, False, False, False]
    >>> table = failure_table(curvature, digital, analog, bins=2)
    >>> table[["decile", "failures", "rate_of_all", "rate_of_correct"]].round(2)
       decile  failures  rate_of_all  rate_of_correct
    0       1         0         0.00              0.0
    1       2         2         0.67              1.0

    Args:
        score: real [samples], no NaN; higher is more fragile. Each sample once: rows of a long
            table with several chips would count as so many samples (a warning tells).
        digital_correct: bool [samples].
        analog_correct: bool [samples], or [chips, samples].
        bins: number of bins, of equal size.
        indices: int [samples], unique and stable; breaks ties. Positions if None.
        confidence: confidence level of the intervals, between 0 and 1.

    Returns:
        One row a bin: decile (the bin's number, 1 .. bins), chips, the counts samples,
        digitally_correct, analog_correct and failures (both summed over chips) and tied
        (`edge_ties`), score_low, score_high (smallest and largest score), and the fractions
        rate_of_all = failures / (chips samples) and rate_of_correct = failures / (chips
        digitally_correct), each with _low and _high (interval), _min and _max (over chips); NaN
        where the denominator is 0.

    Raises:
        ValueError: for NaN, repeated indices, too few samples, other dtypes or shapes.
    """
    require_same_rows(
        score=score, digital_correct=digital_correct, analog_correct=analog_correct, indices=indices
    )
    score = real_scores(score)
    digital = vector("digital_correct", digital_correct, "b", "bools")
    analog = chips_of("analog_correct", analog_correct)
    failed = analog_only_failures(digital, analog)
    same_length(score=score, correct=failed)
    confidence = require_confidence(confidence)
    if indices is None:
        warn_of_repeated_samples(score, "analog_correct")
    decile = deciles(score, sample_indices(indices, len(score)), bins)
    rows = pd.DataFrame(
        {
            "decile": decile,
            "score": score,
            "digital": digital,
            "analog": analog.sum(axis=0),
            "failed": failed.sum(axis=0),
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
    table.insert(1, "chips", len(analog))
    members = [decile == number for number in table["decile"]]
    for name, trials in (("all", table["samples"]), ("correct", table["digitally_correct"])):
        outcomes = [failed[:, rows if name == "all" else rows & digital] for rows in members]
        by_chip = (
            np.array([one.sum(axis=1) for one in outcomes])
            / trials.where(trials > 0).to_numpy()[:, None]
        )
        intervals = np.array([rate_interval(one, confidence) for one in outcomes])
        table[f"rate_of_{name}"] = by_chip.mean(axis=1)
        table[f"rate_of_{name}_low"], table[f"rate_of_{name}_high"] = intervals.T
        table[f"rate_of_{name}_min"] = by_chip.min(axis=1)
        table[f"rate_of_{name}_max"] = by_chip.max(axis=1)
    return table
