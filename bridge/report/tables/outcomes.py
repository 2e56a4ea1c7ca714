"""One row a (profile, chip, sample): scores joined with digital and analog outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy.typing as npt
import pandas as pd

from bridge.analysis.failures import analog_only_failures
from bridge.chips.profiles import PROFILES
from bridge.report.folds import FOLDS, POOLED

Denominator = Literal["all", "correct"]
DENOMINATORS: dict[str, str] = {"all": "all samples", "correct": "digitally correct samples"}
_SAMPLE = ["fold", "index"]
_CHIP = ["profile", "chip"]


def join(
    scores: pd.DataFrame, predictions: pd.DataFrame, profiles: Sequence[str] = tuple(PROFILES)
) -> pd.DataFrame:
    """One row a (profile, chip, sample) with the sample's scores and both outcomes.

    Args:
        scores: one row a sample: fold, index, label, prediction, correct (digital) and any scores.
        predictions: one row a (profile, chip, sample): profile, chip, fold, index, prediction,
            correct (analog) and any scores of the chip's logits.
        profiles: names that a profile may have, in the order of the table.

    Returns:
        The scores with prediction and correct renamed digital_*, the chip's columns analog_*,
        failure (bool, analog-only), and sample: an int64 that is unique over folds and grows with
        (fold, index). Sorted by profile, chip and sample.

    Raises:
        ValueError: where a column, a score or a prediction is missing, repeated or contradicts its
            label; says from which profile, chip, fold and index.
    """
    digital = digital_outcomes(scores)
    require_columns("predictions", predictions, [*_CHIP, *_SAMPLE, "prediction", "correct"])
    _known("predictions", predictions["fold"], FOLDS)
    _known("predictions", predictions["profile"], profiles)
    _once("predictions", predictions, [*_CHIP, *_SAMPLE])
    keys = [*_CHIP, *_SAMPLE]
    analog = predictions.rename(
        columns={name: f"analog_{name}" for name in predictions if name not in keys}
    )
    joined = analog.merge(digital, on=_SAMPLE, how="left", validate="many_to_one")
    _refuse(joined[joined["sample"].isna()], "predictions without a score; score these samples")
    joined["sample"] = joined["sample"].astype("int64")
    for (profile, chip), rows in joined.groupby(_CHIP):
        missing = digital[~digital["sample"].isin(rows["sample"])].assign(
            profile=profile, chip=chip
        )
        _refuse(missing, "scored samples without a prediction; run this chip again")
    for side in ("digital", "analog"):
        says = joined[f"{side}_prediction"] == joined["label"]
        _refuse(
            joined[says != joined[f"{side}_correct"]],
            f"labels mismatched: {side} `correct` contradicts prediction == label; "
            "scores and predictions must come from one data set",
        )
    joined = joined.sort_values(["chip", "sample"])
    joined = joined.sort_values("profile", key=_rank(profiles), kind="stable", ignore_index=True)
    joined["failure"] = analog_only_failures(joined["digital_correct"], joined["analog_correct"])
    return joined


def digital_outcomes(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a sample with its scores and the digital outcome.

    Args:
        scores: as for `join`.

    Returns:
        The scores with prediction and correct renamed digital_*, and sample: unique over folds,
        growing with (fold, index). Sorted by sample.

    Raises:
        ValueError: where a column is missing or a sample repeated.
    """
    require_columns("scores", scores, [*_SAMPLE, "label", "prediction", "correct"])
    _known("scores", scores["fold"], FOLDS)
    _once("scores", scores, _SAMPLE)
    digital = scores.rename(
        columns={"prediction": "digital_prediction", "correct": "digital_correct"}
    )
    digital = digital.sort_values("index").sort_values("fold", key=_rank(FOLDS), kind="stable")
    digital["sample"] = range(len(digital))
    return digital


def folds(joined: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each scored fold, then `POOLED`: all of them, where more than one is scored."""
    present = _present(joined["fold"], FOLDS)
    for fold in present:
        yield fold, joined[joined["fold"] == fold]
    if len(present) > 1:
        yield POOLED, joined


def over_chips(
    rows: pd.DataFrame, column: str = "analog_correct"
) -> tuple[pd.DataFrame, npt.NDArray]:
    """One profile's samples, and a column of its chips' outcomes beside them.

    Args:
        rows: the rows of one profile in `join`'s table.
        column: the outcome, or a score that each chip gives.

    Returns:
        The rows of one chip, sorted by sample, and the column as [chips, samples], chips by seed.
    """
    wide = rows.pivot(index="chip", columns="sample", values=column)
    one = rows[rows["chip"] == wide.index[0]].sort_values("sample")
    return one, wide.to_numpy()


def ideal_agreement(joined: pd.DataFrame) -> float:
    """The share of (chip, sample) where the ideal chip predicts what the digital model does.

    Raises:
        ValueError: if no ideal chip was run.
    """
    ideal = joined[joined["profile"] == "ideal"]
    if ideal.empty:
        raise ValueError("no predictions of profile ideal; run it to check the conversion")
    return float((ideal["analog_prediction"] == ideal["digital_prediction"]).mean())


def select(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """The rows whose columns have these values.

    Raises:
        ValueError: if there are none; names the values that the column has.
    """
    rows = table
    for column, value in wanted.items():
        there = [str(name) for name in rows[column].unique()]
        rows = rows[rows[column] == value]
        if rows.empty:
            raise ValueError(f"no {column} {value!r} here; there is {', '.join(there)}")
    return rows


def _present(values: pd.Series | pd.Index, order: Sequence[str]) -> list[str]:
    there = set(values)
    return [name for name in order if name in there]


def _rank(order: Sequence[str]) -> Callable[[pd.Series], pd.Series]:
    place = {name: position for position, name in enumerate(order)}
    return lambda column: column.map(place)


def require_columns(what: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises ValueError, naming the table as `what`, if columns are missing or it has no rows."""
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{what} lacks the columns {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{what} has no rows")


def _known(what: str, column: pd.Series, names: Sequence[str]) -> None:
    if unknown := sorted(set(column) - set(names)):
        raise ValueError(f"{what} has the {column.name} {unknown[0]!r}; known: {', '.join(names)}")


def _once(what: str, table: pd.DataFrame, keys: list[str]) -> None:
    _refuse(table[table.duplicated(keys)], f"rows repeated in {what}; each may occur once")


def _refuse(rows: pd.DataFrame, problem: str) -> None:
    """Raise if there are rows: how many, and which is the first."""
    if not rows.empty:
        first = rows.iloc[0]
        keys = [key for key in (*_CHIP, *_SAMPLE) if key in rows]
        which = ", ".join(f"{key} {first[key]}" for key in keys)
        raise ValueError(f"{len(rows)} x {problem} (first: {which})")
