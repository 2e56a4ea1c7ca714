"""Spearman's rank correlation with intervals for other samples, and differences of two of them."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bridge.checks import real_scores, require_confidence
from jaxcurv.rows import require_same_rows


class Spearman(NamedTuple):
    """A rank correlation and what each sample has to do with it."""

    rho: float
    """Spearman's rho, in [-1, 1]; NaN where a side is constant."""
    influence: npt.NDArray[np.float64]
    """Influence function at each sample `[n]`: with a little more weight w on one, rho moves by w
    times this. Its mean is 0."""


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Spearman:
    """Spearman's rho, the correlation of mean ranks, and its influence function.

    With u and v the mean ranks divided by n and centred, c = mean(u v), a = mean(u^2), b =
    mean(v^2) and k(s, t) = 1 where s < t, 1/2 where s = t, else 0:

        rho = c / sqrt(a b)
        IF = IF_c / sqrt(a b) - rho / 2 (IF_a / a + IF_b / b)
        IF_c = u v + mean over X, V of k(x, X) V + mean over Y, U of k(y, Y) U - 3 c
        IF_a = u^2 + 2 mean over X, U of k(x, X) U - 3 a, and IF_b likewise

    Without ties IF_a = IF_b = 0. O(n log n).

    Source: C. Croux, C. Dehon, Stat. Methods Appl. 19 (2010) 497-515, for the influence function
    without ties; the terms of a and b are the same step for the variances of tied ranks.

    >>> spearman([1, 2, 3, 4], [1, 2, 4, 3]).rho
    0.8

    Args:
        x, y: numbers `[n]`, any unit; ties have their mean rank.

    Raises:
        ValueError: they are no vectors of as many numbers, at least 3, or some are NaN.
    """
    require_same_rows(x=x, y=y)
    x, y = real_scores(x, "x"), real_scores(y, "y")
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(
            f"x and y must be of the same samples, at least 3; got {len(x)} and {len(y)}"
        )
    u, v = _centred_ranks(x), _centred_ranks(y)
    a, b, c = np.mean(u * u), np.mean(v * v), np.mean(u * v)
    if a == 0 or b == 0:
        return Spearman(np.nan, np.full(len(x), np.nan))
    scale = np.sqrt(a * b)
    rho = float(np.clip(c / scale, -1, 1))
    of_c = u * v + _mean_beyond(x, v) + _mean_beyond(y, u) - 3 * c
    of_a, of_b = (
        ranks**2 + 2 * _mean_beyond(values, ranks) - 3 * variance
        for values, ranks, variance in ((x, u, a), (y, v, b))
    )
    return Spearman(rho, of_c / scale - rho / 2 * (of_a / a + of_b / b))


def spearman_interval(found: Spearman, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of rho that other samples would have.

    With s^2 = sum(IF^2) / (n (n - 1)), the infinitesimal jackknife's variance, and z the normal
    quantile of (1 + confidence) / 2, it is symmetric on Fisher's scale:

        tanh(atanh(rho) -+ z s / (1 - rho^2))

    It assumes no distribution. Where rho is exactly -1 or 1 no sample moves it: both ends are rho.

    >>> found = spearman([1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 2, 4, 5, 8, 6, 7])
    >>> low, high = spearman_interval(found)
    >>> round(found.rho, 3), round(low, 3), round(high, 3)
    (0.905, 0.408, 0.988)

    Sources: L. A. Jaeckel, Bell Laboratories memorandum MM 72-1215-11 (1972), for the variance; C.
    B. Borkowf, Comput. Stat. Data Anal. 39 (2002) 271-286, on that of rho where it is not 0.

    Args:
        found: as `spearman` returns it.
        confidence: confidence level of the interval, between 0 and 1.

    Returns:
        (low, high); NaN where rho is.

    Raises:
        ValueError: confidence outside (0, 1).
    """
    quantile = _normal_quantile(confidence)
    if abs(found.rho) == 1:
        return found.rho, found.rho
    half = quantile * _standard_error(found.influence) / (1 - found.rho**2)
    low, high = np.tanh(np.arctanh(found.rho) + np.array([-half, half]))
    return float(low), float(high)


def spearman_difference(
    one: Spearman, other: Spearman, confidence: float = 0.95
) -> tuple[float, float, float]:
    """How much larger one rho is than another of the same samples, with its interval.

    The two share samples, so their influence functions are subtracted sample by sample: the
    interval is the difference -+ z s with s as in `spearman_interval`.

    Args:
        one, other: as `spearman` returns them, of the same samples in the same order.
        confidence: confidence level of the interval, between 0 and 1.

    Returns:
        (one.rho - other.rho, low, high).

    Raises:
        ValueError: other numbers of samples, confidence outside (0, 1).
    """
    quantile = _normal_quantile(confidence)
    if len(one.influence) != len(other.influence):
        raise ValueError(
            f"two rank correlations of the same samples are compared; got {len(one.influence)} "
            f"and {len(other.influence)} samples"
        )
    difference = one.rho - other.rho
    half = quantile * _standard_error(one.influence - other.influence)
    return difference, difference - half, difference + half


def _standard_error(influence: npt.NDArray[np.float64]) -> float:
    count = len(influence)
    return float(np.sqrt(np.sum(influence**2) / (count * (count - 1))))


def _centred_ranks(values: npt.NDArray) -> npt.NDArray[np.float64]:
    """Mean ranks divided by n, less their mean: in (-1/2, 1/2)."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Twice the rank, less the largest, as whole numbers: a reversed order is exactly the negative.
    middle = 2 * np.cumsum(counts) - counts - len(values)
    return middle[group] / (2 * len(values))


def _mean_beyond(values: npt.NDArray, weights: npt.NDArray) -> npt.NDArray[np.float64]:
    """For each sample the sum of the weights at larger values and half of those at its own, by n.

    Args:
        values, weights: `[n]`.
    """
    _, group = np.unique(values, return_inverse=True)
    sums = np.bincount(group, weights)
    beyond = np.cumsum(sums[::-1])[::-1] - sums / 2
    return beyond[group] / len(values)


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + require_confidence(confidence)) / 2)
