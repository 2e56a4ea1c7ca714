"""From scores and chip predictions to the paper's tables, and the answer in one sentence.

`join` -> `decile_tables` and `correlations` -> `over_chips`, `table_one`, `answer`. All that is
printed, drawn or reported comes from these tables. Rows keep the order of `FOLDS` and `PROFILES`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

import bridge
from bridge.failures import analog_only_failures, decile_table, rank_correlations
from experiments.settings import Fold

log = logging.getLogger(__name__)

Denominator = Literal["all", "correct"]

FOLDS: tuple[str, ...] = get_args(Fold)
POOLED = "pooled"  # every scored fold together
PROFILES = tuple(bridge.PROFILES)
FULL_PROFILE = "adc+wnoise+pcm"
PREDICTORS = ("curvature", "gradient_norm", "hessian_trace", "loss")
DENOMINATORS: dict[str, str] = {"all": "all samples", "correct": "digitally correct samples"}

_SAMPLE = ["fold", "index"]
_CHIP = ["profile", "chip"]


def join(scores: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a (profile, chip, sample) with the sample's scores and both outcomes.

    Args:
        scores: one row a sample: fold, index, label, prediction, correct (digital) and any scores.
        predictions: one row a (profile, chip, sample): profile, chip, fold, index, prediction,
            correct (analog).

    Returns:
        The scores with prediction and correct renamed digital_*, the chip's as analog_*, failure
        (bool, analog-only), and sample: an int64 that is unique over folds and grows with
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
    analog = predictions[[*_CHIP, *_SAMPLE, "prediction", "correct"]].rename(
        columns={"prediction": "analog_prediction", "correct": "analog_correct"}
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


def decile_tables(
    joined: pd.DataFrame, score: str = "curvature", bins: int = 10, confidence: float = 0.95
) -> pd.DataFrame:
    """`bridge.failures.decile_table` of each fold, profile and chip.

    Deciles are cut within each fold; those of `POOLED` among all samples. A fold with fewer samples
    than bins is skipped with a warning in the log.

    Args:
        joined: as `join` returns it.
        score: the column to cut by.
        bins: how many bins.
        confidence: of the Wilson intervals.

    Returns:
        fold, profile, chip and the columns of `decile_table`.

    Raises:
        ValueError: for a missing score, NaN scores, or no fold large enough.
    """
    _require("joined", joined, [score])
    tables = []
    for fold, fold_rows in folds(joined):
        if (samples := fold_rows["sample"].nunique()) < bins:
            log.warning("fold %s skipped: %d samples cannot fill %d bins", fold, samples, bins)
            continue
        for (profile, chip), rows in fold_rows.groupby(_CHIP, sort=False):
            table = decile_table(
                rows[score],
                rows["sample"],
                rows["digital_correct"],
                rows["analog_correct"],
                bins,
                confidence,
            )
            table.insert(0, "fold", fold)
            table.insert(1, "profile", profile)
            table.insert(2, "chip", chip)
            tables.append(table)
    if not tables:
        raise ValueError(f"no fold has the {bins} samples that {bins} bins need; score more")
    return pd.concat(tables, ignore_index=True)


def correlations(
    joined: pd.DataFrame,
    predictors: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rho of each predictor with failure, for each fold, profile and chip.

    Resamples are shared by all profiles and chips of a fold, so their intervals are paired.

    Args:
        joined: as `join` returns it.
        predictors: score columns; those of `PREDICTORS` that are there, if None.
        confidence: of the bootstrap percentile intervals.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        fold, predictor, denominator ("all" samples or the digitally "correct" ones), profile, chip
        and the fields of `bridge.failures.RankCorrelation`.

    Raises:
        ValueError: for a missing predictor or NaN scores.
    """
    if predictors is None:
        predictors = [name for name in PREDICTORS if name in joined]
    _require("joined", joined, predictors)
    results = []
    for fold, rows in folds(joined):
        failures = rows.pivot(index="sample", columns=_CHIP, values="failure")
        failures = failures[_present(failures.columns.get_level_values(0), PROFILES)]
        samples = rows.drop_duplicates("sample").set_index("sample").loc[failures.index]
        for predictor in predictors:
            for denominator in DENOMINATORS:
                kept = samples["digital_correct"] | (denominator == "all")
                if not kept.any():
                    continue
                found = rank_correlations(
                    samples.loc[kept, predictor],
                    failures[kept].to_numpy(bool),
                    confidence,
                    resamples,
                    seed,
                )
                for (profile, chip), correlation in zip(failures.columns, found, strict=True):
                    results.append(
                        {
                            "fold": fold,
                            "predictor": predictor,
                            "denominator": denominator,
                            "profile": profile,
                            "chip": chip,
                            **dataclasses.asdict(correlation),
                        }
                    )
    return pd.DataFrame(results)


def over_chips(deciles: pd.DataFrame, denominator: Denominator = "all") -> pd.DataFrame:
    """The mean failure rate over chips of each fold, profile and decile, in percent.

    Args:
        deciles: as `decile_tables` returns it.
        denominator: the bin ("all") or its digitally correct samples ("correct").

    Returns:
        fold, profile, decile, chips, failures (summed over chips), tied (samples in the bin by
        their index only), rate, and low and high: the Wilson interval of one chip, the smallest and
        largest rate of several.
    """
    rate = f"rate_of_{denominator}"
    table = deciles.groupby(["fold", "profile", "decile"], sort=False, as_index=False).agg(
        chips=("chip", "nunique"),
        failures=("failures", "sum"),
        tied=("tied", "max"),
        rate=(rate, "mean"),
        low=(rate, "min"),
        high=(rate, "max"),
        wilson_low=(f"{rate}_low", "min"),
        wilson_high=(f"{rate}_high", "max"),
    )
    one = table["chips"] == 1
    table["low"] = table["wilson_low"].where(one, table["low"])
    table["high"] = table["wilson_high"].where(one, table["high"])
    table[["rate", "low", "high"]] *= 100
    return table.drop(columns=["wilson_low", "wilson_high"])


def table_one(deciles: pd.DataFrame) -> pd.DataFrame:
    """Table I for each fold and profile: first and last decile's failure rate, and accuracies.

    Args:
        deciles: as `decile_tables` returns it.

    Returns:
        fold, profile, chips, samples, failures (mean over chips), and in percent digital_accuracy,
        analog_accuracy, d1_of_all, d10_of_all, d1_of_correct, d10_of_correct: means over chips; all
        but digital_accuracy also with _min and _max over chips. D10 is the last bin, however many.
    """
    last = deciles["decile"].max()
    keys = ["fold", "profile", "chip"]
    chips = deciles.groupby(keys, sort=False)[
        ["samples", "digitally_correct", "analog_correct", "failures"]
    ].sum()
    percent = pd.DataFrame({"analog_accuracy": chips["analog_correct"] / chips["samples"]})
    for denominator in DENOMINATORS:
        for name, decile in (("d1", 1), ("d10", last)):
            rates = deciles[deciles["decile"] == decile].set_index(keys)
            percent[f"{name}_of_{denominator}"] = rates[f"rate_of_{denominator}"]
    percent *= 100
    spread = percent.groupby(["fold", "profile"], sort=False).agg(["mean", "min", "max"])
    spread.columns = [name if of == "mean" else f"{name}_{of}" for name, of in spread.columns]
    groups = chips.groupby(["fold", "profile"], sort=False)
    counts = pd.DataFrame(
        {
            "chips": groups.size(),
            "samples": groups["samples"].first(),
            "failures": groups["failures"].mean(),
            "digital_accuracy": 100
            * groups["digitally_correct"].first()
            / groups["samples"].first(),
        }
    )
    return counts.join(spread).reset_index()


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
    correlations: pd.DataFrame,
    *,
    profile: str = FULL_PROFILE,
    fold: str = "test",
    denominator: Denominator = "all",
    predictor: str = "curvature",
    drift_seconds: float | None = None,
) -> str:
    """One sentence: do failures rise with the score? Whichever way the data says.

    It is called rising (falling) only if the whole interval of Spearman's rho lies above (below) 0.
    Of several chips: mean rates, mean rho, and the smallest interval that contains each chip's.

    Args:
        deciles: as `decile_tables` returns it, cut by `predictor`.
        correlations: as `correlations` returns it.
        profile: the profile to speak of.
        fold: the fold to speak of.
        denominator: all samples or the digitally correct ones.
        predictor: the score to speak of.
        drift_seconds: of the chips, in seconds; named for profiles with PCM.

    Raises:
        ValueError: if the tables have no such rows.
    """
    rates = select(over_chips(deciles, denominator), fold=fold, profile=profile)
    rhos = select(
        correlations, fold=fold, profile=profile, predictor=predictor, denominator=denominator
    )
    first, last = rates.iloc[0], rates.iloc[-1]
    peak = rates.loc[rates["rate"].fillna(-1).idxmax()]
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
    if rhos["rho"].isna().all():
        return facts + f"Spearman's rho is undefined: {rhos['reason'].iloc[0]}."
    low, high = rhos["low"].min(), rhos["high"].max()
    name = predictor.replace("_", " ")
    if low > 0:
        trend = f"failures rise with {name}"
    elif high < 0:
        trend = f"failures fall with {name}"
    else:
        trend = f"no trend with {name} is established"
    if peak["decile"] != last["decile"] and peak["rate"] > last["rate"]:
        trend += f", and the highest rate is that of D{peak['decile']}, {_percent(peak['rate'])}"
    return facts + f"Spearman's rho = {rhos['rho'].mean():.2f} [{low:.2f}, {high:.2f}]: {trend}."


def answers(
    deciles: pd.DataFrame,
    correlations: pd.DataFrame,
    *,
    profile: str = FULL_PROFILE,
    fold: str = "test",
    drift_seconds: float | None = None,
) -> list[str]:
    """`answer` for both denominators: they can differ in sign where the model is often wrong."""
    return [
        answer(
            deciles,
            correlations,
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
    rates: pd.DataFrame, fold: str, denominator: Denominator, drift_seconds: float | None = None
) -> str:
    """What a table of these rates shows: fold, denominator, drift time, chips, ties.

    Args:
        rates: rows of `over_chips`.
        fold: their fold.
        denominator: their denominator.
        drift_seconds: of the chips with PCM.
    """
    fewest, most = int(rates["chips"].min()), int(rates["chips"].max())
    chips = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    parts = [f"{fold} fold", f"% of {DENOMINATORS[denominator]}"]
    if drift_seconds is not None:
        parts.append(f"PCM at {drift_note(drift_seconds)}")
    parts.append(f"{chips} chip a profile" if most == 1 else f"mean of {chips} chips a profile")
    if tied := int(rates.groupby("decile")["tied"].max().sum()):
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
        deciles: as `decile_tables` returns it.
        fold: the fold to print.
        denominator: all samples or the digitally correct ones.
        drift_seconds: of the chips with PCM, for the caption.
        console: where to print; standard output if None.

    Raises:
        ValueError: if the table has no such fold.
    """
    rates = select(over_chips(deciles, denominator), fold=fold)
    names = list(rates["profile"].unique())
    grid = rates.pivot(index="decile", columns="profile", values="rate")[names]
    failures = rates.groupby("profile")["failures"].sum()
    table = Table(
        title="Analog-only failures by curvature decile",
        caption=caption(rates, fold, denominator, drift_seconds),
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
    return f"{rate:.1f} %"


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
