"""The vulnerability atlas: how many chips each image fails on, and the images that fail on most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom

from bridge.analysis.failures import deciles
from bridge.report.figures.images import shorten, show_image
from bridge.report.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    STYLE,
    VERMILLION,
    WINE,
    new_figure,
    write_figure,
)

_FOLDS = {"train": (ORANGE, "--"), "validation": (GREEN, ":"), "test": (BLUE, "-")}
_SETTINGS = (WINE, VERMILLION, GREEN, ORANGE)
_PARTS = {
    "image": ("the image's own", BLUE),
    "chip": ("the chip's own", ORANGE),
    "rest": ("of the pair", "#C8C8C8"),
}
_PALE = "#DDDDDD"


def draw(
    table: pd.DataFrame,
    summary: pd.DataFrame,
    titles: Mapping[str, str],
    path: Path,
    *,
    title: str,
    bins: int = 10,
) -> Path:
    """On how many chips images fail, how that follows curvature, and whose the failures are.

    Above, for each setting, the share of the digitally correct images that fail on each number of
    chips, and in grey what the test fold would show were all images and chips alike: the binomial
    distribution of its failure rate. Below, the failure probability by bins of curvature, where a
    fold has an image for each bin, and the shares of the variance of failure.

    Args:
      table: the atlas: fold, index, correct, chips, curvature and `failures_SETTING`.
      summary: setting, fold, failure_rate, image_share, chip_share and rest_share, a row a setting
        and fold.
      titles: the settings, and what the figure calls them.
      path: the PNG file; SVG, PDF and CSV are put beside it.
      title: the title above all panels.
      bins: bins of equal size into which the images of a fold are sorted by curvature.
    """
    folds = [fold for fold in _FOLDS if (table["fold"] == fold).any()]
    counted = {name: _distributions(table, name, folds) for name in titles}
    by_curvature = {name: _by_curvature(table, name, folds, bins) for name in titles}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.2, height=5.2)
        upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
        axes = upper.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, titles, strict=True):
            _draw_distribution(axis, counted[name])
            axis.set_title(titles[name])
            axis.set_xlabel(f"Chips on which an image fails (of {table['chips'].iloc[0]})")
        axes[0].set_ylabel("Digitally correct images (%)")
        axes[-1].legend()
        left, right = lower.subplots(1, 2)
        _draw_curvature(left, by_curvature, titles, bins)
        _draw_shares(right, summary[summary["fold"].isin(folds)], titles)
        figure.suptitle(title, fontsize=9)
        drawn = [rows.assign(panel="chips", setting=name) for name, rows in counted.items()]
        drawn += [
            rows.assign(panel="curvature", setting=name)
            for name, rows in by_curvature.items()
            if len(rows)
        ]
        columns = ["panel", "setting", "fold", "at", "share", "expected"]
        return write_figure(figure, path, pd.concat(drawn).reindex(columns=columns))


def _distributions(table: pd.DataFrame, name: str, folds: Sequence[str]) -> pd.DataFrame:
    """For each fold the share of the correct images that fail on each number of chips."""
    chips = int(table["chips"].iloc[0])
    found = []
    for fold in folds:
        rows = table[(table["fold"] == fold) & table["correct"]]
        failures = rows[f"failures_{name}"].to_numpy(np.int64)
        counts = np.bincount(failures, minlength=chips + 1)
        whole = max(len(rows), 1)
        found.append(
            pd.DataFrame(
                {
                    "fold": fold,
                    "at": np.arange(chips + 1),
                    "share": counts / whole,
                    "expected": binom.pmf(
                        np.arange(chips + 1), chips, failures.sum() / (chips * whole)
                    ),
                    "samples": len(rows),
                }
            )
        )
    return pd.concat(found, ignore_index=True)


def _draw_distribution(axis: Axes, counted: pd.DataFrame) -> None:
    edges = np.arange(counted["at"].max() + 2) - 0.5
    test = counted[counted["fold"] == "test"]
    if len(test):
        label = "test, were all images\nand chips alike"
        axis.stairs(100 * test["expected"], edges, fill=True, color=_PALE, label=label)
    for fold, rows in counted.groupby("fold", sort=False):
        colour, dashes = _FOLDS[str(fold)]
        axis.stairs(
            100 * rows["share"],
            edges,
            color=colour,
            linestyle=dashes,
            linewidth=1.2,
            label=f"{fold} ({rows['samples'].iloc[0]:,})",
        )
    axis.set_yscale("log")
    axis.set_ylim(50 / max(counted["samples"].max(), 1), 130)
    axis.set_xlim(edges[0], edges[-1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _by_curvature(table: pd.DataFrame, name: str, folds: Sequence[str], bins: int) -> pd.DataFrame:
    """For each fold the failure probability among the correct images of each bin of curvature.

    Folds with fewer images than bins are left out.
    """
    found = []
    for fold in folds:
        rows = table[table["fold"] == fold]
        if len(rows) < bins:
            continue
        bin_of = deciles(rows["curvature"], rows["index"], bins)
        right = rows["correct"].to_numpy()
        failing = rows.loc[right, f"failures_{name}"].astype("float64") / rows["chips"].iloc[0]
        share = failing.groupby(bin_of[right]).mean().reindex(range(1, bins + 1))
        found.append(pd.DataFrame({"fold": fold, "at": share.index, "share": share.to_numpy()}))
    if not found:
        return pd.DataFrame(columns=["fold", "at", "share"])
    return pd.concat(found, ignore_index=True)


def _draw_curvature(
    axis: Axes,
    by_curvature: Mapping[str, pd.DataFrame],
    titles: Mapping[str, str],
    bins: int,
) -> None:
    for number, (name, rows) in enumerate(by_curvature.items()):
        colour = _SETTINGS[number % len(_SETTINGS)]
        folds = list(rows["fold"].unique())
        for fold in folds:  # whose dashes the legend above tells
            line = rows[rows["fold"] == fold]
            label = titles[name] if fold == folds[-1] else None
            share, dashes = 100 * line["share"], _FOLDS[fold][1]
            axis.plot(line["at"], share, dashes, color=colour, marker="o", ms=3, label=label)
    axis.set_xticks(range(1, bins + 1))
    axis.set_xlabel("Curvature bin of the fold (1 lowest)")
    axis.set_ylabel("Failure probability (%)")
    axis.set_ylim(bottom=0)
    if axis.lines:
        axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=6)


def _draw_shares(axis: Axes, summary: pd.DataFrame, titles: Mapping[str, str]) -> None:
    names = []
    for place, row in enumerate(summary.itertuples()):
        names.append(f"{titles[row.setting]}\n{row.fold}")
        start = 0.0
        for part, (words, colour) in _PARTS.items():
            share = 100 * float(np.nan_to_num(getattr(row, f"{part}_share")))
            label = None if place else words
            axis.barh(place, share, left=start, color=colour, height=0.7, label=label)
            if share >= 5:
                text = f"{share:.0f}"
                axis.text(start + share / 2, place, text, ha="center", va="center", fontsize=7)
            start += share
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.invert_yaxis()
    axis.grid(False)
    axis.set_xlim(0, 100)
    axis.set_xlabel("Share of the variance of failure (%)")
    axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=6)


def gallery(
    rows: pd.DataFrame,
    images: npt.NDArray[np.uint8],
    class_names: Sequence[str],
    headings: Mapping[str, str],
    path: Path,
    *,
    columns: int = 8,
) -> Path:
    """The images that fail on most chips, a block a setting.

    Args:
      rows: setting, index, label, failures and chips, a row an image to show.
      images: uint8 [rows, height, width, channels], 1 or 3 channels, in the order of `rows`.
      class_names: by label.
      headings: the settings in order, and what stands above their images.
      path: the PNG file; SVG, PDF and CSV are put beside it.
      columns: images a line.
    """
    places = {name: np.flatnonzero(rows["setting"] == name) for name in headings}
    places = {name: found for name, found in places.items() if len(found)}
    lines = [-(-len(found) // columns) for found in places.values()]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(width=0.95 * columns, height=1.38 * sum(lines) + 0.5 * len(lines))
        blocks = figure.subfigures(len(places), 1, squeeze=False, height_ratios=lines).flat
        for block, (name, found), height in zip(blocks, places.items(), lines, strict=True):
            block.suptitle(headings[name], x=0.005, ha="left", fontsize=8)
            grid = block.subplots(height, columns, squeeze=False).ravel()
            for axis in grid:
                axis.set_axis_off()
            for axis, place in zip(grid, found, strict=False):
                row = rows.iloc[place]
                axis.set_axis_on()
                show_image(axis, images[place], VERMILLION)
                name_of_class = shorten(class_names[row["label"]])
                axis.set_title(name_of_class, fontsize=7, pad=3, parse_math=False)
                shown = f"index {row['index']}\n{row['failures']} of {row['chips']} chips"
                axis.set_xlabel(shown, fontsize=6, labelpad=2)
        names = [class_names[label] for label in rows["label"]]
        return write_figure(figure, path, rows.assign(class_name=names))
