"""Overlap of failing samples between kinds of noise, as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.style import STYLE, new_figure, write_figure


def draw(overlap: pd.DataFrame, path: Path, title: str, *, profiles: Sequence[str] = ()) -> Path:
    """Heat maps of the overlap, of the overlap by the margin alone, and of the rank correlation.

    Args:
      overlap: as `bridge.analysis.overlap.failure_overlap` returns it.
      path: the PNG file to write; SVG, PDF and CSV are put beside it.
      title: the title above the three.
      profiles: the profiles to draw, as far as samples fail under them; without any, all.
    """
    if profiles:
        overlap = overlap[overlap["first"].isin(profiles) & overlap["second"].isin(profiles)]
    names = list(overlap["first"].unique())
    largest = np.nanmax([0.01, *overlap["jaccard"], *overlap["jaccard_margin"]])
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        count = max(4, len(names))  # below it the titles do not fit
        beyond = max(0, max(map(len, names)) - len(FULL_PROFILE))  # of a name of the user's own
        figure = new_figure(
            width=2.4 + 1.4 * count + 0.16 * beyond, height=1.5 + 0.36 * count + 0.1 * beyond
        )
        left, middle, right = figure.subplots(1, 3, sharey=True)
        _heat_map(left, overlap, "jaccard", names, largest)
        shared = _heat_map(middle, overlap, "jaccard_margin", names, largest)
        ranks = _heat_map(right, overlap, "spearman", names, 1.0)
        left.set_title("failing samples in common")
        middle.set_title("the same, if the margin\nalone decided")
        right.set_title("rank agreement of\nshares of chips failed")
        figure.colorbar(shared, ax=[left, middle], label="Jaccard index")
        figure.colorbar(ranks, ax=right, label="Spearman's rho (0 where below)")
        figure.suptitle(title, fontsize=9)
        return write_figure(figure, path, overlap)


def _heat_map(
    axis: Axes, overlap: pd.DataFrame, value: str, names: list[str], largest: float
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
            fontsize=7,
            color="white" if one <= 0.6 * largest else "black",
        )
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    return image
