"""By how much two evaluations differ, with an interval: arrays in, numbers out.

A result such as an accuracy is a mean over chips of one number a chip, and each number nearly a
mean over samples: what a sample adds to it is its influence. Of two evaluations on the same samples
or chips the influences and the chips' numbers are subtracted before their variance is taken, for
what both share does not move the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from bridge.analysis.failures import analog_only_failures
from bridge.analysis.intervals import crossed_error
from bridge.checks import chips_of, real_scores, require_confidence, same_length, vector


@dataclass(frozen=True)
class Measured:
    """A result of one evaluation.

    Attributes:
      values: [chips], the result of each chip; NaN where a chip does not define it.
      influence: [chips, samples], how far each sample moves the chip's result, times the number of
        samples: mean 0 over the samples; 0 for a chip that does not define it.
      informative: how many samples tell something: all that count, of an AUROC the rarer outcome.
      proportion: whether each chip's result is a share of the informative samples.
    """

    values: npt.NDArray[np.float64]
    influence: npt.NDArray[np.float64]
    informative: int
    proportion: bool

    @property
    def mean(self) -> float:
        """The mean over the chips that define it; NaN where none does."""
        return float(np.nanmean(self.values)) if np.isfinite(self.values).any() else np.nan


def accuracy(correct: npt.ArrayLike) -> Measured:
    """The share of the samples that are right.

    Args:
      correct: bool [chips, samples], or [samples].

    Raises:
      ValueError: other dtypes or shapes, or no samples.
    """
    right = chips_of("correct", correct)
    _require_some(right.shape[1], "samples")
    values = right.mean(axis=1)
    return Measured(values, right - values[:, None], right.shape[1], True)


def failure_rate(digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike) -> Measured:
    """The share of the digitally correct samples that fail on the chip.

    A ratio of two means over all samples, whose influence is (f - r c) / mean(c), with f whether a
    sample fails, c whether it is digitally correct and r the rate: other samples may be digitally
    correct in another evaluation.

    Args:
      digital_correct: bool [samples].
      analog_correct: bool [chips, samples], or [samples].

    Raises:
      ValueError: other dtypes or shapes, or no digitally correct sample.
    """
    digital = vector("digital_correct", digital_correct, "b", "bools")
    failed = np.atleast_2d(analog_only_failures(digital, analog_correct))
    count = int(digital.sum())
    _require_some(count, "digitally correct samples")
    values = failed.sum(axis=1) / count
    influence = (failed - values[:, None] * digital) * (len(digital) / count)
    return Measured(values, influence, count, True)


def auroc(
    score: npt.ArrayLike, digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike
) -> Measured:
    """AUROC of a score for failure, among the digitally correct samples.

    Its influences are DeLong's: with A the AUROC, a failing sample has the share of survivors that
    score below it, less A, over the share of failing samples; a survivor likewise. Ties count half.

    Source: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Biometrics 44 (1988) 837-845.

    Args:
      score: real [samples], no NaN; higher is more fragile.
      digital_correct: bool [samples].
      analog_correct: bool [chips, samples], or [samples].

    Raises:
      ValueError: other dtypes or shapes, NaN, or no digitally correct sample.
    """
    digital = vector("digital_correct", digital_correct, "b", "bools")
    score = real_scores(score, "score")
    same_length(score=score, digital_correct=digital)
    failed = np.atleast_2d(analog_only_failures(digital, analog_correct))[:, digital]
    _require_some(failed.shape[1], "digitally correct samples")
    kept = score[digital]
    rank = rankdata(kept)
    values = np.full(len(failed), np.nan)
    influence = np.zeros((len(failed), len(digital)))
    for chip, fails in enumerate(failed):
        positives, negatives = int(fails.sum()), int((~fails).sum())
        if not positives or not negatives:
            continue
        # A rank among all less that among its own kind: how many of the other kind are below.
        below = rank[fails] - rankdata(kept[fails])
        above = positives - (rank[~fails] - rankdata(kept[~fails]))
        values[chip] = below.sum() / (positives * negatives)
        own = np.empty(len(kept))
        own[fails] = (below / negatives - values[chip]) / positives
        own[~fails] = (above / positives - values[chip]) / negatives
        influence[chip, digital] = len(digital) * own
    rarer = int(min(failed.any(axis=0).sum(), (~failed).any(axis=0).sum()))
    return Measured(values, influence, rarer, False)


class Difference(NamedTuple):
    """One result less another, with the ends of its interval; NaN where one is undefined."""

    value: float
    low: float
    high: float


def difference(
    first: Measured,
    second: Measured,
    *,
    same_samples: bool,
    same_chips: bool,
    confidence: float = 0.95,
) -> Difference:
    """The first result less the second, with its interval for other samples on other chips.

    With d_k the difference of chip k of K and psi_ki that of the influences, of n samples,

        V_chip = var(d_k) / K,  V_sample = var(mean over k of psi_ki) / n,
        V_interaction = (mean over k of var(psi_k) - var(mean over k of psi_ki)) / ((K - 1) n),

    the first with divisor K - 1; `crossed_error` combines them, as in `rate_interval`. Where
    samples or chips are not the same, the variances of the two results add. Of one chip nothing is
    known of others: the interval is then for other samples alone.

    Of shares of n samples, 1 / n^2 is added to the variance, as if one more sample differed: where
    none or few differ, their spread would promise too much. Source of that: A. Agresti, Y. Min,
    Stat. Med. 24 (2005) 729-740.

    >>> a = accuracy([True] * 60 + [False] * 40)
    >>> b = accuracy([True] * 50 + [False] * 50)
    >>> [round(one, 3) for one in difference(a, b, same_samples=True, same_chips=True)]
    [0.1, 0.037, 0.163]
    >>> [round(one, 3) for one in difference(a, b, same_samples=False, same_chips=False)]
    [0.1, -0.042, 0.242]

    Args:
      first: the result that the other is taken from.
      second: the other.
      same_samples: whether both are of the same samples, in one order.
      same_chips: whether chip k of both draws the same random numbers, or is none.
      confidence: confidence level of the interval, between 0 and 1.

    Raises:
      ValueError: the same samples or chips, but other numbers of them; confidence outside (0, 1).
    """
    confidence = require_confidence(confidence)
    for what, same, axis in (("samples", same_samples, 1), ("chips", same_chips, 0)):
        counts = [one.influence.shape[axis] for one in (first, second)]
        if same and counts[0] != counts[1]:
            raise ValueError(f"the same {what} must be as many: got {counts[0]} and {counts[1]}")
    defined = [np.isfinite(one.values) for one in (first, second)]
    if same_chips:
        defined = [defined[0] & defined[1]] * 2
    if not defined[0].any() or not defined[1].any():
        return Difference(np.nan, np.nan, np.nan)
    values = [one.values[kept] for one, kept in zip((first, second), defined, strict=True)]
    influences = [one.influence[kept] for one, kept in zip((first, second), defined, strict=True)]
    found = float(values[0].mean() - values[1].mean())
    informative = min(first.informative, second.informative)
    if informative < 2:
        return Difference(found, -1.0, 1.0)
    paired_values = [values[0] - values[1]] if same_chips else values
    both = same_samples and same_chips
    blocks = [influences[0] - influences[1]] if both else influences
    means = [one.mean(axis=0) for one in influences]
    of_samples = [means[0] - means[1]] if same_samples else means
    variance, quantile = crossed_error(
        chip=sum(map(_of_chips, paired_values)),
        sample=sum(one.var() / len(one) for one in of_samples)
        + sum(1 / one.informative**2 for one in _widened(first, second, same_samples)),
        interaction=sum(map(_shared, blocks)),
        chips=min((len(one) for one in values if len(one) > 1), default=1),
        samples=informative,
        confidence=confidence,
    )
    half = quantile * float(np.sqrt(variance))
    return Difference(found, max(found - half, -1.0), min(found + half, 1.0))


def _of_chips(values: npt.NDArray[np.float64]) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _shared(influence: npt.NDArray[np.float64]) -> float:
    """What the spread of the samples and that of the chips both contain."""
    chips, samples = influence.shape
    if chips == 1:
        return 0.0
    left = influence.var(axis=1).mean() - influence.mean(axis=0).var()
    return max(float(left), 0.0) / ((chips - 1) * samples)


def _widened(first: Measured, second: Measured, same_samples: bool) -> list[Measured]:
    """The results of whose shares one sample more counts as different; one of a pair."""
    shares = [one for one in (first, second) if one.proportion]
    return [min(shares, key=lambda one: one.informative)] if same_samples and shares else shares


def _require_some(count: int, what: str) -> None:
    if not count:
        raise ValueError(f"there are no {what} to compare")
