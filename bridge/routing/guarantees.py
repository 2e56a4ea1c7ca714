"""Thresholds with a guarantee: how often samples that stay on the chip fail, bounded beforehand.

A sample stays on the chip where its score is at most the threshold; `Router` and `routed_at` route
scores of at least theirs, so they take `numpy.nextafter(threshold, numpy.inf)`. With a threshold of
inf a score of inf stays too, but routers still send it away: what stays there is a part of it.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, xlogy

from bridge.checks import (
    real_scores,
    require_between_0_and_1,
    rows_of_chips,
    same_length,
    sample_indices,
    scores_of_chips,
    vector,
    warn_of_repeated_samples,
)
from jaxcurv.rows import require_same_rows
from jaxcurv.settings import plain

ShareOf = Literal["all", "stays"]
"""What the share of failures is taken of: all samples, or those that stay on the chip."""

_SHARES = 20
"""Thresholds that `of="stays"` tests at most: they keep this many equal parts of the samples."""
_ROUNDING = 1e-9
"""Slack of comparisons, relative: a level that is met exactly must not fail for its rounding."""


def guaranteed_threshold(
    scores: npt.ArrayLike,
    losses: npt.ArrayLike,
    level: float = 0.01,
    confidence: float | None = None,
    of: ShareOf = "all",
) -> float:
    """The largest threshold with which failures on the chip are at most a level.

    A sample stays on the chip where its score is at most the threshold t. With n calibration
    samples, R(t) = (1 / n) sum_i losses_i 1{scores_i <= t}; R never falls with t.

    - `confidence=None`: conformal risk control, the largest t that occurs with

            n / (n + 1) R(t) + 1 / (n + 1) <= level

        Then a new sample stays and fails with a probability of at most `level`. That is a mean over
        calibration sets too: with the threshold of one it may be more, with another's less.

    - with a confidence: Learn-then-Test. Thresholds are tested in ascending order, and the last one
        before the first that fails is taken. A test passes where P(Bin(n, level) <= n R(t)) is at
        most 1 - confidence; for losses other than 0 and 1 the Hoeffding-Bentkus bound is in its
        place. Then, but for a share of 1 - confidence of the calibration sets, the share of all
        samples that stay and fail is at most `level`.

    - `of="stays"`, with a confidence: the share of failures *among those that stay*, which may rise
        and fall with t. Up to 20 thresholds are tested, at equal parts of the calibration samples,
        each by the samples below it and at (1 - confidence) over their number; the largest that
        passes is taken. Given an order statistic, the samples below it are independent draws from
        below it, so that the thresholds may come from the calibration samples themselves.

    What is assumed: new samples are drawn as the calibration samples were (exchangeable; with a
    confidence independent too), run on the same chip under the same conditions, and the score was
    not made from the calibration outcomes. Later in the drift of the chip, or for other images,
    nothing is promised.

    **A chip that was not seen.** With losses [chips, samples] the unit is the chip: n is their
    number, and a chip's loss at t is its mean over its samples. A level of 0.01 then takes 99 chips
    (`calibration_size`), drawn as the new one will be. The promise is for the samples that the
    calibration chips share. It is for other samples as well where every chip was calibrated on
    samples of its own (scores [chips, samples]); where chips share them, other samples add an
    error, not bounded here, that falls with the number of samples.

    >>> scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    >>> fails = [False, False, False, False, True, False, False, True, True]
    >>> guaranteed_threshold(scores, fails, level=0.25)  # (1 + 1) / 10, but not (2 + 1) / 10
    0.7

    Args:
        scores: real [samples], higher for more fragile samples; or [chips, samples] where each chip
            gives its own or has samples of its own. inf is for samples that stay only where all do.
        losses: [samples] or [chips, samples], in [0, 1]: 1 or True where the chip fails, such as
            `bridge.analysis.analog_only_failures`.
        level: the largest share of failures, in (0, 1).
        confidence: how surely, in (0, 1); None for the bound in expectation.
        of: "all": the share of all samples; "stays": of those that stay, for losses [samples].

    Returns:
        A score that occurs, or for "stays" the number just below one. inf where all may stay; -inf
        where none may, with a warning where that is so for want of calibration samples or chips.

    Raises:
        ValueError: a level or confidence outside (0, 1), NaN or scores of -inf, losses outside
            [0, 1], other shapes, nothing to calibrate on; "stays" without a confidence or for
            several chips.

    Sources: Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control" (2022; ICLR
    2024); Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test" (2021); Geifman and
    El-Yaniv, "Selective Classification for Deep Neural Networks" (2017), for binomial bounds among
    those that stay.
    """
    require_same_rows(scores=scores, losses=losses)
    level = require_between_0_and_1("level", level)
    if confidence is not None:
        confidence = require_between_0_and_1("confidence", confidence)
    _require_of(of)
    several = np.ndim(rows_of_chips("losses", losses)) == 2
    values, lost = _checked(scores, losses)
    if len(values) == 1:
        warn_of_repeated_samples(values[0], "losses")
    if of == "stays" and confidence is None:
        raise ValueError(
            'of="stays" bounds a share of a number that varies, which holds with a confidence '
            'only: give one, confidence=0.95, or of="all"'
        )
    if of == "stays" and several:
        raise ValueError(
            'of="stays" takes one chip\'s losses [samples]: call it for each chip, or bound the '
            'share of all samples on a new chip with of="all"'
        )
    units = len(lost) if several else lost.size
    if units < (needed := calibration_size(level, confidence)):
        surely = "" if confidence is None else f" with a confidence of {confidence:g}"
        what = "chips" if several else "samples"
        warnings.warn(
            f"{units} {what} promise nothing at a level of {level:g}{surely}: {needed} are needed. "
            "Give more, or a higher level; the threshold is -inf, which lets nothing stay",
            stacklevel=2,
        )
        return -math.inf
    if of == "stays":
        assert confidence is not None
        kind = np.asarray(scores).dtype
        return _among_stays(values[0], lost[0], level, 1 - confidence, kind)
    ordered, totals = _totals(values, lost, units)
    if confidence is None:
        enough = totals + 1 <= level * (units + 1) * (1 + _ROUNDING)
    else:
        binary = units == lost.size and bool(np.isin(lost, (0, 1)).all())
        enough = _rejected(totals, np.full(len(totals), units), level, 1 - confidence, binary)
    if enough.all():
        return math.inf
    passed = int(enough.argmin())  # totals never fall, so that all before the first have passed
    return float(ordered[passed - 1]) if passed else -math.inf


def calibration_size(level: float, confidence: float | None = None) -> int:
    """The fewest calibration samples, or chips, for a level: fewer promise nothing.

        n >= 1 / level - 1;  with a confidence  n >= log(1 - confidence) / log(1 - level)

    So many suffice where none of them fails below some score; each failure there takes more.

    >>> calibration_size(0.01), calibration_size(0.01, confidence=0.95)
    (99, 299)

    Args:
        level, confidence: as for `guaranteed_threshold`.

    Raises:
        ValueError: one of them is outside (0, 1).
    """
    level = require_between_0_and_1("level", level)
    if confidence is None:
        return math.ceil((1 / level - 1) * (1 - _ROUNDING))
    confidence = require_between_0_and_1("confidence", confidence)
    return math.ceil(math.log1p(-confidence) / math.log1p(-level) * (1 - _ROUNDING))


def risk_at(
    threshold: float,
    scores: npt.ArrayLike,
    losses: npt.ArrayLike,
    *,
    of: ShareOf = "all",
    indices: npt.ArrayLike | None = None,
    calibrated_on: npt.ArrayLike | None = None,
) -> float:
    """The share of samples that stay on the chip, score <= threshold, and fail there.

    >>> risk_at(0.5, [0.2, 0.4, 0.5, 0.9], [False, True, False, True])
    0.25
    >>> risk_at(0.5, [0.2, 0.4, 0.6, 0.9], [False, True, False, True], of="stays")
    0.5

    Args:
        threshold: as `guaranteed_threshold` returns it.
        scores, losses, of: as there, of samples that did not choose the threshold; of several chips
            the result is the mean, among those that stay over all of them together.
        indices: int [samples], unique and stable; needed to compare with `calibrated_on`.
        calibrated_on: int, the indices of the samples that chose the threshold.

    Returns:
        A fraction; NaN among those that stay where none does.

    Raises:
        ValueError: a sample chose the threshold too; a NaN threshold; and as there.
    """
    require_same_rows(scores=scores, losses=losses, indices=indices)
    threshold = float(plain(threshold))
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN; give one of guaranteed_threshold")
    values, lost = _checked(scores, losses)
    _require_of(of)
    if calibrated_on is not None:
        _require_others(indices, calibrated_on, lost.shape[-1])
    stays = np.broadcast_to(values <= threshold, lost.shape)
    if of == "all":
        return float((lost * stays).mean())
    return float(lost[stays].mean()) if stays.any() else math.nan


def _among_stays(
    scores: npt.NDArray[np.float64],
    losses: npt.NDArray[np.float64],
    level: float,
    error: float,
    kind: np.dtype,
) -> float:
    """The largest of some thresholds whose stays fail at most at this level, but for an error.

    A threshold is an order statistic; tested are the samples strictly below it. How many thresholds
    are tested depends on the number of samples alone: as many as could pass without any failure.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    lost = np.append(0.0, np.cumsum(losses[order]))
    kept = len(ordered) * np.arange(1, _SHARES + 1) // _SHARES
    tests = next(
        many
        for many in range(_SHARES, 0, -1)
        if (1 - level) ** kept[-many] <= error / many * (1 + _ROUNDING)
    )
    thresholds = np.append(ordered[kept[-tests:-1]], np.inf)
    below = np.append(np.searchsorted(ordered, thresholds[:-1]), len(ordered))
    binary = bool(np.isin(losses, (0, 1)).all())
    passing = np.flatnonzero(_rejected(lost[below], below, level, error / tests, binary))
    if not len(passing):
        return -math.inf
    if passing[-1] == tests - 1:
        return math.inf
    # In the scores' own precision, in which they will be compared.
    real = kind.type if kind.kind == "f" else np.float64
    return float(np.nextafter(real(thresholds[passing[-1]]), real(-np.inf)))


def _totals(
    scores: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], units: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distinct scores in ascending order, and the sum over units of their loss at each."""
    values = np.broadcast_to(scores, losses.shape).ravel()
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # ties stay together
    totals = np.cumsum(losses.ravel()[order]) * units / losses.size
    return ordered[last], totals[last]


def _rejected(
    lost: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    level: float,
    error: float,
    binary: bool,
) -> npt.NDArray[np.bool_]:
    """Whether sums of so many losses reject, but for an error, that their risk is above the level.

    The p-value is P(Bin(n, level) <= n R), exact, for losses of 0 and 1. Else it is the smaller of
    Hoeffding's exp(-n h), with h the Kullback-Leibler divergence of R from the level, and of
    Bentkus's e P(Bin(n, level) <= ceil(n R)).
    """
    whole = np.ceil(lost * (1 - _ROUNDING))
    some = np.maximum(counts, 1)
    p = bdtr(np.minimum(whole, some), some, level)
    if not binary:
        risk = np.minimum(lost / some, level)
        divergence = xlogy(risk, risk / level) + xlogy(1 - risk, (1 - risk) / (1 - level))
        p = np.minimum(np.exp(-counts * divergence), math.e * p)
    return (p <= error * (1 + _ROUNDING)) & (counts > 0)


def _checked(
    scores: npt.ArrayLike, losses: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores [1 or chips, samples] and losses [chips, samples]; one chip for losses [samples]."""
    given = rows_of_chips("losses", losses)
    if given.ndim == 1:
        given = vector("losses", given, "biuf", "bools or numbers in [0, 1]")
    if given.ndim not in (1, 2) or given.dtype.kind not in "biuf":
        raise ValueError(
            "losses must be bools or numbers in [0, 1], [samples] or [chips, samples]; got "
            f"{given.dtype} {given.shape}"
        )
    if not given.size:
        raise ValueError("no samples to calibrate on; give at least one")
    lost = np.atleast_2d(given).astype(np.float64)
    if given.ndim == 1:
        values = real_scores(scores, "scores")[None]
    else:
        values = scores_of_chips(scores, len(lost), "scores")
    same_length(scores=values, losses=lost)
    wrong = ~((lost >= 0) & (lost <= 1))
    if wrong.any():
        first = tuple(int(place) for place in np.argwhere(wrong)[0])
        raise ValueError(
            f"{int(wrong.sum())} of {lost.size} losses are not in [0, 1], the first "
            f"{lost[first]:g}: divide them by their largest possible value, or give failures as "
            "bools"
        )
    if lowest := int((values == -np.inf).sum()):
        raise ValueError(
            f"{lowest} of {values.size} scores are -inf, which no threshold routes; give finite "
            "ones, or inf for samples that are to be routed"
        )
    return values, lost


def _require_of(of: str) -> None:
    if of not in ("all", "stays"):
        raise ValueError(f'of is "all" or "stays", got {of!r}')


def _require_others(
    indices: npt.ArrayLike | None, calibrated_on: npt.ArrayLike, samples: int
) -> None:
    if indices is None:
        raise ValueError("calibrated_on is compared with indices: give those of these samples too")
    here = sample_indices(indices, samples)
    both = np.intersect1d(here, vector("calibrated_on", calibrated_on, "iu", "integers"))
    if len(both):
        raise ValueError(
            f"{len(both)} of {samples} samples, the first at index {both[0]}, chose the threshold "
            "too, and so tell nothing of its guarantee: give others"
        )
