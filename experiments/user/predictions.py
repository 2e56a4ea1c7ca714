"""`analyse --scores FILE --digital FILE --analog FILE`: scores and predictions from anywhere, such
as a real chip, without a preset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.analysis.failures import deciles, failure_table, trend_test
from bridge.analysis.predictors import compare_predictors
from bridge.report.tables.formats import with_interval
from experiments.runs.files import read_parquet, writable, write_csv
from experiments.system.errors import at_work
from jaxcurv.storage.lock import lock

_NO_SCORES = ("index", "path", "label", "prediction", "correct", "checkpoint", "fold")
_BY_PRODUCTS = (
    "_standard_error",
    "_probes",
    "_frobenius_norm",
    "_top_eigenvalue",
    "_residual_trace",
)
_FALL_WITH_FRAGILITY = ("margin", "label_margin")


@dataclass(frozen=True)
class OwnPredictions:
    """Which samples fail on a chip and what predicts it, from your own tables. (For the stage of a
    run: analyse PRESET --help.)

    They are CSV or Parquet files, joined by their column `index`.
    """

    scores: Path
    """Table of scores, CSV or Parquet: a column `index` and columns of numbers that are larger for
    more fragile samples. `margin` and `label_margin`, smaller for them, are negated. Ignored are
    label, prediction, correct, path, fold, checkpoint, text, and columns ending in _standard_error,
    _probes, _frobenius_norm, _top_eigenvalue or _residual_trace."""
    digital: Path
    """Table of the digital model's outcomes: a column `index` and either `correct` (true or false,
    or 1 or 0) or `prediction` and `label`, or all three."""
    analog: Path
    """Table of the chip's outcomes: a column `index`, `correct` or `prediction`, and `chip` if
    several chips were measured."""
    score: str | None = None
    """Score by which samples are sorted into bins; `none` takes curvature if it is there, else the
    first."""
    reference: str | None = None
    """Score with which the others are compared; `none` takes the margin if it is there, else
    --score."""
    out: Path = Path("analysis")
    """Folder of the results."""
    bins: int = 10
    """Bins of equal size into which samples are sorted by the score."""
    confidence: float = 0.95
    """Confidence level of all intervals, between 0 and 1."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals of predictors."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Joined:
    """Samples in the order of their index."""

    scores: pd.DataFrame
    """index, label where known, and a column a score, all growing with fragility."""
    digital: np.ndarray
    """Correct, bool [samples]."""
    analog: np.ndarray
    """Correct, bool [chips, samples]."""
    turned: tuple[str, ...]
    """Scores whose sign was changed."""
    left_out: tuple[str, ...]
    """Columns of the scores' table that are none."""


def run(settings: OwnPredictions) -> None:
    """Prints the failure rates and the predictors, and keeps them as CSV.

    Raises:
      ValueError, OSError: a table or a setting is not as it should be, or nothing can be written.
      WorkFailed: the results could not be written after all.
    """
    joined = read(settings)
    with writable(settings.out), lock(settings.out):
        _tabulate(settings, joined)


def _tabulate(settings: OwnPredictions, joined: Joined) -> None:
    score = settings.score or _preferred(joined.scores, "curvature")
    reference = settings.reference or _preferred(joined.scores, "margin", score)
    for name in (score, reference):
        if name not in joined.scores:
            known = [one for one in joined.scores if one not in ("index", "label")]
            raise ValueError(
                f"{settings.scores} has no score {name!r}; there is {', '.join(known)}"
            )
    table = failure_table(
        joined.scores[score],
        joined.digital,
        joined.analog,
        settings.bins,
        indices=joined.scores["index"],
        confidence=settings.confidence,
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
        confidence=settings.confidence,
        resamples=settings.resamples,
    )
    cut = deciles(joined.scores[score], joined.scores["index"], settings.bins)
    trend = trend_test(cut, joined.digital & ~joined.analog)
    with at_work():
        write_csv(settings.out / "deciles.csv", table)
        write_csv(settings.out / "predictors.csv", predictors)
    _show(table, predictors, joined, score, settings.confidence)
    if trend.reason:
        print(f"Trend over the bins: undefined, {trend.reason}.")
    else:
        print(f"Trend over the bins, of all samples: z = {trend.z:.2f}, p = {trend.p:.2g}.")
    print(f"{settings.out / 'deciles.csv'} and {settings.out / 'predictors.csv'}")


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
        if str(name).lower() not in _NO_SCORES and not str(name).endswith(_BY_PRODUCTS)
    ]
    if not names:
        raise ValueError(
            f"{settings.scores} has no column of scores beside index; it has {', '.join(scores)}"
        )
    for name in names:
        if wrong := int((~np.isfinite(scores[name])).sum()):
            first = scores["index"][~np.isfinite(scores[name])].iloc[0]
            raise ValueError(
                f"{name} in {settings.scores} is no finite number in {wrong} of {len(scores)} "
                f"rows, the first at index {first}: score these samples again, or leave them out "
                "of all tables"
            )
    kept = scores[["index", *names]].reset_index(drop=True)
    turned = tuple(name for name in _FALL_WITH_FRAGILITY if name in kept)
    for name in turned:
        kept[name] = -kept[name]
    labels = _labels({settings.scores: scores, settings.digital: digital, settings.analog: analog})
    if labels is not None and labels.index.equals(pd.Index(kept["index"])):
        kept.insert(1, "label", labels.to_numpy())
    if "chip" not in analog:
        analog = analog.assign(chip=0)
    _require_filled(analog, "chip", settings.analog)
    outcomes = analog.assign(correct=_correct(analog, settings.analog, labels))
    wide = outcomes.pivot(index="chip", columns="index", values="correct")
    if len(missing := np.argwhere(wide.isna().to_numpy())):
        chip, sample = missing[0]
        raise ValueError(
            f"the chips of {settings.analog} differ in their samples: chip {wide.index[chip]} "
            f"lacks index {wide.columns[sample]}; give each all"
        )
    right = _correct(digital, settings.digital, labels)
    left_out = tuple(str(one) for one in scores if one not in (*names, *_NO_SCORES))
    return Joined(kept, right, wide.to_numpy(bool), turned, left_out)


def _table(path: Path, keys: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        table = read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        if table.index.name == "index":  # as of a table that was given it with set_index
            table = table.reset_index()
        table = table.drop(columns="Unnamed: 0", errors="ignore")  # pandas' own index, written
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable CSV or Parquet file ({error})") from error
    if "index" not in table:
        raise ValueError(
            f"{path} needs a column index, which names the sample; it has {', '.join(table)}"
        )
    if table.empty:
        raise ValueError(f"{path} has no rows: give one for each sample")
    if not pd.api.types.is_integer_dtype(table["index"]):
        raise ValueError(
            f"index in {path} must hold whole numbers, the same in all tables; it is "
            f"{table['index'].dtype}, such as {table['index'].iloc[0]}"
        )
    present = [key for key in keys if key in table]
    repeated = table[table.duplicated(["index", *present])]
    if len(repeated):
        raise ValueError(
            f"{path} has index {repeated['index'].iloc[0]} more than once"
            + (" on one chip" if present else "")
            + (": add a column chip" if keys and not present else "")
            + "".join(
                f"; it has a column {name}: keep one"
                for name in ("fold", "profile")
                if name in table
            )
        )
    return table


def _labels(tables: Mapping[Path, pd.DataFrame]) -> pd.Series | None:
    """The labels by index, as all tables that have them agree on them; None without any."""
    found: pd.Series | None = None
    for path, table in tables.items():
        if "label" not in table:
            continue
        _require_filled(table, "label", path)
        if (table.groupby("index")["label"].nunique() > 1).any():
            raise ValueError(f"{path} has several labels for one index")
        own = table.groupby("index")["label"].first()
        if found is not None and len(clash := own.index[own != found.reindex(own.index)]):
            raise ValueError(
                f"label in {path} is not that of the other tables for {len(clash)} samples, the "
                f"first at index {clash[0]}: the tables must be of one data set"
            )
        found = own
    return found


def _correct(table: pd.DataFrame, path: Path, labels: pd.Series | None) -> np.ndarray:
    """Whether each row's prediction is right, however the table says so."""
    by_prediction = None
    if "prediction" in table and labels is not None:
        _require_filled(table, "prediction", path)
        numbers = [pd.api.types.is_numeric_dtype(one) for one in (table["prediction"], labels)]
        if numbers[0] != numbers[1]:
            raise ValueError(
                f"predictions of {path}, such as {table['prediction'].iloc[0]!r}, are not of the "
                f"kind of the labels, such as {labels.iloc[0]!r}: give both as numbers, or as names"
            )
        by_prediction = table["prediction"].to_numpy() == labels.loc[table["index"]].to_numpy()
    if "correct" not in table:
        if by_prediction is None:
            raise ValueError(
                f"{path} needs a column correct, or prediction"
                + ("" if labels is not None else " and a label in one of the tables")
            )
        return by_prediction
    values = table["correct"]
    if not values.isin([True, False]).all():
        odd = values[~values.isin([True, False])].iloc[0]
        raise ValueError(
            f"correct must be true or false, or 1 or 0, in every row of {path}; got {odd}"
        )
    outcome = values.to_numpy(bool)
    if by_prediction is not None and (clash := outcome != by_prediction).any():
        raise ValueError(
            f"correct contradicts prediction and label in {clash.sum()} rows of {path}, the first "
            f"at index {table['index'].to_numpy()[clash][0]}"
        )
    return outcome


def _require_filled(table: pd.DataFrame, column: str, path: Path) -> None:
    if (missing := table[column].isna()).any():
        raise ValueError(
            f"{column} is missing in {missing.sum()} rows of {path}, the first at index "
            f"{table['index'][missing].iloc[0]}: fill them in, or leave these samples out of all "
            "tables"
        )


def _preferred(scores: pd.DataFrame, *names: str) -> str:
    there = [name for name in scores if name not in ("index", "label")]
    return next((name for name in names if name in there), there[0])


def _show(
    table: pd.DataFrame, predictors: pd.DataFrame, joined: Joined, score: str, confidence: float
) -> None:
    chips = len(joined.analog)
    console = Console(highlight=False)
    falling = " (D1: the largest)" if score in joined.turned else ""
    rates = Table(
        title=f"Analog-only failures by {score}{falling}, {chips} chip{'s' * (chips > 1)}",
        caption=f"Brackets: {100 * confidence:g} % intervals. Failures of all chips together.",
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
            else [_interval(row[_with(name)], ".3f") for name in measures]
        )
        ranked.add_row(row["predictor"], *cells)
    console.print(ranked)
    used = [name for name in joined.scores if name not in ("index", "label")]
    print(
        f"Scores: {', '.join(used)}; turned round: {', '.join(joined.turned) or 'none'}; left out: "
        f"{', '.join(joined.left_out) or 'none'}."
    )
    for _, row in predictors.iterrows():
        if row["auroc_high"] < 0.5:
            print(f"{row['predictor']} falls with fragility: change its sign.")


def _with(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _interval(values: Iterable[float], form: str = ".1f") -> str:
    value, low, high = values
    return with_interval(value, low, high, form)
