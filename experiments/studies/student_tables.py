"""What a student predicts on images that it was not fitted on, beside the run's other scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.analysis.failures import analog_only_failures
from bridge.analysis.predictors import compare_predictors, cross_validated_logistic
from bridge.report.tables.formats import with_interval, words
from bridge.report.tables.outcomes import over_chips
from bridge.report.tables.predictors import FLIP_PROBABILITY, OF_LOGITS, fragility_scores
from bridge.report.tables.routers import STUDENT
from experiments.settings.flags import Analyse

LOGITS_AND_STUDENT = "logits + student"
"""A logistic model of the scores of one forward pass and the student's."""

_OF_ONE_PASS = ("margin", "entropy", "least_confidence")
_FOLDS = 5  # of the cross-validation


def compare(
    tested: pd.DataFrame, costs: pd.DataFrame, profile: str, settings: Analyse
) -> pd.DataFrame:
    """`bridge.compare_predictors` of the student and the run's scores, on digitally correct images.

    Args:
      tested: the rows of one profile and fold in `outcomes.join`'s table, with the column student,
        and flip_probability where it is known.
      costs: predictor and forward_passes, the student's among them.
      profile: name of the profile.
      settings: bins, confidence and resamples.

    Returns:
      fold, denominator, profile, the columns of `compare_predictors` (differences are to the
      student), forward_passes, and in the row of `LOGITS_AND_STUDENT` added_difference with _low
      and _high: its AUROC less that of the logits alone.
    """
    samples, analog = over_chips(tested)
    digital = samples["digital_correct"].to_numpy(bool)
    scores = {STUDENT: samples[STUDENT].to_numpy()} | fragility_scores(samples, "correct")
    if FLIP_PROBABILITY in samples and samples[FLIP_PROBABILITY].notna().all():
        scores[FLIP_PROBABILITY] = samples[FLIP_PROBABILITY].to_numpy()
    models = _models(scores, samples["sample"], digital, analog)

    def compared(some: Mapping[str, npt.NDArray], reference: str) -> pd.DataFrame:
        return compare_predictors(
            some,
            digital,
            analog,
            indices=samples["sample"],
            labels=samples["label"],
            bins=settings.bins,
            confidence=settings.confidence,
            resamples=settings.resamples,
            reference=reference,
        )

    table = compared({**scores, **models}, STUDENT).rename(columns={"among": "denominator"})
    table.insert(0, "fold", samples["fold"].iloc[0])
    table.insert(1, "profile", profile)
    if models:
        added = compared(models, OF_LOGITS).iloc[1]
        row = table["predictor"] == LOGITS_AND_STUDENT
        for end in ("", "_low", "_high"):
            table.loc[row, f"added_difference{end}"] = added[f"auroc_difference{end}"]
    passes = costs.set_index("predictor")["forward_passes"]
    passes[LOGITS_AND_STUDENT] = passes[OF_LOGITS] + passes[STUDENT]
    return table.assign(forward_passes=table["predictor"].map(passes))


def _models(
    scores: Mapping[str, npt.NDArray],
    indices: pd.Series,
    digital: npt.NDArray[np.bool_],
    analog: npt.NDArray[np.bool_],
) -> dict[str, npt.NDArray]:
    """The logistic models; none where too few samples fail, or survive, to be cross-validated."""
    fails = np.any(analog_only_failures(digital, analog), axis=0)[digital]
    of_logits = {name: scores[name] for name in _OF_ONE_PASS if name in scores}
    if min(fails.sum(), (~fails).sum()) < _FOLDS or not of_logits:
        return {}
    parts = {OF_LOGITS: of_logits, LOGITS_AND_STUDENT: {**of_logits, STUDENT: scores[STUDENT]}}
    return {
        name: cross_validated_logistic(some, digital, analog, indices=indices, folds=_FOLDS)
        for name, some in parts.items()
    }


def verdict(table: pd.DataFrame, choices: pd.DataFrame) -> list[str]:
    """What the student is worth, in sentences.

    Args:
      table: as `compare` returns it.
      choices: as `bridge.report.tables.routers.route` returns them.
    """
    rows = table.set_index("predictor")
    student = rows.loc[STUDENT]
    if student["reason"]:
        return [f"The student's AUROC is undefined: {student['reason']}."]
    text = (
        f"AUROC of the student, which costs {student['forward_passes']:.2g} of a forward pass: "
        f"{_interval(student, 'auroc')}."
    )
    others = [name for name in ("margin", "curvature", FLIP_PROBABILITY) if name in rows.index]
    if others:
        less = (f"{words(name)} {_difference(rows.loc[name])}" for name in others)
        text += f" The others less the student: {', '.join(less)}."
    said = [text]
    if LOGITS_AND_STUDENT in rows.index:
        added = rows.loc[LOGITS_AND_STUDENT]
        low, high = added["added_difference_low"], added["added_difference_high"]
        found = "adds to" if low > 0 else "takes from" if high < 0 else "is not shown to add to"
        said.append(
            f"It {found} the scores of one forward pass ({_interval(added, 'added_difference')})."
        )
    chosen = choices.set_index("router") if len(choices) else choices
    if STUDENT in chosen.index:
        by = chosen.loc[STUDENT]
        said.append(
            f"Its router, with the threshold from the validation fold, routes "
            f"{100 * by['fraction']:.1f} % of the images, gives up {100 * by['given_up']:.1f} "
            f"points of accuracy and takes {by['energy']:.2f} of energy"
            + (
                f" (the router by the chip's margin: {chosen.loc['analog margin', 'energy']:.2f})."
                if "analog margin" in chosen.index
                else "."
            )
        )
    return said


def show(table: pd.DataFrame, title: str) -> None:
    """Prints a row a score, the best first."""
    printed = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    printed.add_column("score", no_wrap=True)
    for name in ("AUROC", "less the student", "passes"):
        printed.add_column(name, justify="right", no_wrap=True)
    for _, row in table.sort_values("auroc", ascending=False, kind="stable").iterrows():
        printed.add_row(
            words(row["predictor"]),
            _interval(row, "auroc"),
            "" if row["predictor"] == STUDENT else _difference(row),
            f"{row['forward_passes']:.3g}",
        )
    Console(highlight=False).print(printed)


def _interval(row: pd.Series, name: str) -> str:
    form = "+.3f" if "difference" in name else ".3f"
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def _difference(row: pd.Series) -> str:
    return _interval(row, "auroc_difference")
