"""Failure rates by decile, Table I, classes, and the samples most likely to fail."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from bridge.analysis.failures import analog_only_failures, failure_table, trend_test
from bridge.analysis.failures import deciles as deciles_by_rank
from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables.outcomes import (
    DENOMINATORS,
    Denominator,
    folds,
    over_chips,
    require_columns,
)
from bridge.report.tables.paper_values import TABLE_ONE

log = logging.getLogger(__name__)


def failure_tables(
    joined: pd.DataFrame,
    score: str = "curvature",
    bins: int = 10,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """`bridge.failure_table` of each fold and profile, over its chips.

    Deciles are cut within each fold; those of `POOLED` among all samples. A fold with fewer samples
    than bins is skipped with a warning in the log.

    Args:
        joined: as `join` returns it.
        score: the column to cut by.
        bins: how many bins.
        confidence: confidence level of the intervals, between 0 and 1.

    Returns:
        fold, profile and the columns of `failure_table`.

    Raises:
        ValueError: for a missing score, NaN scores, or no fold large enough.
    """
    require_columns("joined", joined, [score])
    tables = []
    for fold, fold_rows in folds(joined):
        if (samples := fold_rows["sample"].nunique()) < bins:
            log.warning("fold %s skipped: %d samples cannot fill %d bins", fold, samples, bins)
            continue
        for profile, rows in fold_rows.groupby("profile", sort=False):
            samples, analog_correct = over_chips(rows)
            table = failure_table(
                samples[score],
                samples["digital_correct"],
                analog_correct,
                bins,
                indices=samples["sample"],
                confidence=confidence,
            )
            table.insert(0, "fold", fold)
            table.insert(1, "profile", profile)
            tables.append(table)
    if not tables:
        raise ValueError(f"no fold has the {bins} samples that {bins} bins need; score more")
    return pd.concat(tables, ignore_index=True)


def rates(deciles: pd.DataFrame, denominator: Denominator = "all") -> pd.DataFrame:
    """The failure rate of each fold, profile and decile, in percent.

    Args:
        deciles: as `failure_tables` returns it.
        denominator: the bin ("all") or its digitally correct samples ("correct").

    Returns:
        fold, profile, decile, chips, failures (summed over chips), tied (samples in the bin by
        their index only), and rate (mean over chips) with low and high, its interval.
    """
    table = deciles[["fold", "profile", "decile", "chips", "failures", "tied"]].copy()
    for name, suffix in (("rate", ""), ("low", "_low"), ("high", "_high")):
        table[name] = 100 * deciles[f"rate_of_{denominator}{suffix}"]
    return table


def table_one(
    joined: pd.DataFrame,
    deciles: pd.DataFrame,
    *,
    score: str = "curvature",
    model: tuple[str, str] | None = None,
) -> pd.DataFrame:
    """Table I for each fold and profile: first and last decile's failure rate, and accuracies.

    Args:
        joined: as `join` returns it.
        deciles: as `failure_tables` returns it, cut by `score`.
        score: the column that the deciles were cut by.
        model: architecture and data set, such as ("resnet18", "cifar100"), for the paper's figures.

    Returns:
        fold, profile, chips, samples, failures (mean over chips), and in percent digital_accuracy,
        analog_accuracy (mean over chips, with _min and _max), d1_of_all, d10_of_all, d1_of_correct
        and d10_of_correct, each with _low, _high (interval), _min and _max (over chips), and
        _minus_paper; trend_z and trend_p (`trend_test` over the bins, all samples),
        correct_trend_z and correct_trend_p (of the digitally correct ones); paper_d1 and paper_d10.
        What concerns the paper is NaN where it has no such row, and under other profiles than its
        own. D10 is the last bin, however many.
    """
    published = TABLE_ONE.get(model) if model else None
    rows = []
    last = int(deciles["decile"].max())
    for fold, fold_rows in folds(joined):
        for profile, chip_rows in fold_rows.groupby("profile", sort=False):
            cut = deciles[(deciles["fold"] == fold) & (deciles["profile"] == profile)]
            if cut.empty:
                continue  # a fold too small for the bins
            samples, analog_correct = over_chips(chip_rows)
            digital = samples["digital_correct"].to_numpy()
            failed = analog_only_failures(digital, analog_correct)
            accuracy = 100 * analog_correct.mean(axis=1)
            row = {
                "fold": fold,
                "profile": profile,
                "chips": len(accuracy),
                "samples": len(samples),
                "failures": failed.sum() / len(accuracy),
                "digital_accuracy": 100 * digital.mean(),
                "analog_accuracy": accuracy.mean(),
                "analog_accuracy_min": accuracy.min(),
                "analog_accuracy_max": accuracy.max(),
            }
            for denominator in DENOMINATORS:
                for name, decile in (("d1", 1), ("d10", last)):
                    found = cut[cut["decile"] == decile].iloc[0]
                    for suffix in ("", "_low", "_high", "_min", "_max"):
                        rate = found[f"rate_of_{denominator}{suffix}"]
                        row[f"{name}_of_{denominator}{suffix}"] = 100 * rate
            bin_of = deciles_by_rank(samples[score], samples["sample"], last)
            for prefix, kept in (("", slice(None)), ("correct_", digital)):
                trend = trend_test(bin_of[kept], failed[:, kept])
                row[f"{prefix}trend_z"], row[f"{prefix}trend_p"] = trend.z, trend.p
            of_paper = published if profile == FULL_PROFILE else None
            for name, value in zip(("d1", "d10"), of_paper or (np.nan, np.nan), strict=True):
                row[f"paper_{name}"] = value
                for denominator in DENOMINATORS:
                    ours = row[f"{name}_of_{denominator}"]
                    row[f"{name}_of_{denominator}_minus_paper"] = ours - value
            rows.append(row)
    return pd.DataFrame(rows)


def per_class(
    joined: pd.DataFrame, fold: str = "test", profile: str = FULL_PROFILE
) -> pd.DataFrame:
    """Accuracy, failures and mean curvature of each class under one profile.

    Args:
        joined: as `join` returns it.
        fold: one fold.
        profile: one profile.

    Returns:
        One row a label: label, samples, digital_accuracy, analog_accuracy, failures (mean over
        chips), failure_rate (of the digitally correct; NaN without any), mean_curvature, and
        taken_for (failures of other labels that the chips take for this one, mean over chips);
        rates are fractions.
    """
    rows = joined[(joined["fold"] == fold) & (joined["profile"] == profile)]
    groups = rows.groupby("label")
    chips = rows["chip"].nunique()
    table = pd.DataFrame(
        {
            "samples": groups["sample"].nunique(),
            "digital_accuracy": groups["digital_correct"].mean(),
            "analog_accuracy": groups["analog_correct"].mean(),
            "failures": groups["failure"].sum() / chips,
            "failure_rate": groups["failure"].mean(),
            "mean_curvature": groups["curvature"].mean(),
        }
    )
    correct = table["digital_accuracy"]
    table["failure_rate"] /= correct.where(correct > 0)
    taken = rows.loc[rows["failure"], "analog_prediction"].value_counts() / chips
    table["taken_for"] = taken.reindex(table.index, fill_value=0.0).to_numpy()
    return table.reset_index()


def vulnerable(
    joined: pd.DataFrame,
    flips: pd.DataFrame | None,
    *,
    fold: str = "test",
    profile: str = FULL_PROFILE,
    count: int | None = 60,
) -> pd.DataFrame:
    """The samples that the digital model gets right and that are most likely to fail.

    By the share of the chips on which they fail, then by flip probability, or by curvature where
    no flip probability is known.

    Args:
        joined: as `join` returns it.
        flips: fold, index, profile and probability; None where they were not computed.
        fold: one fold.
        profile: one profile.
        count: at most so many; None for all.

    Returns:
        fold, index, path (where `joined` has it), label, digital_prediction, analog_prediction (of
        the first chip), curvature, margin, flip_probability (where there are flips) and
        failed_share (of the chips).
    """
    rows = joined[(joined["fold"] == fold) & (joined["profile"] == profile)]
    samples, failed = over_chips(rows, "failure")
    table = samples.assign(failed_share=failed.mean(axis=0))
    table = table[table["digital_correct"]]
    second = "curvature"
    if flips is not None:
        second = "flip_probability"
        keys = ["fold", "index", "profile"]
        table = table.merge(flips[[*keys, "probability"]], on=keys)
        table = table.rename(columns={"probability": second})
    table = table.sort_values(["failed_share", second, "index"], ascending=[False, False, True])
    columns = ["fold", "index", *(["path"] if "path" in table else [])]
    columns += ["label", "digital_prediction", "analog_prediction"]
    columns += ["curvature", "margin", *(["flip_probability"] if flips is not None else [])]
    table = table[[*columns, "failed_share"]]
    return (table if count is None else table.head(count)).reset_index(drop=True)
