"""Which score predicts failure, and at what cost: curvature beside everything cheaper."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.calibration import calibration_table, expected_calibration_error
from bridge.analysis.failures import analog_only_failures
from bridge.analysis.intervals import rate_interval
from bridge.analysis.predictors import (
    Among,
    compare_predictors,
    cross_validated_logistic,
    failures_on_others,
)
from bridge.chips.profiles import FULL_PROFILE
from bridge.report.folds import POOLED
from bridge.report.tables.formats import with_interval, words
from bridge.report.tables.outcomes import DENOMINATORS, folds, over_chips, select
from jaxcurv.costs import FLIP_PROBABILITY as FLIP_PROBABILITY_PASSES
from jaxcurv.costs import FLIP_PROBABILITY_UNSHIFTED, MARGIN_AT_MEAN
from jaxcurv.estimators import SCORE_COLUMNS

OTHERS = {1: "failure on another chip", 2: "failures on 2 others", 16: "failures on 16 others"}
"""Monte Carlo: the share of so many other chips on which a sample fails."""

_RECURRING = 20  # samples that fail on several chips

REFERENCE = "margin"
"""What the others are compared with: the cheapest score that might do."""

LABEL_FREE = "_label_free"
"""Ends the name of a score that took the model's own prediction as the label."""

FLIP_PROBABILITY = "flip_probability"
UNSHIFTED = "flip_probability, unshifted"
"""Phi(-margin / sd) around the digital weights: blind to what all chips of a profile share."""

AT_MEAN = "margin at mean weights"
"""Margin of the digital prediction in the network of the mean weights: their mean over chips."""

ADDED, COMBINED = "margin + curvature", "all scores"
OF_LOGITS, LOGITS_ADDED = "logits", "logits + curvature"
WITH_GRADIENT, GRADIENT_ADDED = "logits + gradient norm", "logits + gradient norm + curvature"
FLIP_ADDED = "logits + gradient norm + curvature + flip probability"
"""Logistic models of several scores: two scores; all scores but the physical ones; the scores of
one forward pass, and these with the gradient norm, each without and with curvature; and these with
the flip probability too."""

MODELS = (ADDED, COMBINED, OF_LOGITS, LOGITS_ADDED, WITH_GRADIENT, GRADIENT_ADDED, FLIP_ADDED)
"""Predictors that are models fitted to failures on chips."""

NESTED = {LOGITS_ADDED: OF_LOGITS, GRADIENT_ADDED: WITH_GRADIENT, FLIP_ADDED: GRADIENT_ADDED}
"""What a model's last score is added to: whether curvature, or the flip probability, tells anything
beyond that."""

_SAID = {
    LOGITS_ADDED: "a logistic model of the logits' own scores",
    GRADIENT_ADDED: "one of these and the gradient norm",
}

_CROSS_VALIDATION = 5  # folds

NEED_LABEL = ("curvature", "gradient_norm", "loss", "el2n")
"""Scores that depend on the label. Those of the other estimators do not, for cross-entropy and a
piecewise linear network."""

_PREDICTORS = (
    *SCORE_COLUMNS.values(),
    *("gradient_norm", "loss", "el2n", "entropy", "least_confidence", "margin", "label_margin"),
)
_FALL_WITH_FRAGILITY = ("margin", "label_margin")
_ONE_PASS = ("margin", "entropy", "least_confidence")
_OF_LOGITS = ("loss", "el2n", "entropy", "least_confidence", "margin", "label_margin")


def score_columns(scores: pd.DataFrame) -> list[str]:
    """The columns of a score table that predictors are made of."""
    names = (*_PREDICTORS, *(f"{name}{LABEL_FREE}" for name in NEED_LABEL))
    return [name for name in names if name in scores]


def fragility_scores(samples: pd.DataFrame, among: Among) -> dict[str, npt.NDArray]:
    """The scores of a table by name, all growing with fragility: margins with their sign changed.

    Among the digitally correct samples the model's prediction is the label. The scores that take
    the prediction as the label would repeat others there, as would the label's margin and the loss,
    which ranks these samples as least confidence does: they are left out.

    Args:
        samples: one row a sample, with scores as `jaxcurv.score_dataset` returns them.
        among: the samples that will be compared.
    """
    names = [name for name in _PREDICTORS if name in samples]
    if among == "correct":
        again = {"label_margin", *(["loss"] if "least_confidence" in names else [])}
        names = [name for name in names if name not in again]
    else:
        names += [f"{name}{LABEL_FREE}" for name in NEED_LABEL]
        names = [name for name in names if name in samples]
    return {
        name: (-1 if name in _FALL_WITH_FRAGILITY else 1) * samples[name].to_numpy()
        for name in names
    }


def compare(
    joined: pd.DataFrame,
    costs: pd.DataFrame,
    flips: pd.DataFrame | None = None,
    *,
    bins: int = 10,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> pd.DataFrame:
    """`bridge.compare_predictors` of each fold, profile and denominator; pooled folds are left out.

    Beside the scores themselves: the physical predictor where `flips` has it, the failures on other
    chips (`OTHERS`), where there are several and enough samples fail on more than one, and
    cross-validated logistic models. Among these are those that tell whether curvature adds to the
    scores of one forward pass, and to these with the gradient norm, and the flip probability to
    both: `NESTED`, in added_difference with _low and _high.

    Args:
        joined: as `outcomes.join` returns it.
        costs: predictor and forward_passes.
        flips: fold, index, profile, probability and unshifted, a row a sample and profile.
        bins, confidence, resamples: as for `compare_predictors`.

    Returns:
        fold, denominator ("correct" or "all": among which samples), profile, the columns of
        `compare_predictors`, and forward_passes of each predictor. Where fewer samples take part
        than there are bins, reason says so.
    """
    tables = []
    for fold, fold_rows in folds(joined):
        if fold == POOLED:
            continue
        for profile, rows in fold_rows.groupby("profile", sort=False):
            samples, analog_correct = over_chips(rows)
            digital = samples["digital_correct"].to_numpy()
            physical = _physical(flips, samples, str(profile))
            for among in DENOMINATORS:
                scores = fragility_scores(samples, among) | physical  # type: ignore[arg-type]
                scores |= _monte_carlo(digital, analog_correct)
                size = int(digital.sum()) if among == "correct" else len(samples)
                if size < bins:
                    table = _undefined(scores, among, size, len(analog_correct), bins)
                else:
                    if among == "correct":
                        scores |= _combined(scores, samples["sample"], digital, analog_correct)
                    with_reference = partial(
                        compare_predictors,
                        digital_correct=digital,
                        analog_correct=analog_correct,
                        indices=samples["sample"],
                        labels=samples["label"],
                        among=among,  # type: ignore[arg-type]
                        bins=bins,
                        confidence=confidence,
                        resamples=resamples,
                    )
                    table = with_reference(scores, reference=REFERENCE)
                    for more, less in NESTED.items():
                        if more not in scores:
                            continue
                        pair = {name: scores[name] for name in (less, more)}
                        added = with_reference(pair, reference=less).iloc[1]
                        row = table["predictor"] == more
                        for end in ("", "_low", "_high"):
                            table.loc[row, f"added_difference{end}"] = added[
                                f"auroc_difference{end}"
                            ]
                table = table.rename(columns={"among": "denominator"})
                table.insert(0, "fold", fold)
                table.insert(1, "profile", profile)
                tables.append(table)
    passes = costs[["predictor", "forward_passes"]]
    return pd.concat(tables, ignore_index=True).merge(passes, on="predictor", how="left")


def _monte_carlo(digital: npt.NDArray, analog_correct: npt.NDArray) -> dict[str, npt.NDArray]:
    """For each chip the share of some other chips on which a sample fails, by `OTHERS`.

    None where all chips are alike, as those of an ADC alone, for each then foretells every other;
    and where so few samples fail on several chips that an AUROC's interval would not cover.
    """
    failed = analog_only_failures(digital, analog_correct)
    alike = (failed == failed[0]).all()
    if alike or (failed.sum(axis=0) > 1).sum() < _RECURRING:
        return {}
    return {
        name: failures_on_others(digital, analog_correct, others)
        for others, name in OTHERS.items()
        if others < len(analog_correct)
    }


def _undefined(
    scores: Mapping[str, npt.NDArray], among: str, samples: int, chips: int, bins: int
) -> pd.DataFrame:
    """Rows that say why nothing is measured; what they lack is NaN in the table."""
    which = {"correct": "digitally correct samples", "all": "samples"}[among]
    common = {"among": among, "chips": chips, "samples": samples, "reference": REFERENCE}
    reason = f"{samples} {which} cannot fill {bins} bins"
    return pd.DataFrame([{"predictor": name, **common, "reason": reason} for name in scores])


def _combined(
    scores: Mapping[str, npt.NDArray],
    indices: pd.Series,
    digital: npt.NDArray,
    analog_correct: npt.NDArray,
) -> dict[str, npt.NDArray]:
    """The logistic models; none where too few samples fail, or survive, to be cross-validated."""
    failing = np.any(analog_only_failures(digital, analog_correct), axis=0)[digital]
    if min(failing.sum(), (~failing).sum()) < _CROSS_VALIDATION:
        return {}
    of_logits = [name for name in _ONE_PASS if name in scores]
    parts = {
        ADDED: ["margin", "curvature"],
        OF_LOGITS: of_logits,
        LOGITS_ADDED: [*of_logits, "curvature"],
        WITH_GRADIENT: [*of_logits, "gradient_norm"],
        GRADIENT_ADDED: [*of_logits, "gradient_norm", "curvature"],
        FLIP_ADDED: [*of_logits, "gradient_norm", "curvature", FLIP_PROBABILITY],
        COMBINED: [name for name in scores if name in _PREDICTORS],
    }
    parts = {name: members for name, members in parts.items() if set(members) <= scores.keys()}
    return {
        name: cross_validated_logistic(
            {one: scores[one] for one in members},
            digital,
            analog_correct,
            indices=indices,
            folds=_CROSS_VALIDATION,
        )
        for name, members in parts.items()
    }


def costs_table(measured: pd.DataFrame) -> pd.DataFrame:
    """What each predictor costs a sample.

    A score that takes the prediction as the label costs as much as the one that takes the true
    label. A combination costs the sum of its parts; what comes from the logits of a part is free.
    All are the constants of `jaxcurv.costs`, times over that of one forward pass. For the physical
    predictor about three passes more come with converters or noise at each operation; the moments
    of the weights, once for all samples, are not counted. A failure on another chip takes that
    chip's inference, counted as one pass.

    Args:
        measured: predictor, forward_passes and, where it was measured, seconds_per_image of the
            estimators, of "loss", one forward pass, and of "gradient_norm".

    Returns:
        predictor, forward_passes and seconds_per_image, the last NaN where it was not measured.
    """
    known = measured.set_index("predictor")
    known = known.reindex(columns=["forward_passes", "seconds_per_image"])
    rows = {name: tuple(known.loc[name]) for name in _PREDICTORS if name in known.index}
    rows |= dict.fromkeys(_OF_LOGITS, rows["loss"])
    # Every estimator begins with a forward pass: what the logits give is free beside it.
    estimators = [name for name in rows if name not in _OF_LOGITS]
    sums = {
        ADDED: ["curvature"],
        OF_LOGITS: ["margin"],
        LOGITS_ADDED: ["curvature"],
        WITH_GRADIENT: ["gradient_norm"],
        GRADIENT_ADDED: ["curvature"],
        COMBINED: estimators,
    }
    for name, parts in sums.items():
        rows[name] = tuple(sum(rows[part][which] for part in parts) for which in (0, 1))
    rows |= {f"{name}{LABEL_FREE}": rows[name] for name in NEED_LABEL}
    physical = {
        AT_MEAN: MARGIN_AT_MEAN,
        FLIP_PROBABILITY: FLIP_PROBABILITY_PASSES,
        UNSHIFTED: FLIP_PROBABILITY_UNSHIFTED,
        FLIP_ADDED: rows[GRADIENT_ADDED][0] + FLIP_PROBABILITY_PASSES,
    }
    rows |= {name: (cost, np.nan) for name, cost in physical.items()}
    rows |= {name: (float(others), np.nan) for others, name in OTHERS.items()}
    return pd.DataFrame(
        [(name, *cost) for name, cost in rows.items()],
        columns=["predictor", "forward_passes", "seconds_per_image"],
    )


def calibrate(
    joined: pd.DataFrame, flips: pd.DataFrame, confidence: float = 0.95
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How well flip probabilities predict the simulated failures, among the digitally correct.

    Args:
        joined: as `outcomes.join` returns it.
        flips: fold, index, profile, probability and unshifted, a row a sample and profile.
        confidence: confidence level of the intervals, between 0 and 1.

    Returns:
        fold, profile, predictor and the columns of `bridge.analysis.calibration_table`; and fold,
        profile, predictor, samples, predicted (mean probability), observed (failure rate, with
        observed_low and observed_high, `bridge.analysis.rate_interval`) and
        expected_calibration_error. The predictors are `FLIP_PROBABILITY` and `UNSHIFTED`.
    """
    tables, errors = [], []
    for (fold, profile), _ in flips.groupby(["fold", "profile"], sort=False):
        rows = joined[(joined["fold"] == fold) & (joined["profile"] == profile)]
        if rows.empty:
            continue
        samples, analog_correct = over_chips(rows)
        digital = samples["digital_correct"].to_numpy()
        if not digital.any():
            continue
        failed = analog_only_failures(digital, analog_correct)[:, digital]
        low, high = rate_interval(failed, confidence)
        physical = _physical(flips, samples, str(profile))
        for predictor in (FLIP_PROBABILITY, UNSHIFTED):
            if predictor not in physical:
                continue
            probability = physical[predictor]
            table = calibration_table(probability[digital], failed, confidence=confidence)
            which = {"fold": fold, "profile": profile, "predictor": predictor}
            tables.append(table.assign(**which))
            errors.append(
                which
                | {
                    "samples": int(digital.sum()),
                    "predicted": probability[digital].mean(),
                    "observed": failed.mean(),
                    "observed_low": low,
                    "observed_high": high,
                    "expected_calibration_error": expected_calibration_error(table),
                }
            )
    first = ["fold", "profile", "predictor"]
    if not set(flips["profile"]) & set(joined["profile"]):
        raise ValueError("no flip probability belongs to a simulated chip: run flips again")
    if not tables:  # nothing is digitally correct
        none = calibration_table([0.5], [True])
        tables = [none.head(0).assign(**dict.fromkeys(first))]
        observed = ["observed", "observed_low", "observed_high"]
        errors_of = ["samples", "predicted", *observed, "expected_calibration_error"]
        return tables[0], pd.DataFrame(columns=[*first, *errors_of])
    calibration = pd.concat(tables, ignore_index=True)
    return calibration[[*first, *calibration.columns.difference(first, sort=False)]], pd.DataFrame(
        errors
    )


def verdict(predictors: pd.DataFrame, fold: str = "test", profile: str = FULL_PROFILE) -> str:
    """One sentence: what predicts failure, and whether curvature adds to the scores of one forward
    pass and to these with the gradient norm. "" where neither is measured."""
    table = select(predictors, fold=fold, profile=profile, denominator="correct")
    table = table.set_index("predictor")
    if not {"curvature", REFERENCE} <= set(table.index) or table["reason"].ne("").all():
        return ""
    curvature, passes = table.loc["curvature"], table.loc["curvature", "forward_passes"]
    cost = "" if np.isnan(passes) else f"{passes:.0f} times a forward pass; "
    cheap = table.loc[[name for name in _ONE_PASS if name in table.index], "auroc"].idxmax()
    text = (
        f"Among the digitally correct samples of the {fold} fold under {profile}, AUROC is "
        f"{_interval(curvature, 'auroc')} for curvature ({cost}less the {REFERENCE}: "
        f"{_interval(curvature, 'auroc_difference', '+.3f')}) and "
        f"{_interval(table.loc[cheap], 'auroc')} for {words(cheap)}, the highest here of the "
        "scores of one pass"
    )
    if FLIP_PROBABILITY in table.index:
        physical = table.loc[FLIP_PROBABILITY]
        text += (
            f", {_interval(physical, 'auroc')} for the flip probability "
            f"({physical['auroc_within_class']:.3f} within classes)"
        )
    said = [_added(table.loc[more], what) for more, what in _SAID.items() if more in table.index]
    if not said:
        return text + "; too few samples fail, or survive, to fit models of several scores."
    return f"{text}; curvature {' and '.join(said)}."


def _interval(row: pd.Series, name: str, form: str = ".3f") -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def _added(row: pd.Series, what: str) -> str:
    """What curvature does to a model that it is added to, and by how much."""
    low, high = row["added_difference_low"], row["added_difference_high"]
    says = "adds to" if low > 0 else "takes from" if high < 0 else "is not shown to add anything to"
    return f"{says} {what} ({_interval(row, 'added_difference', '+.4f')})"


def with_flips(joined: pd.DataFrame, flips: pd.DataFrame) -> pd.DataFrame:
    """`outcomes.join`'s table with the column flip_probability; NaN under the ideal profile."""
    keys = ["fold", "index", "profile"]
    found = flips[[*keys, "probability"]].rename(columns={"probability": FLIP_PROBABILITY})
    return joined.merge(found, on=keys, how="left", validate="many_to_one")


def _physical(
    flips: pd.DataFrame | None, samples: pd.DataFrame, profile: str
) -> dict[str, npt.NDArray]:
    """The physical predictors of these samples; none for a profile without flips, the ideal one."""
    if flips is None or not (flips["profile"] == profile).any():
        return {}
    rows = flips[flips["profile"] == profile].set_index(["fold", "index"])
    found = rows.reindex(pd.MultiIndex.from_frame(samples[["fold", "index"]]))
    if (missing := found["probability"].isna()).any():
        fold, index = found.index[missing.to_numpy()][0]
        raise ValueError(
            f"{missing.sum()} samples have no flip probability under {profile}, the first at fold "
            f"{fold}, index {index}: run flips again"
        )
    predictors = {FLIP_PROBABILITY: found["probability"].to_numpy()}
    if found["shift"].any():  # else all three rank alike
        predictors[UNSHIFTED] = found["unshifted"].to_numpy()
        predictors[AT_MEAN] = -(found["margin"] + found["shift"]).to_numpy()
    return predictors
