"""Failure rates of the fine-tuned networks, and their differences from noise-aware training."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bridge.report.figures.style import BLACK, BLUE, GREY, STYLE, new_figure, write_figure
from experiments.studies.finetune_tables import ALL, VULNERABLE
from experiments.studies.finetune_variants import NOISE_AWARE, WORDS


def draw(table: pd.DataFrame, path: Path, title: str) -> Path:
    """A point with its interval for each variant: failures, and their difference, of all and D10.

    Args:
      table: as `summarise` returns it.
      path: the PNG file; the SVG and the CSV, which holds all of the table, are put beside it.
      title: the title above all panels.
    """
    shown = table[table["measure"] == "failure_rate"]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.2, height=4.6)
        axes = figure.subplots(2, 2, sharey=True)
        for column, images in enumerate((ALL, VULNERABLE)):
            rows = shown[shown["images"] == images]
            what = "all test images" if images == ALL else "D10 of curvature"
            count = int(rows["digitally_correct"].iloc[0])
            _draw_points(axes[0, column], rows, "value", BLUE)
            axes[0, column].set_title(f"{what} ({count:,} digitally correct)")
            axes[0, column].set_xlabel("Failures (% of those)")
            _draw_points(axes[1, column], rows, f"difference_to_{NOISE_AWARE}", BLACK)
            axes[1, column].axvline(0, color=GREY, linewidth=0.8)
            axes[1, column].set_xlabel("Less noise-aware, all alike (percentage points)")
        axes[0, 0].invert_yaxis()
        figure.suptitle(title, fontsize=9)
        return write_figure(figure, path, table)


def _draw_points(axis: Axes, rows: pd.DataFrame, name: str, colour: str) -> None:
    places = np.arange(len(rows))
    value, low, high = (100 * rows[name + end].to_numpy() for end in ("", "_low", "_high"))
    bars = np.nan_to_num(np.stack([value - low, high - value]))
    axis.errorbar(value, places, xerr=bars, fmt="o", color=colour, elinewidth=1.2, capsize=2)
    axis.set_yticks(places, [WORDS[one] for one in rows["variant"]], fontsize=7)
