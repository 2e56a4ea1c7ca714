"""Overlap of failing samples between kinds of noise, as heat maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.style import LITERAL, new_figure, write_figure
from bridge.report.figures.widths import SINGLE


def draw(overlap: pd.DataFrame, path: Path, title: str, *, width: float | None = None) -> Path:
    """Heat maps of the overlap, of the overlap by the margin alone, and of the rank correlation.

    Args:
      overlap: as `bridge.analysis.overlap.failure_overlap` returns it.
      path: the PNG file to write; SVG, PDF and CSV are put beside it.
      title: the title above the three.
      width: inches, and the three one above the other where they do not fit side by side; None
        for as many as they take.
    """
    names = list(overlap["first"].unique())
    largest = np.nanmax([0.01, *overlap["jaccard"], *overlap["jaccard_margin"]])
    with matplotlib.rc_context({**LITERAL, "axes.grid": False}):
        count = max(4, len(names))  # below it the titles do not fit
        beyond = max(0, max(map(len, names)) - len(FULL_PROFILE))  # of a name of the user's own
        needed = 2.4 + 1.4 * count + 0.16 * beyond
        stacked = width is not None and width < 0.75 * needed
        labels = 0.1 * beyond + (1.9 if stacked else 1.5)
        height = labels + (3 * (0.5 + 0.24 * count) if stacked else 0.36 * count)
        figure = new_figure(width=width or needed, height=height)
        rows, columns = (3, 1) if stacked else (1, 3)
        left, middle, right = figure.subplots(rows, columns, sharex=True, sharey=True)
        narrow = stacked and width == SINGLE
        size = 6.0 if narrow else 7.0
        _heat_map(left, overlap, "jaccard", names, largest, size)
        shared = _heat_map(middle, overlap, "jaccard_margin", names, largest, size)
        ranks = _heat_map(right, overlap, "spearman", names, 1.0, size)
        looks: dict[str, Any] = {"loc": "right", "fontsize": 8} if narrow else {}
        left.set_title("failing samples in common", **looks)
        between = " " if stacked else "\n"
        middle.set_title(f"the same, if the margin{between}alone decided", **looks)
        right.set_title(f"rank agreement of{between}shares of chips failed", **looks)
        figure.colorbar(shared, ax=[left, middle], label="Jaccard index")
        figure.colorbar(ranks, ax=right, label="Spearman's rho (0 where below)")
        figure.suptitle(title, fontsize=9)
        return write_figure(figure, path, overlap)


def _heat_map(
    axis: Axes, overlap: pd.DataFrame, value: str, names: list[str], largest: float, size: float
) -> AxesImage:
    upper = overlap.pivot(index="first", columns="second", values=value)
    upper = upper.reindex(index=names, columns=names).to_numpy(float)
    matrix = np.where(np.isnan(upper), upper.T, upper)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#E4E4E4")
    image = axis.imshow(matrix, cmap=colours, vmin=0, vmax=largest, aspect="auto")
    for (row, column), one in np.ndenumerate(matrix):
        axis.text(
            column,
            row,
            "-" if np.isnan(one) else f"{one:.2f}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if one <= 0.6 * largest else "black",
        )
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    return image
