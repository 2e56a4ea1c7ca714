"""The paper's figures: failure rate by decile (Fig. 1) and the gallery (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.chips.profiles import (
    COARSE_ADC,
    COMPENSATED,
    FULL_COMPENSATED,
    FULL_PROFILE,
    NOISE_OF_OPERATIONS,
)
from bridge.report.figures.images import shorten, show_image
from bridge.report.figures.scores import COLOURS, one_chip, outcome_of
from bridge.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILLION,
    WINE,
    new_figure,
    write_figure,
)
from bridge.report.folds import POOLED
from bridge.report.tables.failure_rates import rates
from bridge.report.tables.formats import words
from bridge.report.tables.outcomes import DENOMINATORS, Denominator

_LINES = {
    "ideal": (BLACK, "o", ":"),
    "adc": (ORANGE, "s", "--"),
    "wnoise": (SKY, "^", "--"),
    "pcm": (GREEN, "v", "--"),
    "adc+wnoise": (BLUE, "D", "-"),
    "adc+pcm": (PURPLE, "P", "-"),
    "wnoise+pcm": (VERMILLION, "X", "-"),
    FULL_PROFILE: (WINE, "*", "-"),
    COARSE_ADC: (ORANGE, "s", "-."),
    NOISE_OF_OPERATIONS: (SKY, "^", "-."),
    COMPENSATED: (GREEN, "v", "-."),
    FULL_COMPENSATED: (WINE, "*", "-."),
}
_HOLLOW = (COARSE_ADC, NOISE_OF_OPERATIONS, COMPENSATED, FULL_COMPENSATED)
_BANDED = {FULL_PROFILE, FULL_COMPENSATED}
_FEW = 4  # lines whose bands can all be told apart
_LONG = max(map(len, _LINES))
_OF_OTHER_NAMES = [line for name, line in _LINES.items() if name != "ideal"]

_PREDICTED = ("prediction", "correct")


def figure_one(
    deciles: pd.DataFrame,
    path: Path,
    *,
    denominator: Denominator = "all",
    panels: Sequence[str] = ("train", "test", POOLED),
) -> Path:
    """Failure rate against curvature decile: a line a profile, a panel a fold.

    Of more than four profiles only the full ones have bands, their intervals.

    The band is the interval: Wilson's for one chip, for other chips and samples for several.

    Args:
        deciles: as `failure_rates.failure_tables` returns it.
        path: the PNG file to write; the SVG and the CSV are put beside it.
        denominator: all samples or the digitally correct ones.
        panels: the folds to draw; those that the table lacks are left out.

    Raises:
        ValueError: if the table has none of these folds.
    """
    table = rates(deciles, denominator)
    shown = [fold for fold in panels if (table["fold"] == fold).any()]
    if not shown:
        raise ValueError(f"no fold of {', '.join(panels)} in the decile table")
    table = table[table["fold"].isin(shown)]
    columns = 4 if len(shown) > 1 else 2
    names = table["profile"].unique()
    banded = set(names)
    if len(names) > _FEW and banded & _BANDED:
        banded = _BANDED
    height = 3.3
    if max(map(len, names)) > _LONG:  # a name of the user's own, or with its time
        columns = len(shown)
    height += 0.16 * max(0, -(-len(names) // columns) - 2)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=max(3.6, 2.5 * len(shown)), height=height)
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, fold in zip(axes, shown, strict=True):
            in_fold = table[table["fold"] == fold]
            for number, (profile, line) in enumerate(in_fold.groupby("profile", sort=False)):
                another = _OF_OTHER_NAMES[number % len(_OF_OTHER_NAMES)]
                colour, marker, dashes = _LINES.get(str(profile), another)
                axis.plot(
                    line["decile"],
                    line["rate"],
                    dashes,
                    color=colour,
                    marker=marker,
                    markersize=6 if marker == "*" else 4,
                    markeredgewidth=0.8 if profile in _HOLLOW else 0,
                    markerfacecolor="white" if profile in _HOLLOW else colour,
                    label=str(profile),
                    clip_on=False,
                    zorder=3,
                )
                if profile in banded:
                    axis.fill_between(
                        line["decile"], line["low"], line["high"], color=colour, alpha=0.12, lw=0
                    )
            bins = in_fold["decile"].max()
            axis.set_xticks(range(1, bins + 1), [f"D{d}" for d in range(1, bins + 1)], fontsize=7)
            axis.set_xlim(0.7, bins + 0.3)
            axis.set_xlabel("Curvature decile (D1 lowest)")
            axis.grid(False, axis="x")
            samples = deciles[deciles["fold"] == fold].groupby("profile")["samples"]
            axis.set_title(f"{fold} ({samples.sum().iloc[0]:,} samples)")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel(f"Analog-only failure rate\n(% of {DENOMINATORS[denominator]})")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        return write_figure(figure, path, table)


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
    columns: int = 8,
) -> Path:
    """The images of lowest and highest score, each with class, score and both outcomes; the digital
    one alone where there are no chips.

    Args:
        rows: as `gallery_rows` returns it.
        images: uint8 [rows, height, width, channels], 1 or 3 channels, in the order of `rows`.
        class_names: by label.
        path: the PNG file to write; the SVG and the CSV are put beside it.
        score: the column to print.
        columns: images a line.

    Raises:
        ValueError: if images and rows do not match.
    """
    if images.ndim != 4 or len(images) != len(rows) or images.dtype != np.uint8:
        raise ValueError(
            f"need {len(rows)} uint8 images [rows, height, width, channels]; "
            f"got {images.dtype} {images.shape}"
        )
    ends = [rows.index[rows["end"] == end] for end in ("lowest", "highest")]
    columns = min(columns, max(len(end) for end in ends))
    lines = [-(-len(end) // columns) for end in ends]
    chips = "failure" in rows
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(width=0.95 * columns, height=1.48 * sum(lines) + 0.6)
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
        return write_figure(figure, path, rows[keep].assign(class_name=names))
