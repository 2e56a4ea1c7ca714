"""The answer in sentences, and the deciles in the terminal."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables.compensation import Beside
from bridge.report.tables.failure_rates import rates
from bridge.report.tables.formats import time, with_interval, words
from bridge.report.tables.outcomes import DENOMINATORS, Denominator, select
from bridge.report.tables.verdict import decide

_ACROSS = 8
"""Profiles that fit a terminal of 80 columns, broken at each plus and underscore."""


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
    """One sentence that says whether failures rise with a score, fall with it, or neither.

    They are said to rise (fall) only if the whole interval of Spearman's rho lies above (below) 0.
    For several chips, rates are means over chips, and rho is that of the score with the share of
    the chips on which a sample fails.

    Args:
        deciles: as `failure_tables` returns it, cut by `predictor`.
        predictors: as `bridge.report.tables.predictors.compare` returns it.
        profile: the profile to speak of.
        fold: the fold to speak of.
        denominator: all samples or the digitally correct ones.
        predictor: the score to speak of.
        drift_seconds: seconds from programming to reading; named for profiles with PCM.

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
    name = words(predictor)
    if low > 0:
        trend = f"failures rise with {name}"
    elif high < 0:
        trend = f"failures fall with {name}"
    else:
        trend = f"no trend with {name} is established"
    if peak["decile"] != last["decile"] and peak["rate"] > last["rate"]:
        trend += f", and the highest rate is that of D{peak['decile']}, {_percent(peak['rate'])}"
    rho = with_interval(rank["spearman"], low, high)
    return facts + f"Spearman's rho = {rho}: {trend}."


def accuracy(table_one: pd.DataFrame, fold: str = "test", profile: str = FULL_PROFILE) -> str:
    """How often the digital model and the chips are right, in a sentence.

    Args:
        table_one: as `failure_rates.table_one` returns it.
        fold: the fold that is spoken of.
        profile: the profile of the chips.
    """
    row = select(table_one, fold=fold, profile=profile).iloc[0]
    return (
        f"The digital model is right on {row['digital_accuracy']:.1f} % of the {fold} fold, the "
        f"chips under {profile} on {row['analog_accuracy']:.1f} %."
    )


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


def beside(
    table_one: pd.DataFrame,
    predictors: pd.DataFrame,
    *,
    other: Beside | None,
    fold: str = "test",
    last: int = 10,
) -> str:
    """One line on the profile of `compensation.shown_beside`: accuracy, ends, and the verdict.

    Args:
        table_one: as `failure_rates.table_one` returns it.
        predictors: as `bridge.report.tables.predictors.compare` returns it.
        other: the profile to speak of; None for none.
        fold: the fold to speak of.
        last: the last decile.

    Raises:
        ValueError: if the tables have no such rows.
    """
    if other is None:
        return ""
    row = select(table_one, fold=fold, profile=other.profile).iloc[0]
    drift = "drift compensated" if other.compensated else "drift not compensated"
    which = f"the paper's, {drift}" if other.profile == FULL_PROFILE else drift
    rates = " and ".join(
        f"{row[f'd1_of_{name}']:.1f}, {row[f'd10_of_{name}']:.1f} % of {DENOMINATORS[name]}"
        for name in get_args(Denominator)
    )
    there = decide(predictors, fold=fold, profile=other.profile)
    aurocs = ", ".join(
        f"{words(one.name)} {with_interval(one.value, one.low, one.high)}" for one in there.aurocs
    )
    said = f"AUROC of {aurocs}." if aurocs else there.facts
    right = f"{row['analog_accuracy']:.1f} %"
    return (
        f"Under {other.profile} ({which}) the chips are right on {right}, and D1, D{last} fail: "
        f"{rates}. The answer there: {there.word[0].lower()}{there.word[1:]}. {said}"
    )


def drift_note(seconds: float) -> str:
    """`t = 20 s`, with thousands separated."""
    return f"t = {time(seconds)}"


def caption(
    shown: pd.DataFrame, fold: str, denominator: Denominator, drift_seconds: float | None = None
) -> str:
    """What a table of these rates shows: fold, denominator, drift time, chips, ties.

    Args:
        shown: rows of `rates`.
        fold: their fold.
        denominator: their denominator.
        drift_seconds: seconds from programming to reading of the chips with PCM.
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
        drift_seconds: seconds from programming to reading of the chips with PCM, for the caption.
        console: where to print; standard output if None.

    Raises:
        ValueError: if the table has no such fold.
    """
    shown = select(rates(deciles, denominator), fold=fold)
    names = list(shown["profile"].unique())
    grid = shown.pivot(index="decile", columns="profile", values="rate")[names]
    failures = shown.groupby("profile")["failures"].sum()
    for first in range(0, len(names), _ACROSS):
        some = names[first : first + _ACROSS]
        last = first + _ACROSS >= len(names)
        table = Table(
            title=None if first else "Analog-only failures by curvature decile",
            caption=caption(shown, fold, denominator, drift_seconds) if last else None,
            show_footer=True,
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("", "failures", no_wrap=True)
        for profile in some:
            broken = profile.replace("+", "\n+").replace("_", "\n_")
            table.add_column(broken, f"{failures[profile]:,}", justify="right", no_wrap=True)
        for decile, row in grid[some].iterrows():
            table.add_row(f"D{decile}", *(f"{rate:.2f}" if rate == rate else "-" for rate in row))
        (console or Console()).print(table)


def _percent(rate: float) -> str:
    return "an undefined share" if np.isnan(rate) else f"{rate:.1f} %"
