"""Colours of the outcomes of a sample, and how scores are distributed among them."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.style import BLUE, GREY, STYLE, VERMILLION, new_figure, write_figure
from bridge.report.figures.widths import DOUBLE, SINGLE
from bridge.report.tables.formats import words
from bridge.report.tables.outcomes import folds

_SURVIVES, _FAILS, _WRONG = "survives", "fails", "digitally wrong"
_RIGHT = "digitally correct"  # where no chip was run

COLOURS = {_WRONG: GREY, _RIGHT: BLUE, _SURVIVES: BLUE, _FAILS: VERMILLION}
NAMES = {_WRONG: "grey", _RIGHT: "blue", _SURVIVES: "blue", _FAILS: "orange"}
"""Colour of each outcome, and what a caption calls it."""

_DASHES = {_WRONG: ":", _RIGHT: "-", _SURVIVES: "-", _FAILS: "--"}


def score_histogram(
    joined: pd.DataFrame,
    path: Path,
    *,
    fold: str = "test",
    profile: str = FULL_PROFILE,
    chip: int | None = None,
    score: str = "curvature",
    bins: int = 30,
    width: float = DOUBLE,
) -> Path:
    """The distribution of a score on a log axis: samples that survive, fail, are digitally wrong;
    without chips, that are digitally correct or wrong.

    Each group is drawn as a share of itself, so that few failures still show. Zeros have no place
    on a log axis: they count in the shares, and the legend says how many there are.

    Args:
        joined: as `outcomes.join` returns it, or `outcomes.digital_outcomes`.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        fold: a fold, or pooled.
        profile: the profile whose failures split the samples.
        chip: its seed; the lowest that was run, if None.
        score: a non-negative column.
        bins: number of bins, of equal width in log(score).
        width: inches.

    Raises:
        ValueError: for unknown folds, negative or NaN scores, and if all are zero.
    """
    by_fold = dict(folds(joined))
    if fold not in by_fold:
        raise ValueError(f"no fold {fold!r} here; there is {', '.join(by_fold)}")
    rows = by_fold[fold]
    chips = "failure" in rows
    if chips:
        rows = one_chip(rows, profile, chip)
    values = rows[score].to_numpy(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise ValueError(f"{score} must be finite, non-negative and not all zero for a log axis")
    positive = values[values > 0]
    edges = np.geomspace(positive.min(), positive.max(), bins + 1)
    edges[[0, -1]] = positive.min(), positive.max()
    failed = rows["failure"] if chips else [None] * len(rows)
    outcome = np.array(
        [outcome_of(*pair) for pair in zip(rows["digital_correct"], failed, strict=True)]
    )
    table = pd.DataFrame({"low": [0.0, *edges[:-1]], "high": [0.0, *edges[1:]]})
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=width, height=2.6)
        axis = figure.subplots()
        drawn: list[str] = []
        for name in (_WRONG, _SURVIVES, _FAILS) if chips else (_WRONG, _RIGHT):
            group, colour = values[outcome == name], COLOURS[name]
            drawn = [*drawn, name] if len(group) else drawn
            zeros = int((group == 0).sum())
            counts = np.histogram(group[group > 0], edges)[0]
            table[name.replace(" ", "_")] = [zeros, *counts]
            if not len(group):
                continue
            label = f"{name} ({len(group):,}" + (f"; {zeros:,} at 0 not drawn)" if zeros else ")")
            share = 100 * counts / len(group)
            axis.stairs(share, edges, fill=True, color=colour, alpha=0.18)
            dashes = _DASHES[name]
            axis.stairs(share, edges, color=colour, linewidth=1.2, linestyle=dashes, label=label)
        axis.set_xscale("log")
        axis.set_xlabel(words(score).capitalize())
        axis.set_ylabel("Share of the group (%)")
        title = f"{fold} fold under {profile}" if chips else f"{fold} fold"
        axis.set_title(title, parse_math=False)
        figure.legend(loc="outside upper center", ncols=3 if width > SINGLE else 1)
        caption = f"Distribution of {words(score)}, each group as a share of itself: "
        caption += f"{', '.join(f'{name} {NAMES[name]}' for name in drawn)}."
        return write_figure(figure, path, table, caption)


def one_chip(rows: pd.DataFrame, profile: str, chip: int | None) -> pd.DataFrame:
    """The rows of one chip of a profile: the chip of this seed, or the lowest that was run."""
    rows = rows[rows["profile"] == profile]
    rows = rows[rows["chip"] == (rows["chip"].min() if chip is None else chip)]
    if rows.empty:
        raise ValueError(f"no predictions of {profile}" + (f", chip {chip}" if chip else ""))
    return rows


def outcome_of(digital_correct: bool, failure: bool | None) -> str:
    """The outcome of a sample, a key of `COLOURS`; failure is None where no chip was run."""
    if not digital_correct:
        return _WRONG
    if failure is None:
        return _RIGHT
    return _FAILS if failure else _SURVIVES
