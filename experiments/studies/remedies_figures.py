"""Accuracy against energy of every remedy, and how the frontier moves with the cost of a chip."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from bridge.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILLION,
    WINE,
    new_figure,
    write_figure,
)
from bridge.report.tables.formats import counted
from bridge.routing.costs import Costs
from experiments.studies.drift import duration
from experiments.studies.remedies_plan import TUNED

_FAMILIES = {
    "no remedy": (BLACK, "X"),
    "calibrated on the chip": (GREEN, "o"),
    "sensitive layers digital": (WINE, "D"),
    TUNED: (GREY, "h"),
    "several chips or reads": (ORANGE, "s"),
    "more ADC bits": (PURPLE, "P"),
    "digital by the chip's margin": (BLUE, "."),
    "digital by known curvature": (SKY, "v"),
    "digital by a student": (VERMILLION, "^"),
}
_ROUTERS = {
    "margin": "digital by the chip's margin",
    "curvature": "digital by known curvature",
    "student": "digital by a student",
}
_LINES = ("-", "--", ":", "-.")
_COSTS = (VERMILLION, BLACK, BLUE, GREEN)
_ENERGIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def family(row: pd.Series) -> str:
    """Which mark a row of the table of remedies gets."""
    second = str(row["second"])
    if not second:
        if row["first"] in ("chip", "digital"):
            return "no remedy" if row["first"] == "chip" else "digital"
        if str(row["first"]).startswith(TUNED):
            return TUNED
        partly = str(row["first"]).endswith("digital")
        return "sensitive layers digital" if partly else "calibrated on the chip"
    if second == "digital":
        return _ROUTERS[str(row["score"])]
    return "more ADC bits" if second.endswith("bits") else "several chips or reads"


def draw(
    table: pd.DataFrame,
    best: pd.DataFrame,
    digital_accuracy: float,
    costs: Costs,
    path: Path,
    *,
    title: str,
) -> Path:
    """A column a time: above, every remedy and the frontier; below, frontiers by analog cost.

    Args:
      table: as `remedies_table` returns it, with time_s.
      best: as `frontiers` returns it.
      digital_accuracy: of the test images, a fraction.
      costs: the run's energies.
      path: the PNG file; SVG, PDF and CSV are put beside it.
      title: its beginning.
    """
    times = sorted(table["time_s"].unique())
    ratio = costs.analog / costs.digital
    marks = table.apply(family, axis=1)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=max(3.0, 2.6 * len(times)), height=5.6)
        axes = figure.subplots(2, len(times), sharex=True, squeeze=False)
        for (above, below), time in zip(axes.T, times, strict=True):
            rows = table[table["time_s"] == time]
            for name, (colour, marker) in _FAMILIES.items():
                some = rows[marks[rows.index] == name]
                above.plot(
                    some["energy"] / costs.digital,
                    100 * some["accuracy"],
                    linestyle="",
                    color=colour,
                    marker=marker,
                    markeredgewidth=0,
                    alpha=0.85,
                    label=name if len(some) else None,
                )
            found = best[best["time_s"] == time]
            _frontier(above, found[found["analog_cost"] == ratio], GREY, "-", "the frontier")
            for number, (cost, some) in enumerate(found.groupby("analog_cost")):
                dashes, colour = _LINES[number % 4], _COSTS[number % 4]
                _frontier(below, some, colour, dashes, f"analog pass {cost:g}")
            for axis in (above, below):
                axis.plot(1.0, 100 * digital_accuracy, "*", color=BLACK, ms=8, label="digital")
                axis.axhline(100 * digital_accuracy, color=BLACK, linestyle=":", linewidth=0.8)
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(FixedLocator(_ENERGIES))
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_locator(NullLocator())
                axis.xaxis.set_minor_formatter(NullFormatter())
                axis.tick_params(axis="x", labelsize=7)
            above.set_title(f"{duration(time)} after programming")
            below.set_xlabel("Energy (digital pass = 1)")
        for axis, what in zip(axes[:, 0], ("every remedy", "frontiers"), strict=True):
            axis.set_ylabel(f"Accuracy (%): {what}")
        samples, chips = table["samples"].iloc[0], table["chips"].iloc[0]
        chips_and_images = f"{counted(chips, 'chip')}, {counted(samples, 'test image')}"
        figure.suptitle(f"{title}: mean of {chips_and_images}", fontsize=9)
        handles: dict[str, Artist] = {}
        for axis in axes.ravel():
            handles |= {
                label: one for one, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
        return write_figure(figure, path, table)


def _frontier(axis: Axes, rows: pd.DataFrame, colour: str, dashes: str, label: str) -> None:
    """The best rows by their energy on test images; chosen on others, they may rise and fall."""
    if rows.empty:
        return
    rows = rows.sort_values("energy", kind="stable")
    axis.plot(
        rows["energy"],
        100 * rows["accuracy"],
        dashes,
        color=colour,
        marker="o",
        markersize=2,
        linewidth=1.0,
        label=label,
        zorder=1,
    )
