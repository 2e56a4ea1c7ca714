"""Which score predicts failure: several scores side by side, on the same samples and resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.failures import analog_only_failures, deciles, within_class_rank
from bridge.analysis.intervals import (
    mean_defined,
    mean_interval,
    sample_counts,
)
from bridge.checks import (
    real_scores,
    require_confidence,
    require_count,
    require_resamples,
    require_seed,
    same_length,
    sample_indices,
    scores_of_chips,
    vector,
    warn_of_repeated_samples,
)
from jaxcurv.extras import require
from jaxcurv.rows import require_same_rows

Among = Literal["correct", "all"]
"""The samples that are compared: the digitally correct ones, or all."""

_MEASURES = ("auroc", "average_precision", "spearman")


def compare_predictors(
    scores: Mapping[str, npt.ArrayLike],
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    *,
    indices: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    among: Among = "correct",
    reference: str | None = None,
    bins: int = 10,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each score tells the analog-only failures from the other samples.

    - auroc: the probability that a failing sample scores higher than another, ties half.
    - average_precision: the mean, over the failing samples, of the share of failures among the
      samples that score as high or higher. Its chance level is the failure rate.
    - spearman: Spearman's rho of the score with whether a sample fails.

    With several chips these are means over the chips that define them. Their intervals are for
    other samples on other chips: the variance over samples is a bootstrap's, that over chips of the
    chips' own values, with Student's t of as many degrees of freedom as the chips and the samples
    of the rarer outcome leave. Those of auroc and average_precision are symmetric on the logit
    scale; of a measure of exactly 1 Wilson's, of as many trials as there are samples of the rarer
    outcome; [0, 1] where there is one such sample only. All scores share the resamples, so that
    auroc_difference (to the reference's) is paired; two scores that rank alike differ by exactly 0.
    A score that was fitted, such as that of `cross_validated_logistic`, is not fitted anew in each
    resample. Where equal scores lie on the edge of a bin, d1 and d10 go by the index.

    >>> digital = [True, True, True, True, True]
    >>> analog = [True, True, False, True, False]
    >>> scores = {"curvature": [1.0, 2.0, 3.0, 4.0, 5.0], "loss": [2.0, 1.0, 4.0, 3.0, 5.0]}
    >>> table = compare_predictors(scores, digital, analog, bins=2, resamples=100)
    >>> table[["predictor", "auroc", "average_precision", "spearman"]].round(3)
       predictor  auroc  average_precision  spearman
    0  curvature  0.833              0.833     0.577
    1       loss  1.000              1.000     0.866

    Args:
        scores: by name, real [samples] each, no NaN; higher is more fragile. A score that each chip
            has of its own is [chips, samples].
        digital_correct: bool [samples].
        analog_correct: bool [samples], or [chips, samples].
        indices: int [samples], unique and stable; breaks ties at the edges of the bins. Positions
            if None.
        labels: int [samples], for auroc_within_class; NaN there if None.
        among: "correct", the digitally correct samples, or "all". Among all of them a
            digitally wrong sample counts as one that does not fail; a score that is blind to the
            label is then worth more than it seems.
        reference: a name in `scores`; the first if None.
        bins: number of bins of equal size; the failure rates of the first and the last one are the
            columns d1 and d10, whatever the number.
        confidence: confidence level of the intervals, between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        One row a score, in the order given: predictor, among, chips, samples, failures (summed over
        chips), each measure with its _low and _high, d1 and d10 (failure rate of the first and the
        last bin, cut by this score among these very samples), auroc_within_class (of the score's
        rank within its class), reference, auroc_difference with _low and _high, and reason: why
        measures are NaN, or "".

    Raises:
        ValueError: for NaN, repeated indices, an unknown reference, fewer samples than bins, other
            dtypes or shapes.
    """
    _require_named(scores, "compare")
    if among not in get_args(Among):
        raise ValueError(f"among is one of {', '.join(get_args(Among))}, got {among!r}")
    named = {f"scores[{name!r}]": score for name, score in scores.items()}
    correct = {"digital_correct": digital_correct, "analog_correct": analog_correct}
    require_same_rows(**named, **correct, labels=labels, indices=indices)
    digital = vector("digital_correct", digital_correct, "b", "bools")
    failed = np.atleast_2d(analog_only_failures(digital_correct, analog_correct))
    values = {name: scores_of_chips(one, len(failed), name) for name, one in scores.items()}
    same_length(**dict(zip(named, values.values(), strict=True)), correct=digital)
    first = next(iter(values.values()))
    if indices is None and len(first) == 1:
        warn_of_repeated_samples(first[0], "analog_correct")
    order = np.argsort(sample_indices(indices, len(digital)), kind="stable")
    confidence, bins = require_confidence(confidence), require_count("bins", bins)
    resamples, seed = require_resamples(resamples), require_seed(seed)
    reference = next(iter(scores)) if reference is None else reference
    if reference not in scores:
        raise ValueError(f"no reference {reference!r} here; there is {', '.join(scores)}")
    kept = order[digital[order]] if among == "correct" else order
    if len(kept) < bins:
        raise ValueError(
            f"{len(kept)} {'digitally correct ' * (among == 'correct')}samples cannot fill {bins} "
            "bins; score more or ask fewer"
        )
    failed = failed[:, kept]
    values = {name: value[:, kept] for name, value in values.items()}
    classes = None if labels is None else vector("labels", labels, "iu", "integers")
    if classes is not None:
        same_length(labels=classes, correct=digital)
        classes = classes[kept]

    rng = np.random.default_rng(seed)
    outcomes = _Outcomes(failed)
    sorted_scores = {name: _sorted(value, failed) for name, value in values.items()}
    drawn: dict[str, list[list[npt.NDArray[np.float64]]]] = {name: [] for name in values}
    if not outcomes.reason:
        for counts in sample_counts(rng, len(kept), resamples):
            for name, one in sorted_scores.items():
                drawn[name].append(one.measures(counts))
    ones = np.ones((1, len(kept)), np.float32)
    undefined = [np.full((1, len(failed)), np.nan)] * len(_MEASURES)
    rows, found = [], {}
    for name, one in sorted_scores.items():
        reason = outcomes.reason or one.reason
        measured, resampled = undefined, undefined
        if not reason:
            measured = one.measures(ones)
            resampled = [np.concatenate(blocks) for blocks in zip(*drawn[name], strict=True)]
        found[name] = measured[0], resampled[0]
        row = {"predictor": name, "among": among, "chips": len(failed), "samples": len(kept)}
        row["failures"] = int(failed.sum())
        for measure, (value,), of_draws in zip(_MEASURES, measured, resampled, strict=True):
            row[measure] = mean_defined(value)
            row[f"{measure}_low"], row[f"{measure}_high"] = mean_interval(
                value,
                of_draws,
                confidence,
                informative=outcomes.rarer,
                fraction=measure != "spearman",
            )
        bin_of = np.stack([deciles(own, np.arange(len(kept)), bins) for own in values[name]])
        for column, number in (("d1", 1), ("d10", bins)):
            row[column] = failed[np.broadcast_to(bin_of == number, failed.shape)].mean()
        row["auroc_within_class"] = np.nan
        if classes is not None and not reason:
            ranks = np.stack([within_class_rank(own, classes) for own in values[name]])
            within = _sorted(ranks, failed).measures(ones)[0]
            row["auroc_within_class"] = mean_defined(within[0])
        rows.append(row | {"reference": reference, "reason": reason})
    table = pd.DataFrame(rows)
    differences = []
    for of_chips, of_draws in found.values():
        (value,) = of_chips - found[reference][0]
        paired = of_draws - found[reference][1]
        low, high = mean_interval(
            value, paired, confidence, informative=outcomes.rarer, fraction=False
        )
        differences.append((mean_defined(value), low, high))
    columns = ("auroc_difference", "auroc_difference_low", "auroc_difference_high")
    at = table.columns.get_loc("reason")
    for number, column in enumerate(columns):
        table.insert(at + number, column, [one[number] for one in differences])
    return table


def failures_on_others(
    digital_correct: npt.ArrayLike, analog_correct: npt.ArrayLike, others: int = 1
) -> npt.NDArray[np.float64]:
    """For each chip the share of `others` other chips on which a sample fails: Monte Carlo.

    The baseline of every predictor: simulate a few chips of the same kind, and see. Of K chips the
    others of chip k are k + 1, k + 2, ... modulo K, so that no chip predicts itself. Chips that
    predict each other are not independent: with few, the interval of its AUROC is a rough one.

    >>> failures_on_others([True, True], [[True, False], [False, False], [True, True]], others=2)
    array([[0.5, 0.5],
           [0. , 0.5],
           [0.5, 1. ]])

    Args:
        digital_correct: bool [samples].
        analog_correct: bool [chips, samples].
        others: how many others, fewer than there are chips.

    Returns:
        float64 [chips, samples] in [0, 1]; a score for `compare_predictors`.

    Raises:
        ValueError: too few chips, other dtypes or shapes.
    """
    failed = np.atleast_2d(analog_only_failures(digital_correct, analog_correct))
    others = require_count("others", others)
    if others >= len(failed):
        raise ValueError(
            f"{len(failed)} chips have {len(failed) - 1} others each, not {others}; simulate more "
            "chips or ask for fewer"
        )
    shifts = [np.roll(failed, -shift, axis=0) for shift in range(1, others + 1)]
    return np.mean(shifts, axis=0)


def cross_validated_logistic(
    scores: Mapping[str, npt.ArrayLike],
    digital_correct: npt.ArrayLike,
    analog_correct: npt.ArrayLike,
    *,
    indices: npt.ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """The probability of failure by a logistic model of several scores, each sample held out once.

    Fitted on the digitally correct samples of the other folds; a sample's target is the share of
    the chips on which it fails. Scores enter as normal scores of their ranks in the fitted part, so
    that their scale does not matter. scikit-learn's logistic regression, with its default
    regularisation (an L2 penalty of 1).

    Args:
        scores: by name, real [samples] each, no NaN.
        digital_correct: bool [samples].
        analog_correct: bool [samples], or [chips, samples].
        indices: int [samples], unique and stable; with the seed they decide the folds. Positions if
            None.
        folds: parts, each predicted by a model of the others.
        seed: seed of the division into folds.

    Returns:
        float64 [samples] in (0, 1). A digitally wrong sample is predicted too, as if it were
        correct.

    Raises:
        ValueError: for NaN, repeated indices, other dtypes or shapes, or too few samples that fail
            or survive for each fold to have both.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    require("bridge.cross_validated_logistic", "bridge", ["sklearn"])
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer

    folds, seed = require_count("folds", folds, least=2), require_seed(seed)
    _require_named(scores, "combine")
    named = {f"scores[{name!r}]": score for name, score in scores.items()}
    correct = {"digital_correct": digital_correct, "analog_correct": analog_correct}
    require_same_rows(**named, **correct, indices=indices)
    digital = vector("digital_correct", digital_correct, "b", "bools")
    failed = np.atleast_2d(analog_only_failures(digital_correct, analog_correct))
    values = [real_scores(score, name) for name, score in scores.items()]
    same_length(**dict(zip(named, values, strict=True)), correct=digital)
    if indices is None:
        warn_of_repeated_samples(values[0], "analog_correct")
    order = np.argsort(sample_indices(indices, len(digital)), kind="stable")
    # Ranks, which are monotone too, for quotients of probabilities such as 1e-300 overflow.
    features = np.stack([pd.Series(value[order]).rank() for value in values], axis=1)
    digital, failed = digital[order], failed[:, order]
    share = failed.mean(axis=0)
    right = np.flatnonzero(digital)
    fails = share[right] > 0
    for what, count in (("failing", fails.sum()), ("surviving", (~fails).sum())):
        if count < folds:
            raise ValueError(f"{count} {what} samples cannot be divided into {folds} folds")
    fold_of = np.arange(len(order)) % folds  # of the digitally wrong samples, which no model sees
    division = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_, part) in enumerate(division.split(features[right], fails)):
        fold_of[right[part]] = number
    probability = np.empty(len(order))
    for number in range(folds):
        rows = right[fold_of[right] != number]
        held_out = np.flatnonzero(fold_of == number)
        model = make_pipeline(
            QuantileTransformer(
                n_quantiles=min(1000, len(rows)), output_distribution="normal", subsample=None
            ),
            LogisticRegression(),
        )
        # A sample that fails on a share s of the chips counts s times as failing, 1 - s as not.
        target = np.repeat([True, False], len(rows))
        weight = np.concatenate([share[rows], 1 - share[rows]])
        model.fit(np.tile(features[rows], (2, 1)), target, logisticregression__sample_weight=weight)
        probability[held_out] = model.predict_proba(features[held_out])[:, 1]
    result = np.empty(len(order))
    result[order] = probability
    return result


def _require_named(scores: object, purpose: str) -> None:
    """Raises ValueError unless the scores are a mapping with at least one."""
    if not isinstance(scores, Mapping):
        table = "; for a table: dict(table[['margin', ...]])" * isinstance(scores, pd.DataFrame)
        raise ValueError(
            "scores must be a mapping from names to arrays, {'margin': ...}; got "
            f"{type(scores).__name__}{table}"
        )
    if not scores:
        raise ValueError(f"no scores to {purpose}; give at least one, by name: {{'margin': ...}}")


class _Outcomes:
    """What fails: `rarer`, how many samples do on any chip, or survive on any; and why nothing is
    to be told, or ""."""

    def __init__(self, failed: npt.NDArray[np.bool_]):
        self.rarer = int(min(failed.any(axis=0).sum(), (~failed).any(axis=0).sum()))
        self.reason = ""
        if not failed.any():
            self.reason = "no sample fails"
        elif failed.all():
            self.reason = "every sample fails"


def _sorted(
    scores: npt.NDArray[np.float64], failed: npt.NDArray[np.bool_]
) -> _Sorted | _SortedByChip:
    """A score [1, samples], or one of each chip's own [chips, samples]."""
    if len(scores) == 1:
        return _Sorted(scores[0], failed)
    pairs = zip(scores, failed, strict=True)
    return _SortedByChip([_Sorted(score, of_chip[None]) for score, of_chip in pairs])


@dataclass(frozen=True)
class _SortedByChip:
    """A score that each chip has of its own; asked as `_Sorted` is."""

    chips: list[_Sorted]

    @property
    def reason(self) -> str:
        reasons = [one.reason for one in self.chips]
        return reasons[0] if all(reasons) else ""

    def measures(self, counts: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]]:
        found = [one.measures(counts) for one in self.chips]
        return [np.concatenate(columns, axis=1) for columns in zip(*found, strict=True)]


class _Sorted:
    """Samples in the order of their score; equal scores form a group."""

    def __init__(self, score: npt.NDArray[np.float64], failed: npt.NDArray[np.bool_]):
        self.order = np.argsort(score, kind="stable")
        score = score[self.order]
        is_new = np.concatenate(([True], score[1:] != score[:-1]))
        self.starts = np.flatnonzero(is_new)
        self.group = np.cumsum(is_new) - 1
        self.failed = failed[:, self.order].astype(np.float32)
        self.reason = "every score is the same" if len(self.starts) == 1 else ""

    def measures(self, counts: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]]:
        """`_MEASURES`, each [resamples, chips], where sample i occurs counts[:, i] times."""
        weights = counts[:, self.order]
        n = counts.shape[1]
        tied = len(self.starts) < n
        sizes = np.add.reduceat(weights, self.starts, axis=1) if tied else weights
        below = np.cumsum(sizes, axis=1)
        rank = below - (sizes - 1) / 2 - np.float32((n + 1) / 2)
        at_or_above = n - below + sizes
        weighted = weights * (rank[:, self.group] if tied else rank)
        positives = (weights @ self.failed.T).astype(np.float64)
        pairs = positives * (n - positives)
        with np.errstate(invalid="ignore", divide="ignore"):
            # The sum of the failing samples' ranks, from their mean (n + 1) / 2.
            sums = (weighted @ self.failed.T).astype(np.float64)
            auroc = (sums + pairs / 2) / pairs  # Mann and Whitney
            precision = self._average_precision(weights, at_or_above, positives)
            spread = (sizes.astype(np.float64) * rank.astype(np.float64) ** 2).sum(axis=1)
            # The ranks of an outcome that fails or not are linear in it.
            rho = sums / np.sqrt(spread[:, None] * pairs / n)
        return [auroc, precision, np.clip(rho, -1, 1)]

    def _average_precision(
        self,
        weights: npt.NDArray[np.float32],
        at_or_above: npt.NDArray[np.float32],
        positives: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """[resamples, chips]; only the failing samples enter, so that few of them cost little."""
        precision = np.empty_like(positives)
        for chip, failed in enumerate(self.failed):
            fails = np.flatnonzero(failed)
            if not len(fails):
                precision[:, chip] = np.nan
                continue
            drawn = weights[:, fails]
            below = np.cumsum(drawn, axis=1)
            # Of the group that a failing sample belongs to, all count.
            group = self.group[fails]
            first = np.searchsorted(group, group)
            fails_at_or_above = below[:, -1:] - (below - drawn)[:, first]
            # Where no sample that high was drawn, neither was this one: 0 / 1 instead of 0 / 0.
            among = np.maximum(at_or_above[:, group], 1)
            sums = (drawn * fails_at_or_above / among).sum(1, dtype=np.float64)
            precision[:, chip] = sums / positives[:, chip]
        return precision
