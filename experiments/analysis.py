"""From scores and chip predictions to the paper's tables, and the answer in one sentence.

`join` -> `failure_tables` -> `rates`, `table_one`, `answer`. What predicts failures and what to do
about them is in `experiments.prediction` and `experiments.routing`. Rows keep the order of `FOLDS`
and `PROFILES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

import bridge
from bridge.failures import analog_only_failures, failure_table, trend_test
from bridge.failures import deciles as deciles_by_rank
from experiments.paper import TABLE_ONE
from experiments.settings import Fold

log = logging.getLogger(__name__)

Denominator = Literal["all", "correct"]

FOLDS: tuple[str, ...] = get_args(Fold)
POOLED = "pooled"  # every scored fold together
PROFILES = tuple(bridge.PROFILES)
FULL_PROFILE = "adc+wnoise+pcm"
DENOMINATORS: dict[str, str] = {"all": "all samples", "correct": "digitally correct samples"}

_SAMPLE = ["fold", "index"]
_CHIP = ["profile", "chip"]


def join(scores: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a (profile, chip, sample) with the sample's scores and both outcomes.

    Args:
        scores: one row a sample: fold, index, label, prediction, correct (digital) and any scores.
        predictions: one row a (profile, chip, sample): profile, chip, fold, index, prediction,
            correct (analog) and any scores of the chip's logits.

    Returns:
        The scores with prediction and correct renamed digital_*, the chip's columns analog_*,
        failure (bool, analog-only), and sample: an int64 that is unique over folds and grows with
        (fold, index). Sorted by profile, chip and sample.

    Raises:
        ValueError: where a column, a score or a prediction is missing, repeated or contradicts its
            label; says from which profile, chip, fold and index.
    """
    _require("scores", scores, [*_SAMPLE, "label", "prediction", "correct"])
    _require("predictions", predictions, [*_CHIP, *_SAMPLE, "prediction", "correct"])
    _known("scores", scores["fold"], FOLDS)
    _known("predictions", predictions["fold"], FOLDS)
    _known("predictions", predictions["profile"], PROFILES)
    _once("scores", scores, _SAMPLE)
    _once("predictions", predictions, [*_CHIP, *_SAMPLE])

    digital = scores.rename(
        columns={"prediction": "digital_prediction", "correct": "digital_correct"}
    )
    digital = digital.sort_values("index").sort_values("fold", key=_rank(FOLDS), kind="stable")
    digital["sample"] = range(len(digital))
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
    joined = joined.sort_values("profile", key=_rank(PROFILES), kind="stable", ignore_index=True)
    joined["failure"] = analog_only_failures(joined["digital_correct"], joined["analog_correct"])
    return joined


def folds(joined: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each scored fold, then `POOLED`: all of them, where more than one is scored."""
    present = _present(joined["fold"], FOLDS)
    for fold in present:
        yield fold, joined[joined["fold"] == fold]
    if len(present) > 1:
        yield POOLED, joined


def failure_tables(
    joined: pd.DataFrame,
    score: str = "curvature",
    bins: int = 10,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> pd.DataFrame:
    """`bridge.failure_table` of each fold and profile, over its chips.

    Deciles are cut within each fold; those of `POOLED` among all samples. A fold with fewer samples
    than bins is skipped with a warning in the log.

    Args:
        joined: as `join` returns it.
        score: the column to cut by.
        bins: how many bins.
        confidence: of the intervals.
        resamples: of the bootstrap over several chips.

    Returns:
        fold, profile and the columns of `failure_table`.

    Raises:
        ValueError: for a missing score, NaN scores, or no fold large enough.
    """
    _require("joined", joined, [score])
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
                resamples=resamples,
            )
            table.insert(0, "fold", fold)
            table.insert(1, "profile", profile)
            tables.append(table)
    if not tables:
        raise ValueError(f"no fold has the {bins} samples that {bins} bins need; score more")
    return pd.concat(tables, ignore_index=True)


def over_chips(
    rows: pd.DataFrame, column: str = "analog_correct"
) -> tuple[pd.DataFrame, npt.NDArray]:
    """One profile's samples, and a column of its chips' outcomes beside them.

    Args:
        rows: those of one profile in `join`'s table.
        column: of the outcomes.

    Returns:
        The rows of one chip, sorted by sample, and the column as [chips, samples], chips by seed.
    """
    wide = rows.pivot(index="chip", columns="sample", values=column)
    one = rows[rows["chip"] == wide.index[0]].sort_values("sample")
    return one, wide.to_numpy()


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
        _minus_paper; trend_z and trend_p (`bridge.failures.trend_test` over the bins, all samples),
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
        chips), failure_rate (of the digitally correct; NaN without any) and mean_curvature; rates
        are fractions.
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
    return table.reset_index()


def vulnerable(
    joined: pd.DataFrame,
    flips: pd.DataFrame,
    *,
    fold: str = "test",
    profile: str = FULL_PROFILE,
    count: int = 60,
) -> pd.DataFrame:
    """The samples that the digital model gets right and that are most likely to fail.

    By the share of the chips on which they fail, then by flip probability.

    Args:
        joined: as `join` returns it.
        flips: fold, index, profile and probability.
        fold: one fold.
        profile: one profile.
        count: at most so many.

    Returns:
        fold, index, label, digital_prediction, analog_prediction (of the first chip), curvature,
        margin, flip_probability and failed_share (of the chips).
    """
    rows = joined[(joined["fold"] == fold) & (joined["profile"] == profile)]
    samples, failed = over_chips(rows, "failure")
    table = samples.assign(failed_share=failed.mean(axis=0))
    table = table[table["digital_correct"]].merge(
        flips[["fold", "index", "profile", "probability"]], on=["fold", "index", "profile"]
    )
    table = table.rename(columns={"probability": "flip_probability"})
    table = table.sort_values(
        ["failed_share", "flip_probability", "index"], ascending=[False, False, True]
    )
    columns = ["fold", "index", "label", "digital_prediction", "analog_prediction"]
    columns += ["curvature", "margin", "flip_probability", "failed_share"]
    return table[columns].head(count).reset_index(drop=True)


def ideal_agreement(joined: pd.DataFrame) -> float:
    """The share of (chip, sample) where the ideal chip predicts what the digital model does.

    Raises:
        ValueError: if no ideal chip was run.
    """
    ideal = joined[joined["profile"] == "ideal"]
    if ideal.empty:
        raise ValueError("no predictions of profile ideal; run it to check the conversion")
    return float((ideal["analog_prediction"] == ideal["digital_prediction"]).mean())


def answer(
    deciles: pd.DataFrame,
    predictors: pd.DataFrame,
    *,
    profile: str = FULL_PROFILE,
    fold: str = "test",
    denominator: Denominator = "all",
    predictor: str = "curvature",
    drift_seconds: float | None = None,
) -> str:
    """One sentence: do failures rise with the score? Whichever way the data says.

    It is called rising (falling) only if the whole interval of Spearman's rho lies above (below) 0.
    Of several chips: mean rates, and rho with the share of the chips on which a sample fails.

    Args:
        deciles: as `failure_tables` returns it, cut by `predictor`.
        predictors: as `experiments.prediction.compare` returns it.
        profile: the profile to speak of.
        fold: the fold to speak of.
        denominator: all samples or the digitally correct ones.
        predictor: the score to speak of.
        drift_seconds: of the chips, in seconds; named for profiles with PCM.

    Raises:
        ValueError: if the tables have no such rows.
    """
    found = select(rates(deciles, denominator), fold=fold, profile=profile)
    rank = select(
        predictors, fold=fold, profile=profile, predictor=predictor, denominator=denominator
    ).iloc[0]
    first, last = found.iloc[0], found.iloc[-1]
    peak = found.loc[found["rate"].fillna(-1).idxmax()]
    setting = profile
    if drift_seconds is not None and "pcm" in profile:
        setting += f" at {drift_note(drift_seconds)}"
    where = f"{fold} fold, of {DENOMINATORS[denominator]}"
    if last["chips"] > 1:
        where += f", mean of {last['chips']} chips"
    facts = (
        f"Under {setting}, {_percent(first['rate'])} of D{first['decile']} and "
        f"{_percent(last['rate'])} of D{last['decile']} fail ({where}); "
    )
    if rank["reason"]:
        return facts + f"Spearman's rho is undefined: {rank['reason']}."
    low, high = rank["spearman_low"], rank["spearman_high"]
    name = predictor.replace("_", " ")
    if low > 0:
        trend = f"failures rise with {name}"
    elif high < 0:
        trend = f"failures fall with {name}"
    else:
        trend = f"no trend with {name} is established"
    if peak["decile"] != last["decile"] and peak["rate"] > last["rate"]:
        trend += f", and the highest rate is that of D{peak['decile']}, {_percent(peak['rate'])}"
    return facts + f"Spearman's rho = {rank['spearman']:.2f} [{low:.2f}, {high:.2f}]: {trend}."


def answers(
    deciles: pd.DataFrame,
    predictors: pd.DataFrame,
    *,
    profile: str = FULL_PROFILE,
    fold: str = "test",
    drift_seconds: float | None = None,
) -> list[str]:
    """`answer` for both denominators: they can differ in sign where the model is often wrong."""
    return [
        answer(
            deciles,
            predictors,
            profile=profile,
            fold=fold,
            denominator=denominator,
            drift_seconds=drift_seconds,
        )
        for denominator in get_args(Denominator)
    ]


def select(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """The rows whose columns have these values; a ValueError names those there are, if none."""
    rows = table
    for column, value in wanted.items():
        there = [str(name) for name in rows[column].unique()]
        rows = rows[rows[column] == value]
        if rows.empty:
            raise ValueError(f"no {column} {value!r} here; there is {', '.join(there)}")
    return rows


def drift_note(seconds: float) -> str:
    """`t = 20 s`, with thousands separated."""
    return f"t = {seconds:,.10g} s"


def caption(
    shown: pd.DataFrame, fold: str, denominator: Denominator, drift_seconds: float | None = None
) -> str:
    """What a table of these rates shows: fold, denominator, drift time, chips, ties.

    Args:
        shown: rows of `rates`.
        fold: their fold.
        denominator: their denominator.
        drift_seconds: of the chips with PCM.
    """
    fewest, most = int(shown["chips"].min()), int(shown["chips"].max())
    chips = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    parts = [f"{fold} fold", f"% of {DENOMINATORS[denominator]}"]
    if drift_seconds is not None:
        parts.append(f"PCM at {drift_note(drift_seconds)}")
    parts.append(f"{chips} chip a profile" if most == 1 else f"mean of {chips} chips a profile")
    if tied := int(shown.groupby("decile")["tied"].max().sum()):
        parts.append(f"{tied:,} samples tie across bins")
    return ", ".join(parts)


def render_deciles(
    deciles: pd.DataFrame,
    *,
    fold: str = "test",
    denominator: Denominator = "all",
    drift_seconds: float | None = None,
    console: Console | None = None,
) -> None:
    """Print one fold's failure rates in percent, a row a decile and a column a profile.

    Args:
        deciles: as `failure_tables` returns it.
        fold: the fold to print.
        denominator: all samples or the digitally correct ones.
        drift_seconds: of the chips with PCM, for the caption.
        console: where to print; standard output if None.

    Raises:
        ValueError: if the table has no such fold.
    """
    shown = select(rates(deciles, denominator), fold=fold)
    names = list(shown["profile"].unique())
    grid = shown.pivot(index="decile", columns="profile", values="rate")[names]
    failures = shown.groupby("profile")["failures"].sum()
    table = Table(
        title="Analog-only failures by curvature decile",
        caption=caption(shown, fold, denominator, drift_seconds),
        show_footer=True,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", "failures", no_wrap=True)
    for profile in names:
        # Broken at each plus, so that eight profiles fit a terminal of 80 columns.
        table.add_column(
            profile.replace("+", "\n+"), f"{failures[profile]:,}", justify="right", no_wrap=True
        )
    for decile, row in grid.iterrows():
        table.add_row(f"D{decile}", *(f"{rate:.2f}" if rate == rate else "-" for rate in row))
    (console or Console()).print(table)


def _percent(rate: float) -> str:
    return "an undefined share" if np.isnan(rate) else f"{rate:.1f} %"


def _present(values: pd.Series | pd.Index, order: Sequence[str]) -> list[str]:
    there = set(values)
    return [name for name in order if name in there]


def _rank(order: Sequence[str]) -> Callable[[pd.Series], pd.Series]:
    place = {name: position for position, name in enumerate(order)}
    return lambda column: column.map(place)


def _require(what: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
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
