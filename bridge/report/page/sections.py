"""The sections of a report: what is shown, in which order, and what heads it.

What stands under the heading of a section is `templates/sections/ID.html.jinja`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bridge.report.page.contents import ReportContents
from bridge.report.page.pictures import Picture
from bridge.report.tables.failing_classes import concentration
from bridge.report.tables.failure_rates import rates
from bridge.report.tables.formats import small_percent, with_interval, words
from bridge.report.tables.on_chip import analog_share
from bridge.report.tables.predictors import FLIP_PROBABILITY, MODELS, OTHERS

FAILS, PREDICTS, TO_DO, DETAILS = "What fails", "What predicts it", "What to do", "Details"
"""The parts of a page, in their order; of a run without chips `SCORED` and `DETAILS` alone."""

SCORED = "Where curvature is high"

_NONE_FAILS = "No sample fails on a chip"

_ORDER = (FAILS, SCORED, PREDICTS, TO_DO, DETAILS)


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    """What the table of contents calls it."""
    part: str
    """The part that it stands in."""
    heading: str
    """What heads it: its answer, where it has one, else its title."""


def sections(contents: ReportContents, pictures: Sequence[Picture]) -> dict[str, Section]:
    """The sections that have something to show by their id, in the order of the page."""
    given, answers = contents.tables, _answers(contents)
    chips = given.deciles is not None
    shown = {picture.section for picture in pictures}
    of_run = contents.of_run and chips
    rows = (
        ("scores", "Curvature", SCORED, given.score_deciles is not None),
        ("highest", "Samples of highest curvature", SCORED, given.highest is not None),
        ("classes", "Classes", FAILS if chips else SCORED, given.per_class is not None),
        ("drift", "As the chips age", FAILS, of_run),
        ("vulnerable", "Most vulnerable samples", FAILS, given.vulnerable is not None),
        ("predictors", "Which score predicts failure", PREDICTS, given.predictors is not None),
        ("deciles", "Failure rate by curvature decile", PREDICTS, chips),
        ("table-one", "Table I", PREDICTS, given.table_one is not None),
        (
            "calibration",
            "Whether probabilities come true",
            PREDICTS,
            given.calibration_errors is not None,
        ),
        ("remedies", "What to do about failures", TO_DO, of_run or "remedies" in shown),
        (
            "routing",
            "Routing fragile samples to the digital model",
            TO_DO,
            given.routing is not None,
        ),
        (
            "overlap",
            "Whether the same samples fail",
            DETAILS,
            given.overlap is not None or given.systematic is not None,
        ),
        ("gallery", "Gallery", DETAILS, "gallery" in shown),
        ("on-chip", "What is on the chip", DETAILS, given.coverage is not None),
        (
            "accuracy",
            "Accuracy and failure rate of every fold",
            DETAILS,
            given.table_one is not None or contents.ideal_agreement is not None,
        ),
        ("folds", "Accuracy and curvature of every fold", DETAILS, given.accuracy is not None),
        ("figures", "More figures", DETAILS, True),
        ("words", "Words", DETAILS, True),
        ("reproduce", "How to reproduce", DETAILS, bool(contents.reproduce)),
        ("settings", "Settings", DETAILS, contents.of_run or bool(contents.settings)),
        ("environment", "Environment", DETAILS, contents.of_run or bool(contents.stages)),
    )
    found = {
        name: Section(title, part, answers.get(name, title))
        for name, title, part, there in sorted(rows, key=lambda row: _ORDER.index(row[2]))
        if there
    }
    if shown - {"verdict"} <= found.keys():
        del found["figures"]
    return found


def _answers(contents: ReportContents) -> dict[str, str]:
    """The headings that say what the section finds, by its id."""
    given, found = contents.tables, {}
    if given.deciles is not None:
        found["deciles"] = _ends(given.deciles, contents)
        if given.per_class is not None and (held := concentration(given.per_class).sentence):
            found["classes"] = f"{held[0].upper()}{held[1:]}"
        if given.vulnerable is not None and not given.vulnerable["failed_share"].gt(0).any():
            found["vulnerable"] = _NONE_FAILS
    if given.predictors is not None and (best := _best(given.predictors, contents)):
        found["predictors"] = best
    if given.calibration_errors is not None and (
        come_true := _come_true(given.calibration_errors, contents)
    ):
        found["calibration"] = come_true
    if given.systematic is not None:
        rows = given.systematic[given.systematic["profile"] == contents.profile]
        rows = rows[rows["systematic"].notna()]
        if len(rows):
            share = 100 * rows["systematic"].iloc[0]
            by_chance = 100 * rows["systematic_expected"].iloc[0]
            found["overlap"] = (
                f"{share:.0f} % of the failures are of samples that fail on most chips "
                f"(by chance {by_chance:.0f} %)"
            )
    if given.coverage is not None:
        share = small_percent(analog_share(given.coverage))
        found["on-chip"] = f"Tiles compute {share} % of the multiply-accumulates"
    if contents.drift:
        found["drift"] = contents.drift
    return found


def _ends(deciles: pd.DataFrame, contents: ReportContents) -> str:
    table = rates(deciles, "correct")
    here = (table["fold"] == contents.fold) & (table["profile"] == contents.profile)
    table = table[here]
    if table.empty or table["rate"].isna().any():
        return "Failure rate by curvature decile"
    first, last = (
        f"{row['rate']:.1f} % of D{row['decile']}" for row in (table.iloc[0], table.iloc[-1])
    )
    return f"{first} and {last} fail, of those that the digital model gets right"


def _best(predictors: pd.DataFrame, contents: ReportContents) -> str:
    """The highest AUROC of the scores that take no failure on a chip, as fitted models and other
    chips do; "" where none has one."""
    here = predictors["fold"].eq(contents.fold) & predictors["profile"].eq(contents.profile)
    rows = predictors[here & predictors["denominator"].eq("correct")]
    rows = rows[rows["auroc"].notna() & ~rows["predictor"].isin([*OTHERS.values(), *MODELS])]
    if rows.empty:
        return ""
    best = rows.loc[rows["auroc"].idxmax()]
    auroc = with_interval(best["auroc"], best["auroc_low"], best["auroc_high"], ".3f")
    of = f"of {len(rows)} scores" if len(rows) > 1 else "of a score"
    return f"Highest AUROC seen {of} without a chip: {auroc}, {words(str(best['predictor']))}"


def _come_true(errors: pd.DataFrame, contents: ReportContents) -> str:
    """What the flip probability expects and what happens; "" where it is not measured."""
    here = errors["fold"].eq(contents.fold) & errors["profile"].eq(contents.profile)
    rows = errors[here & errors["predictor"].eq(FLIP_PROBABILITY)]
    if rows.empty:
        return ""
    row = rows.iloc[0]
    observed = f"{100 * row['observed']:.1f} %"
    if "observed_low" in row:  # tables of earlier versions have none
        observed += f" [{100 * row['observed_low']:.1f}, {100 * row['observed_high']:.1f}]"
    return f"The flip probability expects {100 * row['predicted']:.1f} % to fail; {observed} do"
