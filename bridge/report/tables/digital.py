"""What the scores of the digital model say without chips: accuracy, classes, samples to look at.

The tables take `outcomes.digital_outcomes`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bridge.analysis.failures import deciles
from bridge.report.tables.outcomes import folds
from bridge.report.tables.predictors import costs_table

_SMALLEST = 3  # samples of which a rank correlation is told


def accuracy(digital: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and curvature of every fold, and of all folds pooled.

    Returns:
        fold, samples, digital_accuracy (a fraction), of_correct and of_wrong (median curvature of
        the digitally correct and of the digitally wrong; NaN without any), and last_decile (the 0.9
        quantile of curvature).
    """
    rows = []
    for fold, samples in folds(digital):
        correct = samples["digital_correct"]
        rows.append(
            {
                "fold": fold,
                "samples": len(samples),
                "digital_accuracy": correct.mean(),
                "of_correct": samples.loc[correct, "curvature"].median(),
                "of_wrong": samples.loc[~correct, "curvature"].median(),
                "last_decile": samples["curvature"].quantile(0.9),
            }
        )
    return pd.DataFrame(rows)


def score_deciles(digital: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """What lies in each bin of curvature; a fold with fewer samples than bins is left out.

    Returns:
        fold, decile (1 of the lowest curvature), samples, low and high (its curvature),
        digital_accuracy (a fraction) and median_margin.
    """
    tables = []
    for fold, samples in folds(digital):
        if len(samples) < bins:
            continue
        cut = deciles(samples["curvature"], samples["sample"], bins)
        groups = samples.groupby(cut)
        table = pd.DataFrame(
            {
                "samples": groups.size(),
                "low": groups["curvature"].min(),
                "high": groups["curvature"].max(),
                "digital_accuracy": groups["digital_correct"].mean(),
                "median_margin": groups["margin"].median(),
            }
        )
        table = table.rename_axis("decile").reset_index()
        table.insert(0, "fold", fold)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def score_costs(digital: pd.DataFrame, costs: pd.DataFrame, fold: str = "test") -> pd.DataFrame:
    """What each score takes, and how it ranks the samples of a fold beside curvature.

    Args:
        digital: the samples.
        costs: predictor and forward_passes.
        fold: one fold.

    Returns:
        predictor, forward_passes, and Spearman's rho with curvature among all samples (spearman)
        and the digitally correct ones (spearman_of_correct); NaN below 3 samples.
    """
    samples = digital[digital["fold"] == fold]
    table = costs_table(costs)[["predictor", "forward_passes"]]
    table = table[table["predictor"].isin(samples.columns)].reset_index(drop=True)
    groups = {"spearman": samples, "spearman_of_correct": samples[samples["digital_correct"]]}
    for column, rows in groups.items():
        table[column] = [
            rows[name].corr(rows["curvature"], method="spearman", min_periods=_SMALLEST)
            for name in table["predictor"]
        ]
    return table


def per_class(digital: pd.DataFrame, fold: str = "test") -> pd.DataFrame:
    """Accuracy and curvature of each class in a fold.

    Returns:
        One row a label: label, samples, digital_accuracy (a fraction) and mean_curvature.
    """
    groups = digital[digital["fold"] == fold].groupby("label")
    table = pd.DataFrame(
        {
            "samples": groups.size(),
            "digital_accuracy": groups["digital_correct"].mean(),
            "mean_curvature": groups["curvature"].mean(),
        }
    )
    return table.reset_index()


def highest(digital: pd.DataFrame, fold: str = "test", count: int = 60) -> pd.DataFrame:
    """The samples of highest curvature that the digital model gets right, highest first.

    Returns:
        At most `count` rows: fold, index, path (where `digital` has it), label, curvature, loss and
        margin.
    """
    rows = digital[(digital["fold"] == fold) & digital["digital_correct"]]
    rows = rows.sort_values(["curvature", "index"], ascending=[False, True])
    columns = ["fold", "index", *(["path"] if "path" in rows else []), "label"]
    columns += ["curvature", "loss", "margin"]
    return rows[columns].head(count).reset_index(drop=True)


def summary(accuracy: pd.DataFrame, fold: str = "test") -> str:
    """The accuracy of a fold and where its curvature lies, in a sentence or two.

    Args:
        accuracy: as `accuracy` returns it.
        fold: one fold.
    """
    row = accuracy[accuracy["fold"] == fold].iloc[0]
    right = 100 * row["digital_accuracy"]
    said = (
        f"The digital model gets {right:.1f} % of the {row['samples']:,} {fold} samples right; the "
        f"tenth of highest curvature lies above {row['last_decile']:.3g}."
    )
    if np.isnan(row["of_correct"]) or np.isnan(row["of_wrong"]):
        return said
    return (
        f"{said} Median curvature is {row['of_correct']:.3g} among the digitally correct samples "
        f"and {row['of_wrong']:.3g} among the digitally wrong ones."
    )
