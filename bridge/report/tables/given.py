"""Tables that a user gives, brought to the form that `outcomes.join` takes: anybody's predictions,
those of a real chip among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype

from bridge.chips.profiles import Profile, from_json
from bridge.report.tables.formats import time
from bridge.report.tables.outcomes import require_columns
from jaxcurv.costs import GRADIENT_NORM, forward_passes
from jaxcurv.estimators import SCORE_COLUMNS, FiniteDifference, HessianTrace, HessianVector

_SAMPLE = ["fold", "index"]
_NOT_OF_A_CHIP = ("label", "path", "time", "logits")
"""Columns of predictions that are the sample's, or that no table shows."""

_NEIGHBOURS = 0.2  # a share of samples that a chip without numbering faults hardly has

_SAMPLES_OF_A_CLASS = 5  # on average, for what most of them are to say anything

MEASURED = "measured chip"
"""Name of the profile of predictions that name none."""


def completed(
    scores: pd.DataFrame, predictions: pd.DataFrame, fold: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with what they may lack: fold, profile, chip and correct.

    A profile that was read at several times becomes one for each, such as "pcm at 3,600 s".
    Samples that no chip was run on are left out, with a warning unless `predictions.attrs` says
    that as many were held out. A chip whose classes seem to be numbered from 1, or to be in another
    order, is warned of.

    Args:
        scores: index, label, prediction, correct, curvature, margin and any others.
        predictions: index and prediction; may have fold, profile, time, chip, correct, and label
            and path, which must then be those of the scores.
        fold: what samples are, where a table does not say it.

    Raises:
        ValueError: a table or a column is missing, empty or of the wrong kind, rows do not match,
            or labels or files contradict each other; says where, and what to do.
    """
    scores = _table("scores", scores, ["label", "prediction", "correct", "curvature", "margin"])
    predictions = _table("predictions", predictions, ["prediction"])
    said = predictions.attrs.get("simulation", {})
    scores, predictions = _with_fold(scores, predictions, fold)
    predictions = _labelled_with_time(
        predictions.assign(
            profile=predictions.get("profile", MEASURED), chip=predictions.get("chip", 0)
        )
    )
    for name in ("profile", "chip", "prediction"):
        _refuse(predictions[predictions[name].isna()], f"rows without a {name} in predictions")
    predictions["profile"] = predictions["profile"].astype(str)
    for what, table, name in (
        ("scores", scores, "label"),
        ("scores", scores, "prediction"),
        ("predictions", predictions, "prediction"),
    ):
        if not is_integer_dtype(table[name]):
            raise ValueError(
                f"{name} in {what} must be the number of a class, as label in scores; it is "
                f"{table[name].dtype}, such as {table[name].iloc[0]!r}"
            )
    for name in ("curvature", "margin"):
        _refuse(scores[scores[name].isna()], f"rows without a {name} in scores")
    scores = _run_on_chips(scores, predictions, said)
    known = [*_SAMPLE, "prediction", *(name for name in ("label", "path") if name in scores)]
    keys: pd.DataFrame = predictions[_SAMPLE].merge(
        scores[known].drop_duplicates(_SAMPLE), on=_SAMPLE, how="left", validate="many_to_one"
    )
    for name in ("label", "path"):
        if name in predictions and name in scores:
            differs = predictions[name].to_numpy() != keys[name].to_numpy()
            _refuse(
                predictions[differs],
                f"rows of predictions whose {name} is not that of the scores: both must be of one "
                "set of images",
            )
    _warn_of_other_numbers(predictions, keys["prediction"].to_numpy(), scores)
    if "correct" not in predictions:
        right = predictions["prediction"].to_numpy() == keys["label"].to_numpy()
        predictions = predictions.assign(correct=right)
    predictions = _true_or_false("predictions", predictions)
    predictions = predictions.drop(columns=[*_NOT_OF_A_CHIP], errors="ignore")
    return _true_or_false("scores", scores), predictions


def read_at(predictions: pd.DataFrame) -> float | None:
    """The one time at which chips with a memory were read, in seconds; None if several or none."""
    if "time" not in predictions:
        return None
    times = predictions["time"].dropna().unique()
    return float(times[0]) if len(times) == 1 else None


def simulated_profiles(said: Mapping[str, Any]) -> dict[str, Profile | None]:
    """The settings of the chips that `bridge.simulate` made, by the name of their profile.

    Args:
        said: `attrs["simulation"]` of the predictions; empty for those of others.

    Returns:
        None for settings that cannot be read, such as those of a memory of the user's own.
    """
    found: dict[str, Profile | None] = {}
    for name, settings in said.get("profiles", {}).items():
        try:
            profile = from_json(settings)
        except ValueError:
            profile = None
        found[name] = profile if isinstance(profile, Profile) else None
    return found


def class_names(scores: pd.DataFrame, names: Any = None) -> dict[int, str]:
    """The name of each label and each predicted class.

    Args:
        scores: label, prediction and, where there are files, path.
        names: by label, where they are known. Else a class is called as the folder in which its
            files lie, if every label has one of its own, and by its number.
    """
    found = {}
    if names is not None:
        found = {number: str(name) for number, name in enumerate(names)}
    elif "path" in scores and scores["path"].notna().all():
        folders = scores["path"].astype(str).str.rpartition("/")[0].str.partition("/")[0]
        pairs = pd.DataFrame({"label": scores["label"], "folder": folders}).drop_duplicates()
        if pairs["label"].is_unique and pairs["folder"].is_unique and (pairs["folder"] != "").all():
            found = dict(zip(pairs["label"].astype(int), pairs["folder"], strict=True))
    return found


def _table(what: str, table: Any, columns: list[str]) -> pd.DataFrame:
    """A copy of the table, without pandas' own index, which is checked to have the columns."""
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"{what} must be a pandas DataFrame, such as pandas.read_csv(...) gives; got "
            f"{type(table).__name__}"
        )
    attrs = table.attrs
    table = table.reset_index(drop=table.index.name != "index")
    table.attrs = attrs
    try:
        require_columns(what, table, ["index", *columns])
    except ValueError as error:
        raise ValueError(
            f"{error}; it has {', '.join(map(str, table)) or 'none'}. Scores are what bridge.score "
            "or jaxcurv.score_dataset returns, predictions what bridge.simulate or bridge.predict "
            "does, or a table of index and prediction"
        ) from error
    if not is_integer_dtype(table["index"]):
        raise ValueError(
            f"index in {what} must hold whole numbers, the same in both tables; it is "
            f"{table['index'].dtype}, such as {table['index'].iloc[0]!r}"
        )
    return table


def _with_fold(
    scores: pd.DataFrame, predictions: pd.DataFrame, fold: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with the column fold; one that lacks it has the other's, or else `fold`."""
    tables = {"scores": scores, "predictions": predictions}
    said = {what: table["fold"].unique() for what, table in tables.items() if "fold" in table}
    for what, table in tables.items():
        if what in said:
            continue
        ((other, there),) = said.items() or (("", [fold]),)
        if len(there) > 1:
            raise ValueError(
                f"{other} has the folds {', '.join(map(str, there))}, and {what} no column fold: "
                f"add it, or give the rows of one, {other}[{other}['fold'] == {there[0]!r}]"
            )
        tables[what] = table.assign(fold=there[0])
    return tables["scores"], tables["predictions"]


def _labelled_with_time(predictions: pd.DataFrame) -> pd.DataFrame:
    """A profile's name says the time too, where the profile was read at several."""
    if "time" not in predictions:
        return predictions
    several = predictions.groupby("profile")["time"].nunique() > 1
    named = predictions["profile"].map(several).to_numpy() & predictions["time"].notna().to_numpy()
    profile = predictions["profile"].astype(object).copy()
    pairs = zip(profile[named], predictions["time"][named], strict=True)
    profile[named] = [f"{name} at {time(seconds)}" for name, seconds in pairs]
    return predictions.assign(profile=profile)


def _run_on_chips(
    scores: pd.DataFrame, predictions: pd.DataFrame, said: Mapping[str, Any]
) -> pd.DataFrame:
    """The scored samples that some chip was run on."""
    scored, run = (pd.MultiIndex.from_frame(one[_SAMPLE]) for one in (scores, predictions))
    there = scored.isin(run)
    left = int((~there).sum())
    if left == len(scores):
        raise ValueError(
            "no sample of scores has a prediction: fold and index must name the same image in both "
            f"tables; scores begin with {scores['fold'].iloc[0]} {scores['index'].iloc[0]}, "
            f"predictions with {predictions['fold'].iloc[0]} {predictions['index'].iloc[0]}"
        )
    _refuse(predictions[~run.isin(scored)], "predictions without a score: score these samples too")
    if left and left != said.get("held_out"):
        warnings.warn(
            f"{left:,} of {len(scores):,} scored samples have no prediction and are left out, the "
            f"first at index {scores['index'][~there].iloc[0]}",
            stacklevel=4,
        )
    return scores[there]


def _warn_of_other_numbers(
    predictions: pd.DataFrame, digital: npt.NDArray[Any], scores: pd.DataFrame
) -> None:
    """Warns of a chip whose classes seem to be numbered from another one, as from 1.

    It has a class that neither labels nor digital predictions have, lacks one of theirs, and its
    predictions are the digital ones' neighbours far more often than these themselves.

    Args:
        predictions: profile, chip and prediction.
        digital: that of the same sample, `[rows of predictions]`.
        scores: label and prediction.
    """
    known = {*scores["label"].unique(), *scores["prediction"].unique()}
    apart = predictions["prediction"].to_numpy() - digital
    named = predictions.assign(apart=apart).groupby(["profile", "chip"], sort=False)
    for (profile, chip), rows in named:
        found = {*rows["prediction"].unique()}
        same = float((rows["apart"] == 0).mean())
        if found <= known or known <= found:
            _warn_of_another_order(f"profile {profile}, chip {chip}", rows, same)
            continue
        for by in (1, -1):
            shifted = float((rows["apart"] == by).mean())
            if shifted > max(_NEIGHBOURS, 2 * same):
                cure = f"prediction {'-' if by > 0 else '+'} 1"
                warnings.warn(
                    f"the classes of profile {profile}, chip {chip} seem to be numbered from "
                    f"another one than those of scores: {cure} is the digital prediction for "
                    f"{shifted:.0%} of the samples, prediction for {same:.0%}; give "
                    f'predictions.assign(prediction=predictions["prediction"] {cure[-3:]})',
                    stacklevel=4,
                )


def _warn_of_another_order(whose: str, rows: pd.DataFrame, same: float) -> None:
    """Warns of a chip that has another class, each its own, for most samples of a digital one."""
    counts = pd.crosstab(rows["prediction"] - rows["apart"], rows["prediction"])
    most = counts.idxmax(axis=1)
    share = float(counts.max(axis=1).sum()) / len(rows)
    enough = len(rows) >= _SAMPLES_OF_A_CLASS * len(counts)
    if enough and most.is_unique and share > max(0.5, 2 * same):
        moved = most[most != most.index].items()
        pairs = ", ".join(f"{one} for {digital}" for digital, one in list(moved)[:3])
        warnings.warn(
            f"the classes of {whose} seem to be in another order than those of scores, as of names "
            f"sorted as text and as numbers: it has mostly {pairs}, and so on ({share:.0%} of the "
            f"samples; as in scores {same:.0%}); give its predictions the numbers that scores have",
            stacklevel=5,
        )


def _true_or_false(what: str, table: pd.DataFrame) -> pd.DataFrame:
    values = table["correct"]
    if is_bool_dtype(values) and not values.isna().any():
        return table
    _refuse(
        table[~values.isin([True, False])],
        f"rows of {what} whose correct is not true or false, or 1 or 0",
    )
    return table.assign(correct=values.to_numpy().astype(bool))


def _refuse(rows: pd.DataFrame, problem: str) -> None:
    """Raise if there are rows: how many, and which is the first."""
    if len(rows):
        first = rows.iloc[0]
        keys = [name for name in ("profile", "chip", "fold", "index") if name in rows]
        which = ", ".join(f"{name} {first[name]}" for name in keys)
        raise ValueError(f"{len(rows)} {problem} (first: {which})")


def require_bins(scores: pd.DataFrame, bins: int) -> None:
    """Refuses more bins than the smallest fold has samples."""
    samples = scores["fold"].value_counts()
    if (fewest := int(samples.min())) < bins:
        raise ValueError(
            f"{fewest} samples of the {samples.idxmin()} fold cannot fill {bins} bins: score more, "
            f"or give bins={fewest} or fewer"
        )


def costs(scores: pd.DataFrame) -> pd.DataFrame:
    """What the scores of a table cost a sample (`jaxcurv.costs`), as far as its `attrs` say it.

    Returns:
        predictor and forward_passes, for `predictors.costs_table`: NaN for an estimator of which
        nothing is said or whose cost is not that of its number of probes.
    """
    passes = {"loss": 1.0, "gradient_norm": GRADIENT_NORM}
    said = scores.attrs.get("estimators", {})
    for column in SCORE_COLUMNS.values():
        if column in scores:
            passes[column] = _probing_passes(said.get(column, {}))
    return pd.DataFrame({"predictor": passes.keys(), "forward_passes": passes.values()})


def _probing_passes(estimator: Mapping[str, Any]) -> float:
    kinds = {kind.__name__: kind for kind in (FiniteDifference, HessianTrace, HessianVector)}
    settings = dict(estimator)
    kind = kinds.get(settings.pop("name", ""))
    # Of these alone the cost does not depend on the number of classes.
    return float("nan") if kind is None else forward_passes(kind(**settings), classes=2)
