"""`analyse --scores FILE --digital FILE --analog FILE`: scores and predictions from anywhere, such
as a real chip, without a preset.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.comparison import compare_predictors
from bridge.failures import deciles, failure_table, trend_test
from experiments.artefacts import write_csv
from experiments.pipeline import require_writable, show_error

_NO_SCORES = ("index", "label", "prediction", "correct", "checkpoint", "fold")
_FALL_WITH_FRAGILITY = ("margin", "label_margin")


@dataclass(frozen=True)
class OwnPredictions:
    """Tables to join by their column `index`, CSV or Parquet."""

    scores: Path
    """index, and scores that grow with fragility; `margin` and `label_margin`, which fall, are
    turned round. Columns that end in _standard_error are left out."""
    digital: Path
    """Of the digital model: index, and correct (true or false) or prediction and label."""
    analog: Path
    """Of the chip: index, and correct or prediction; chip, where several chips were measured."""
    score: str | None = None
    """Score to cut the deciles by; curvature if it is there, else the first."""
    reference: str | None = None
    """Score that the others are compared with; the margin if it is there, else --score."""
    out: Path = Path("analysis")
    """Folder of the results."""
    bins: int = 10
    """Equal-sized bins of the score."""
    confidence: float = 0.95
    """Of every interval."""
    resamples: int = 1000
    """Of the bootstrap."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Joined:
    """Samples in the order of their index."""

    scores: pd.DataFrame
    """index, label where known, and a column a score, all growing with fragility."""
    digital: np.ndarray
    """Correct, bool [samples]."""
    analog: np.ndarray
    """Correct, bool [chips, samples]."""


def run(settings: OwnPredictions) -> int:
    """Prints the failure rates and the predictors, keeps them as CSV; returns the exit code."""
    try:
        require_writable(settings.out)
        joined = read(settings)
        score = settings.score or _preferred(joined.scores, "curvature")
        reference = settings.reference or _preferred(joined.scores, "margin", score)
        for name in (score, reference):
            if name not in joined.scores:
                raise ValueError(f"{settings.scores} has no score {name!r}")
        common = {"confidence": settings.confidence, "resamples": settings.resamples}
        table = failure_table(
            joined.scores[score],
            joined.digital,
            joined.analog,
            settings.bins,
            indices=joined.scores["index"],
            **common,  # type: ignore[arg-type]
        )
        names = [name for name in joined.scores if name not in ("index", "label")]
        predictors = compare_predictors(
            {name: joined.scores[name].to_numpy() for name in names},
            joined.digital,
            joined.analog,
            indices=joined.scores["index"],
            labels=joined.scores.get("label"),
            reference=reference,
            bins=settings.bins,
            **common,  # type: ignore[arg-type]
        )
        cut = deciles(joined.scores[score], joined.scores["index"], settings.bins)
        trend = trend_test(cut, joined.digital & ~joined.analog)
        write_csv(settings.out / "deciles.csv", table)
        write_csv(settings.out / "predictors.csv", predictors)
    except (ValueError, OSError) as error:
        show_error(error, settings.debug)
        return 2
    _show(table, predictors, joined, score)
    if trend.reason:
        print(f"Trend over the bins: undefined, {trend.reason}.")
    else:
        print(f"Trend over the bins, of all samples: z = {trend.z:.2f}, p = {trend.p:.2g}.")
    print(f"{settings.out / 'deciles.csv'} and {settings.out / 'predictors.csv'}")
    return 0


def read(settings: OwnPredictions) -> Joined:
    """Joins the three tables.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a column is missing, an index is repeated or is not in every table, chips with
            unlike samples, or outcomes that are not true or false; names the file.
    """
    scores = _table(settings.scores, ())
    digital = _table(settings.digital, ())
    analog = _table(settings.analog, ("chip",))
    for path, table in ((settings.digital, digital), (settings.analog, analog)):
        missing = np.setdiff1d(scores["index"], table["index"])
        unknown = np.setdiff1d(table["index"], scores["index"])
        for which, where, other in (
            (missing, path, settings.scores),
            (unknown, settings.scores, path),
        ):
            if len(which):
                raise ValueError(
                    f"{len(which)} samples of {other} are not in {where}, the first at index "
                    f"{which[0]}: give tables of the same samples"
                )
    scores, digital = (table.sort_values("index") for table in (scores, digital))
    names = [
        name
        for name in scores.select_dtypes("number")
        if name not in _NO_SCORES and not str(name).endswith("_standard_error")
    ]
    if not names:
        raise ValueError(f"{settings.scores} has no column of scores beside index")
    kept = scores[["index", *names]].reset_index(drop=True)
    for name in _FALL_WITH_FRAGILITY:
        if name in kept:
            kept[name] = -kept[name]
    label = _label(scores, digital)
    if label is not None:
        kept.insert(1, "label", label)
    if "chip" not in analog:
        analog = analog.assign(chip=0)
    outcomes = analog.assign(correct=_correct(analog, settings.analog, kept["index"], label))
    wide = outcomes.pivot(index="chip", columns="index", values="correct")
    if wide.isna().any(axis=None):
        raise ValueError(f"the chips of {settings.analog} differ in their samples: give each all")
    right = _correct(digital, settings.digital, kept["index"], label)
    return Joined(kept, right, wide.to_numpy(bool))


def _table(path: Path, keys: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable CSV or Parquet file ({error})") from error
    if "index" not in table or not pd.api.types.is_integer_dtype(table["index"]):
        raise ValueError(f"{path} needs an integer column index, which names the sample")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    present = [key for key in keys if key in table]
    repeated = table[table.duplicated(["index", *present])]
    if len(repeated):
        raise ValueError(
            f"{path} has index {repeated['index'].iloc[0]} more than once"
            + (" on one chip" if present else "")
        )
    return table


def _label(scores: pd.DataFrame, digital: pd.DataFrame) -> np.ndarray | None:
    """The labels in the order of the index, where a table has them."""
    for table in (digital, scores):
        if "label" in table and pd.api.types.is_integer_dtype(table["label"]):
            return table["label"].to_numpy()
    return None


def _correct(
    table: pd.DataFrame, path: Path, indices: pd.Series, label: np.ndarray | None
) -> np.ndarray:
    """Whether each row's prediction is right."""
    if "correct" in table:
        values = table["correct"]
        if values.isna().any() or not values.isin([True, False]).all():
            raise ValueError(f"correct must be true or false in every row of {path}")
        return values.to_numpy(bool)
    if "prediction" not in table:
        raise ValueError(f"{path} needs a column correct, or prediction")
    if "label" in table:
        return (table["prediction"] == table["label"]).to_numpy()
    if label is None:
        raise ValueError(f"{path} has predictions, but no table has the labels: add a column label")
    known = pd.Series(label, index=indices.to_numpy())
    return table["prediction"].to_numpy() == known.loc[table["index"]].to_numpy()


def _preferred(scores: pd.DataFrame, *names: str) -> str:
    there = [name for name in scores if name not in ("index", "label")]
    return next((name for name in names if name in there), there[0])


def _show(table: pd.DataFrame, predictors: pd.DataFrame, joined: Joined, score: str) -> None:
    chips = len(joined.analog)
    console = Console(highlight=False)
    rates = Table(
        title=f"Analog-only failures by {score}, {chips} chip{'s' * (chips > 1)}",
        box=box.SIMPLE_HEAD,
    )
    for name in ("", "samples", "failures", "% of all", "% of the digitally correct"):
        rates.add_column(name, justify="right")
    for _, row in table.iterrows():
        rates.add_row(
            f"D{row['decile']:.0f}",
            f"{row['samples']:,.0f}",
            f"{row['failures']:,.0f}",
            *(_interval(100 * row[_with(f"rate_of_{which}")]) for which in ("all", "correct")),
        )
    console.print(rates)
    ranked = Table(
        title="Which score tells failures, among the digitally correct",
        caption=f"Difference of AUROC to {predictors['reference'].iloc[0]}, paired.",
        box=box.SIMPLE_HEAD,
    )
    for name in ("", "AUROC", "average precision", "Spearman", "difference"):
        ranked.add_column(name, justify="right" if name else "left")
    for _, row in predictors.sort_values("auroc", ascending=False).iterrows():
        measures = ("auroc", "average_precision", "spearman", "auroc_difference")
        cells = (
            [f"undefined: {row['reason']}"]
            if row["reason"]
            else [_interval(row[_with(name)], 3) for name in measures]
        )
        ranked.add_row(row["predictor"], *cells)
    console.print(ranked)


def _with(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _interval(values: Iterable[float], digits: int = 1) -> str:
    value, low, high = values
    if np.isnan(value):
        return "-"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
