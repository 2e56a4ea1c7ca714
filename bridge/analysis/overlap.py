"""Whether the same samples fail: between noise models, and between chips of one noise model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.failures import deciles
from bridge.analysis.intervals import percentile_interval
from bridge.checks import (
    chips_of,
    real_scores,
    require_confidence,
    require_resamples,
    require_seed,
    same_length,
)
from jaxcurv.rows import require_same_rows

COLUMNS = (
    *("first", "second", "chips_first", "chips_second", "pairs", "rate_first", "rate_second"),
    *("jaccard", "jaccard_low", "jaccard_high", "jaccard_chance", "jaccard_margin", "explained"),
    *("spearman", "spearman_low", "spearman_high", "spearman_given_margin", "reason"),
)
"""Columns of the table that `failure_overlap` returns."""

_LEAST = 1e-12  # a smaller difference is rounding


def failure_overlap(
    failures: Mapping[str, npt.ArrayLike],
    margin: npt.ArrayLike,
    *,
    same_chips: bool = False,
    bins: int = 20,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far the samples that fail are the same ones, and how much of that the margin explains.

    For two sets of chips A and B, and for one set with itself (between its own chips):

    - jaccard: |a and b| / |a or b| of the samples that fail on chip a of A and b of B, the mean
      over pairs of chips; pairs without any failure are left out.
    - jaccard_chance: the same if a and b failed independently, each sample at the chip's own rate.
    - jaccard_margin: the same if each sample failed independently, at the chip's failure rate in
      the sample's margin bin. Both are ratios of expectations, with p_i and q_i the two chips'
      probabilities for sample i: sum of p_i q_i / sum of (p_i + q_i - p_i q_i).
    - explained: (jaccard_margin - jaccard_chance) / (jaccard - jaccard_chance), the part of the
      overlap beyond chance that the margin alone gives; noise may put it outside [0, 1]. Too low
      where failures are so rare that a bin or two hold most, too high where a bin holds a few
      samples only, as it then knows them one by one: try other bins.
    - spearman: rank correlation of the two shares of chips on which a sample fails. Within one set
      about what another set of n such chips would give: the rho r of two halves of h chips each,
      stepped up to n r / (h + (n - h) r) where r > 0 (Spearman and Brown, Brit. J. Psychol. 3,
      1910, 271-322), the mean over several halvings. For ranks that is right to some hundredths.
    - spearman_given_margin: the same with the rank of the margin partialled out of both. That
      removes what is linear in the ranks; jaccard_margin assumes no such form.

    Intervals are percentile bootstrap over samples: they do not cover the choice of the chips. All
    rows share the resamples.

    >>> pcm = [[True, True, False, False], [True, False, False, False]]
    >>> reram = [[True, False, True, False]]
    >>> table = failure_overlap({"pcm": pcm, "reram": reram}, [0.1, 0.2, 0.3, 0.4], bins=2)
    >>> table[["first", "second", "pairs", "jaccard", "jaccard_chance"]].round(3)
       first second  pairs  jaccard  jaccard_chance
    0    pcm    pcm      1    0.500           0.200
    1    pcm  reram      2    0.417           0.267
    2  reram  reram      0      NaN             NaN

    Args:
        failures: by name, bool [chips, samples], or [samples] of one chip. All among the samples
            that are passed in: leave out what the digital model gets wrong.
        margin: real [samples], no NaN; of either sign, for only its ranks enter. Equal margins at
            the edge of a bin are told apart by their position.
        same_chips: whether chip k is one and the same under every name, its draws included, as
            the profiles of one seed are. Pairs of equal k are then left out between names, where
            both have several chips, and spearman is of disjoint halves of them, stepped up as
            within one set; of one chip each it keeps what they share.
        bins: equal-sized margin bins; 20 is an assumption.
        confidence: confidence level of the intervals, between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        One row a pair of names, each with itself included: first, second, chips_first,
        chips_second, pairs (of chips, in jaccard), rate_first, rate_second (failure rates, means
        over chips), jaccard with _low and _high, jaccard_chance, jaccard_margin, explained,
        spearman with _low and _high, spearman_given_margin, and reason: why some are NaN, or "".

    Raises:
        ValueError: for no names, NaN, fewer samples than bins, other dtypes, lengths or shapes.
    """
    if not isinstance(failures, Mapping) or not failures:
        raise ValueError("no failures to compare; give those of at least one name")
    require_same_rows(
        **{f"failures of {name}": one for name, one in failures.items()}, margin=margin
    )
    failed = {name: chips_of(f"failures of {name}", one) for name, one in failures.items()}
    margin = real_scores(margin, "margin")
    same_length(**{f"failures of {name}": one for name, one in failed.items()}, margin=margin)
    confidence = require_confidence(confidence)
    resamples, seed = require_resamples(resamples), require_seed(seed)
    bin_of = deciles(margin, np.arange(len(margin)), bins) - 1
    with_margin = {
        name: _correlation(_ranks(one.sum(axis=0)), _ranks(margin)) for name, one in failed.items()
    }
    patterns, weights = _resampled_patterns(failed, resamples, np.random.default_rng(seed))
    rows = []
    for first, second in combinations_with_replacement(failed, 2):
        a, b = failed[first], failed[second]
        pairs = _pairs(len(a), len(b), first == second, same_chips)
        jaccard = _jaccard(patterns[first], patterns[second], pairs, weights)
        chance = _expected_jaccard(a, b, pairs, np.zeros_like(bin_of))
        by_margin = _expected_jaccard(a, b, pairs, bin_of)
        beyond = jaccard[0] - chance
        one, other = patterns[first], patterns[second]
        rho = np.full((1, len(weights)), np.nan)
        if first != second and not (same_chips and len(a) == len(b) > 1):
            rho = _spearman(one, other, weights)[None]
        elif len(a) > 1:
            rho = np.array([_spearman(one[i], other[j], weights) for i, j in _halvings(len(a))])
            rho = _stepped_up(rho, len(a) / (len(a) // 2))
        spearman = _mean_defined(rho, axis=0)
        row: dict[str, object] = {
            "first": first,
            "second": second,
            "chips_first": len(a),
            "chips_second": len(b),
            "pairs": len(pairs[0]),
            "rate_first": a.mean(),
            "rate_second": b.mean(),
            "jaccard": jaccard[0],
            "jaccard_chance": chance,
            "jaccard_margin": by_margin,
            "explained": (by_margin - chance) / beyond if beyond > _LEAST else np.nan,
            "spearman": spearman[0],
            "spearman_given_margin": _partial(spearman[0], with_margin[first], with_margin[second]),
        }
        for name, values in (("jaccard", jaccard), ("spearman", spearman)):
            low, high = percentile_interval(values[1:], confidence)
            # An undefined value has no interval, though some resamples of it may.
            defined = not np.isnan(values[0])
            row[f"{name}_low"], row[f"{name}_high"] = (low, high) if defined else (np.nan, np.nan)
        row["reason"] = _reason(row, {first: a, second: b})
        rows.append(row)
    return pd.DataFrame(rows)[[*COLUMNS]]


@dataclass(frozen=True)
class SystematicShare:
    """How far the chips of one noise model fail on the same samples.

    Attributes:
        chips: number of chips; half of it is h below.
        samples: number of samples, divided into the four counts that follow.
        on_none: samples that fail on no chip.
        on_some: samples that fail on at least one and at most h chips.
        on_most: samples that fail on more than h chips, but not on all.
        on_all: samples that fail on all chips.
        events: failures, summed over chips.
        rate: events / (chips samples).
        systematic: the share of the events that come from samples failing on more than h chips.
        systematic_low, systematic_high: bootstrap percentile interval of `systematic`, over
            samples.
        chip_specific: the rest, 1 - systematic.
        on_none_expected, on_some_expected, on_most_expected, on_all_expected: the same count, had
            each chip failed on each sample independently at `rate` (binomial distribution).
        systematic_expected: the share of the events then expected, a ratio of expectations.
        reason: why shares are NaN, or "".
    """

    chips: int
    samples: int
    on_none: int
    on_some: int
    on_most: int
    on_all: int
    events: int
    rate: float
    systematic: float
    systematic_low: float
    systematic_high: float
    chip_specific: float
    on_none_expected: float
    on_some_expected: float
    on_most_expected: float
    on_all_expected: float
    systematic_expected: float
    reason: str = ""


def systematic_share(
    failures: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> SystematicShare:
    """The failures that are the samples' and those that are the single chip's.

    Three chips at least make "most" differ from "all". That all chips share the samples' fragility
    is what raises `systematic` above `systematic_expected`. The interval is over samples: it does
    not cover the choice of the chips.

    >>> share = systematic_share([[True, True, False], [True, False, False], [True, False, False]])
    >>> share.on_all, share.on_some, share.on_none, share.systematic
    (1, 1, 1, 0.75)

    Args:
        failures: bool [chips, samples] of one noise model, at least 2 chips; among the digitally
            correct samples, so that a rate is one of those that can fail.
        confidence: confidence level of the interval, between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: for one chip or no samples, other dtypes or shapes.
    """
    require_same_rows(failures=failures)
    failed = chips_of("failures", failures)
    confidence = require_confidence(confidence)
    resamples, seed = require_resamples(resamples), require_seed(seed)
    chips, samples = failed.shape
    if chips < 2 or samples < 1:
        raise ValueError(
            "what is systematic shows between chips: give failures of at least 2 chips and 1 "
            f"sample; got {chips} and {samples}"
        )
    on = np.arange(chips + 1)
    counts = np.bincount(failed.sum(axis=0), minlength=chips + 1)
    most = 2 * on > chips
    groups = (on == 0, (on > 0) & ~most, most & (on < chips), on == chips)
    rate = float(failed.mean())
    expected = samples * np.array(
        [comb(chips, int(k)) * rate**k * (1 - rate) ** (chips - k) for k in on]
    )

    def share(distribution: npt.NDArray) -> npt.NDArray[np.float64]:
        events = distribution @ on
        return (distribution @ (on * most)) / np.where(events > 0, events, np.nan)

    drawn = np.random.default_rng(seed).multinomial(samples, counts / samples, resamples)
    low, high = percentile_interval(share(drawn), confidence)
    systematic = float(share(counts))
    observed = [int(counts[group].sum()) for group in groups]
    by_chance = [float(expected[group].sum()) for group in groups]
    return SystematicShare(
        chips=chips,
        samples=samples,
        on_none=observed[0],
        on_some=observed[1],
        on_most=observed[2],
        on_all=observed[3],
        events=int(failed.sum()),
        rate=rate,
        systematic=systematic,
        systematic_low=low,
        systematic_high=high,
        chip_specific=1 - systematic,
        on_none_expected=by_chance[0],
        on_some_expected=by_chance[1],
        on_most_expected=by_chance[2],
        on_all_expected=by_chance[3],
        systematic_expected=float(share(expected)),
        reason="" if failed.any() else "no failures",
    )


_Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


def _pairs(first: int, second: int, same_name: bool, same_chips: bool) -> _Pairs:
    """Positions of the chips that are compared, one array for either side."""
    kept = np.ones((first, second), bool)
    if same_name:
        kept = np.triu(kept, 1)
    elif same_chips and first > 1 and second > 1:
        kept &= ~np.eye(first, second, dtype=bool)
    a, b = np.nonzero(kept)
    return a, b


def _resampled_patterns(
    failed: Mapping[str, npt.NDArray[np.bool_]], resamples: int, rng: np.random.Generator
) -> tuple[dict[str, npt.NDArray[np.bool_]], npt.NDArray[np.float32]]:
    """Samples that fail on the same chips of all names are one pattern, of which only counts vary.

    Returns each name's outcomes [chips, patterns] and the counts [1 + resamples, patterns], those
    observed first; float32 holds them and their sums exactly.
    """
    stacked = np.concatenate(list(failed.values()))
    packed, sizes = np.unique(np.packbits(stacked, axis=0).T, axis=0, return_counts=True)
    outcomes = np.unpackbits(packed, axis=1, count=len(stacked)).T.astype(bool)
    ends = np.cumsum([len(one) for one in failed.values()])[:-1]
    patterns = dict(zip(failed, np.split(outcomes, ends), strict=True))
    drawn = rng.multinomial(sizes.sum(), sizes / sizes.sum(), resamples)
    return patterns, np.concatenate([sizes[None], drawn]).astype(np.float32)


def _jaccard(
    a: npt.NDArray[np.bool_],
    b: npt.NDArray[np.bool_],
    pairs: _Pairs,
    weights: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """The mean over the pairs of chips, for each row of weights."""
    both = (weights @ (a[pairs[0]] & b[pairs[1]]).T.astype(np.float32)).astype(np.float64)
    sizes = [(weights @ one.T.astype(np.float32)).astype(np.float64) for one in (a, b)]
    either = sizes[0][:, pairs[0]] + sizes[1][:, pairs[1]] - both
    return _mean_defined(both / np.where(either > 0, either, np.nan), axis=1)


def _expected_jaccard(
    a: npt.NDArray[np.bool_],
    b: npt.NDArray[np.bool_],
    pairs: _Pairs,
    group: npt.NDArray[np.int64],
) -> float:
    """Expected if each sample failed independently, at its chip's failure rate in its group."""
    sizes = np.bincount(group).astype(np.float64)
    rates = [np.array([np.bincount(group, chip) for chip in one]) / sizes for one in (a, b)]
    p, q = rates[0][pairs[0]], rates[1][pairs[1]]
    both, either = (p * q) @ sizes, (p + q - p * q) @ sizes
    return float(_mean_defined(both / np.where(either > 0, either, np.nan), axis=0))


def _spearman(
    a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Spearman's rho of the two numbers of chips that fail, for each row of weights.

    From the table of how many samples have which two numbers: equal numbers share their mean rank.
    """
    levels = len(a) + 1, len(b) + 1
    cell = a.sum(axis=0) * levels[1] + b.sum(axis=0)
    table = weights @ np.eye(levels[0] * levels[1], dtype=np.float32)[cell]
    table = table.reshape(-1, *levels).astype(np.float64)
    ranks, spreads = [], []
    for axis in (2, 1):
        count = table.sum(axis=axis)
        samples = count.sum(axis=1, keepdims=True)
        rank = np.cumsum(count, axis=1) - count / 2 - samples / 2  # centred
        ranks.append(rank)
        spreads.append((count * rank**2).sum(axis=1))
    product = np.einsum("rij,ri,rj->r", table, *ranks)
    scale = np.sqrt(spreads[0] * spreads[1])
    return product / np.where(scale > 0, scale, np.nan)


def _partial(rho: float, first: float, second: float) -> float:
    """What is left of a correlation once both sides' correlations with a third are taken out."""
    left = (1 - first**2) * (1 - second**2)
    return float((rho - first * second) / np.sqrt(left)) if left > _LEAST else np.nan


def _correlation(a: npt.NDArray, b: npt.NDArray) -> float:
    """Correlation of two centred vectors; 0 where one is constant and tells nothing."""
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _ranks(values: npt.NDArray) -> npt.NDArray[np.float64]:
    """Mean ranks, centred."""
    return pd.Series(values).rank().to_numpy(np.float64) - (len(values) + 1) / 2


def _halvings(chips: int) -> list[_Pairs]:
    """Several ways to choose two halves of the chips; of an odd number one is left out."""
    half = chips // 2
    turned = [np.roll(np.arange(chips), -start) for start in range(chips)]
    return [(one[: 2 * half : 2], one[1 : 2 * half : 2]) for one in turned] if half else []


def _stepped_up(rho: npt.NDArray[np.float64], times: float) -> npt.NDArray[np.float64]:
    """Spearman and Brown's rho of sets `times` as large; what is not positive stays."""
    return np.where(rho > 0, times * rho / (1 + (times - 1) * rho), rho)


def _mean_defined(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """The mean of what is not NaN; NaN where nothing is."""
    defined = np.isfinite(values)
    count = defined.sum(axis=axis)
    return np.where(defined, values, 0.0).sum(axis=axis) / np.where(count > 0, count, np.nan)


def _reason(row: Mapping[str, object], failed: Mapping[str, npt.NDArray[np.bool_]]) -> str:
    """Why values of a row are NaN."""
    reasons = []
    if not row["pairs"]:
        reasons.append(f"one chip of {row['first']} only")
    for name, one in failed.items():
        share = one.sum(axis=0)
        if not share.any():
            reasons.append(f"no failures of {name}")
        elif (share == share[0]).all():
            reasons.append(f"every sample fails alike under {name}")
    undefined = [name for name, value in row.items() if value != value]
    if undefined and not reasons:
        if "explained" in undefined:
            reasons.append("no overlap beyond chance")
        if "spearman" in undefined:
            reasons.append("no halves of the chips vary")
        elif "spearman_given_margin" in undefined:
            reasons.append("nothing varies but with the margin")
    return "; ".join(reasons)
