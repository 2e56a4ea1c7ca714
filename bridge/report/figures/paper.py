"""The paper's figures: failure rate by decile (Fig. 1) and the gallery (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.images import shorten, show_image
from bridge.report.figures.scores import COLOURS, NAMES, one_chip, outcome_of
from bridge.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    LITERAL,
    VERMILLION,
    new_figure,
    write_figure,
)
from bridge.report.figures.widths import DOUBLE, SINGLE
from bridge.report.folds import POOLED
from bridge.report.tables.failure_rates import rates
from bridge.report.tables.formats import words
from bridge.report.tables.outcomes import DENOMINATORS, Denominator, select

_FOLDS = {
    "train": (VERMILLION, "--", "orange, dashed"),
    "validation": (GREEN, "-.", "green, dash-dotted"),
    "test": (BLUE, "-", "blue"),
    POOLED: (GREY, ":", "grey, dotted"),
}
"""Colour, dashes and what a caption calls them, by fold."""

_PANEL = 1.15  # inches high

_PREDICTED = ("prediction", "correct")


def figure_one(
    deciles: pd.DataFrame,
    path: Path,
    *,
    denominator: Denominator = "all",
    folds: Sequence[str] = ("train", "test", POOLED),
    profiles: Sequence[str] = (),
    width: float = DOUBLE,
) -> Path:
    """Failure rate against curvature decile: a panel a profile, a line a fold, one scale.

    The bands are the intervals, Wilson's for one chip, for other chips and samples for several;
    that of the pooled folds, which lies between, is left out where others are drawn.

    Args:
        deciles: as `failure_rates.failure_tables` returns it.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        denominator: all samples or the digitally correct ones.
        folds: the folds to draw; those that the table lacks are left out.
        profiles: the profiles to draw, in this order; without any, all of the table.
        width: inches; two panels side by side in one column of a paper, four in two.

    Raises:
        ValueError: if the table has none of these folds, or lacks one of these profiles.
    """
    table = rates(deciles, denominator)
    shown = [fold for fold in folds if (table["fold"] == fold).any()]
    if not shown:
        raise ValueError(f"no fold of {', '.join(folds)} in the decile table")
    names = list(profiles or table["profile"].unique())
    for name in names:
        select(table, profile=name)
    table = table[table["fold"].isin(shown) & table["profile"].isin(names)]
    across = min(len(names), 4 if width > SINGLE else 2)
    down = -(-len(names) // across)
    bins = int(table["decile"].max())
    with matplotlib.rc_context(LITERAL):
        figure = new_figure(width=width, height=_PANEL * down + (1.0 if down == 1 else 0.75))
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(names) :]:
            axis.set_axis_off()
        for number, (axis, profile) in enumerate(zip(axes.flat, names, strict=False)):
            for fold in shown:
                line = table[(table["profile"] == profile) & (table["fold"] == fold)]
                colour, dashes, _ = _FOLDS[fold]
                axis.plot(line["decile"], line["rate"], dashes, color=colour, label=fold, zorder=3)
                if fold != POOLED or len(shown) == 1:
                    axis.fill_between(
                        line["decile"], line["low"], line["high"], color=colour, alpha=0.2, lw=0
                    )
            axis.set_title(profile.replace(" at ", "\nat "), fontsize=8, pad=3)
            axis.set_xticks([1, bins], ["D1", f"D{bins}"])
            axis.set_xticks(range(2, bins), minor=True)
            axis.tick_params(labelbottom=number + across >= len(names))
            axis.grid(False, axis="x")
        axes[0, 0].set_xlim(0.7, bins + 0.3)
        axes[0, 0].set_ylim(bottom=0)
        figure.supxlabel("Curvature decile (D1 lowest)", fontsize=8)
        of = "all samples" if denominator == "all" else "digitally correct"
        figure.supylabel(f"Analog-only failures\n(% of {of})", fontsize=8)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if width > SINGLE:
            counts = deciles.groupby(["fold", "profile"])["samples"].sum()
            labels = [f"{fold} ({counts[fold].iloc[0]:,} samples)" for fold in labels]
        figure.legend(handles, labels, loc="outside upper center", ncols=len(shown))
        return write_figure(figure, path, table, _caption(denominator, shown))


def _caption(denominator: Denominator, folds: Sequence[str]) -> str:
    """What Fig. 1 shows, with the colours that there are."""
    lines = ", ".join(f"{fold} ({_FOLDS[fold][2]})" for fold in folds)
    but = ", of which pooled has none" if POOLED in folds and len(folds) > 1 else ""
    of = DENOMINATORS[denominator]
    why = "; a digitally wrong sample cannot fail analog-only" if denominator == "correct" else ""
    return (
        f"Analog-only failure rate of {of} by curvature decile, a panel a profile, all on one "
        f"scale{why}. Lines: {lines}; the bands are intervals{but}."
    )


def gallery_rows(
    joined: pd.DataFrame,
    fold: str = "test",
    count: int = 8,
    *,
    profile: str = FULL_PROFILE,
    chip: int | None = None,
    score: str = "curvature",
) -> pd.DataFrame:
    """The `count` lowest- and the `count` highest-scored samples of a fold, lowest first.

    Args:
        joined: as `outcomes.join` returns it, or `outcomes.digital_outcomes`.
        fold: one fold, not the pooled ones.
        count: how many of each end.
        profile: the profile whose outcomes are shown.
        chip: its seed; the lowest that was run, if None.
        score: the column to sort by; equal scores by index.

    Returns:
        Rows of `joined` with the column end, "lowest" or "highest".

    Raises:
        ValueError: if fold, profile and chip have fewer than 2 * count samples.
    """
    rows = joined[joined["fold"] == fold]
    if "profile" in rows:
        rows = one_chip(rows, profile, chip)
    if count < 1 or len(rows) < 2 * count:
        raise ValueError(f"cannot show {count} of each end of the {len(rows)} {fold} samples")
    rows = rows.sort_values([score, "index"])
    ends = [rows.head(count).assign(end="lowest"), rows.tail(count).assign(end="highest")]
    return pd.concat(ends, ignore_index=True)


def gallery(
    rows: pd.DataFrame,
    images: npt.NDArray[np.uint8],
    class_names: Sequence[str],
    path: Path,
    *,
    score: str = "curvature",
    width: float = DOUBLE,
) -> Path:
    """The images of lowest and highest score, each with class, score and both outcomes; the digital
    one alone where there are no chips.

    Args:
        rows: as `gallery_rows` returns it.
        images: uint8 [rows, height, width, channels], 1 or 3 channels, in the order of `rows`.
        class_names: by label.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        score: the column to print.
        width: inches; eight images a line in two columns of a paper, four in one.

    Raises:
        ValueError: if images and rows do not match.
    """
    if images.ndim != 4 or len(images) != len(rows) or images.dtype != np.uint8:
        raise ValueError(
            f"need {len(rows)} uint8 images [rows, height, width, channels]; "
            f"got {images.dtype} {images.shape}"
        )
    ends = [rows.index[rows["end"] == end] for end in ("lowest", "highest")]
    most = 8 if width > SINGLE else 4
    columns = min(most, max(len(end) for end in ends))
    lines = [-(-len(end) // columns) for end in ends]
    chips = "failure" in rows
    with matplotlib.rc_context({**LITERAL, "axes.grid": False}):
        figure = new_figure(width=width * columns / most, height=1.42 * sum(lines) + 0.6)
        seen: dict[str, str] = {}
        blocks = figure.subfigures(2, 1, squeeze=False, height_ratios=lines).flat
        for block, name, end, height in zip(
            blocks, ("Lowest", "Highest"), ends, lines, strict=True
        ):
            title = f"{name} {words(score)}, {rows['fold'].iloc[0]} fold"
            block.suptitle(title, x=0.005, ha="left", fontsize=9, fontweight="bold")
            grid = block.subplots(height, columns, squeeze=False)
            for axis in grid.flat[len(end) :]:
                axis.set_axis_off()
            for axis, position in zip(grid.flat, end, strict=False):
                row = rows.loc[position]
                outcome = outcome_of(row["digital_correct"], row["failure"] if chips else None)
                seen[outcome] = f"{NAMES[outcome]} {outcome}"
                show_image(axis, images[rows.index.get_loc(position)], COLOURS[outcome])
                name_of_class = shorten(class_names[row["label"]])
                axis.set_title(name_of_class, fontsize=7, pad=3, parse_math=False)
                digital = "ok" if row["digital_correct"] else "failed"
                analog = f"\nanalog {'ok' if row['analog_correct'] else 'failed'}" if chips else ""
                axis.set_xlabel(
                    f"{row[score]:.2g}\ndigital {digital}{analog}",
                    fontsize=6,
                    color=COLOURS[outcome],
                    labelpad=2,
                )
        if chips:
            first = rows.iloc[0]
            figure.supxlabel(f"analog: {first['profile']}, chip {first['chip']}", fontsize=7)
        keep = ["end", "fold", "index", *(["path"] if "path" in rows else [])]
        keep += ["label", score, *(["profile", "chip"] if chips else [])]
        sides = ("digital", "analog") if chips else ("digital",)
        keep += [f"{side}_{what}" for side in sides for what in _PREDICTED]
        names = [class_names[label] for label in rows["label"]]
        caption = (
            f"The images of lowest and of highest {words(score)}. Frames: "
            f"{', '.join(sorted(seen.values()))}."
        )
        return write_figure(figure, path, rows[keep].assign(class_name=names), caption)
