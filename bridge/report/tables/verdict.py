"""The report's first answer: whether curvature tells the samples that fail, by one stated rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables.failing_classes import concentration
from bridge.report.tables.formats import words
from bridge.report.tables.outcomes import select
from bridge.report.tables.predictors import FLIP_PROBABILITY, REFERENCE

CHANCE, NO_USE, MODERATE, STRONG = 0.5, 0.6, 0.7, 0.8
"""The AUROC of a score that tells nothing, and the bounds of the verdict's words."""

ALIKE = 0.02
"""Two scores are alike if the whole interval of their AUROCs' difference is within this of 0."""

RULE = (
    f"its first word goes by the interval of curvature's AUROC. Above {STRONG}: yes; above "
    f"{MODERATE}: moderately; above {CHANCE}: weakly; 'at least', where the interval reaches into "
    f"the next of these. Below {CHANCE}: the reverse. Around {CHANCE}: no, where it ends at "
    f"{NO_USE} or below, else not shown. The margin goes by the interval of the paired difference "
    f"of the two AUROCs: better or worse, where it excludes 0; within {ALIKE} of the margin, where "
    f"all of it is; better or worse by less than {ALIKE}, where both hold; else not shown to be "
    "better or worse. After no, not shown and the reverse only better and worse are told."
)
"""The rule as the report's glossary states it."""

_NONE, _UNKNOWN, _REVERSE = "No", "Not shown", "No, the reverse"
_UNDEFINED = "Nothing to tell"


@dataclass(frozen=True)
class Auroc:
    """One number of the verdict."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """The first answer of a report."""

    word: str
    """What the intervals allow to be said, such as "Weakly, not shown to be better or worse than
    the margin"."""
    facts: str
    """The AUROCs and which classes hold the failures, or why there is nothing to say."""
    aurocs: tuple[Auroc, ...]
    """Curvature's, the margin's and the flip probability's, as far as they are measured."""
    about: str
    """Whose AUROCs these are: samples, fold, profile, failures, chips."""

    @property
    def sentence(self) -> str:
        """Word and facts in one line."""
        return f"{self.word}. {self.facts}"


def strength(low: float, high: float) -> str:
    """The word for curvature's AUROC, by its interval.

    >>> [strength(*one) for one in ((0.62, 0.64), (0.62, 0.75), (0.81, 0.9), (0.4, 0.55))]
    ['Weakly', 'At least weakly', 'Yes', 'No']
    >>> strength(0.3, 0.9), strength(0.2, 0.45)
    ('Not shown', 'No, the reverse')
    """
    if np.isnan(low) or np.isnan(high):
        return _UNKNOWN
    if high < CHANCE:
        return _REVERSE
    if low <= CHANCE:
        return _NONE if high <= NO_USE else _UNKNOWN
    for bound, next_bound, word in (
        (STRONG, 1.0, "Yes"),
        (MODERATE, STRONG, "Moderately"),
        (CHANCE, MODERATE, "Weakly"),
    ):
        if low > bound:
            return word if high <= next_bound else f"At least {word.lower()}"
    raise AssertionError((low, high))


def beside_margin(low: float, high: float) -> str:
    """How curvature stands to the margin, by the interval of the paired difference of AUROCs.

    >>> [beside_margin(*one) for one in ((0.01, 0.1), (-0.1, -0.01), (-0.01, 0.01))]
    ['better than the margin', 'worse than the margin', 'within 0.02 of the margin']
    >>> beside_margin(-0.1, 0.1), beside_margin(0.001, 0.005)
    ('not shown to be better or worse than the margin', 'better than the margin by less than 0.02')
    """
    alike = low >= -ALIKE and high <= ALIKE
    little = f" by less than {ALIKE}" if alike else ""
    if low > 0:
        return f"better than the margin{little}"
    if high < 0:
        return f"worse than the margin{little}"
    if alike:
        return f"within {ALIKE} of the margin"
    return "not shown to be better or worse than the margin"


def decide(
    predictors: pd.DataFrame,
    per_class: pd.DataFrame | None = None,
    *,
    fold: str = "test",
    profile: str = FULL_PROFILE,
) -> Verdict:
    """The verdict on one fold and profile, among the digitally correct samples.

    The intervals of `predictors` widen with few failures and few chips, so the word does not go
    beyond them: with one failure it is "Not shown".

    Args:
        predictors: as `bridge.report.tables.predictors.compare` returns it.
        per_class: as `failure_rates.per_class` returns it, of this fold and profile, with
            class_name where names are known; None says nothing of classes.
        fold: the fold that is spoken of.
        profile: the profile that is spoken of.

    Raises:
        ValueError: the tables have no such rows, or no curvature.
    """
    table = select(predictors, fold=fold, profile=profile, denominator="correct")
    curvature = select(table, predictor="curvature").iloc[0]
    rows = {str(row["predictor"]): row for _, row in table.iterrows()}
    about = f"{curvature['samples']:,} digitally correct samples of the {fold} fold under {profile}"
    if curvature["reason"] or np.isnan(curvature["auroc"]):
        why = curvature["reason"] or "curvature has no AUROC"
        return Verdict(_UNDEFINED, f"{why[0].upper()}{why[1:]}.", (), about)
    found = [
        Auroc(name, row["auroc"], row["auroc_low"], row["auroc_high"])
        for name in ("curvature", REFERENCE, FLIP_PROBABILITY)
        if (row := rows.get(name)) is not None and not np.isnan(row["auroc"])
    ]
    word = strength(curvature["auroc_low"], curvature["auroc_high"])
    if curvature["reference"] == REFERENCE and not np.isnan(curvature["auroc_difference_low"]):
        ends = curvature["auroc_difference_low"], curvature["auroc_difference_high"]
        word = _joined(word, beside_margin(*ends))
    facts = "AUROC: " + ", ".join(f"{words(one.name)} {one.value:.2f}" for one in found)
    if per_class is not None and (held := concentration(per_class).sentence):
        facts += f"; {held}"
    chips = "1 chip" if curvature["chips"] == 1 else f"{curvature['chips']} chips"
    about += f", {curvature['failures']:,.0f} failures on {chips}"
    return Verdict(word, f"{facts}.", tuple(found), about)


def _joined(word: str, margin: str) -> str:
    """The word with how curvature stands to the margin."""
    better, worse = margin.startswith("better"), margin.startswith("worse")
    if word in (_NONE, _UNKNOWN, _REVERSE):
        if not better and not worse:
            return word
        return f"{word}, {'though' if better else 'and'} {margin}"
    return f"{word}, {'and ' if better else 'but ' if worse else ''}{margin}"
