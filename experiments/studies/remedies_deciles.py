"""Whom a remedy helps: the failures of each first answer by decile of curvature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.analysis.failures import failure_table
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
from experiments.studies.drift import duration
from experiments.studies.remedies_chips import Kind, Predictions
from experiments.studies.remedies_plan import TUNED, Plan, first_answer

BINS = 10
_COLOURS = (BLACK, ORANGE, GREEN, GREY, BLUE, VERMILLION, WINE, SKY, PURPLE)
"""A fine-tuned network's chips have those of the run's network, dashed."""


def deciles_table(
    plan: Plan,
    made: Mapping[Kind, Predictions],
    digital: Predictions,
    curvature: NDArray[np.float64],
    indices: NDArray[np.int64],
    *,
    confidence: float,
) -> pd.DataFrame:
    """The table of `bridge.failure_table` of every first answer of a plan, at one time.

    Args:
      plan: what was tried.
      made: predictions of each kind of chip.
      digital: those of the digital model, as of one chip.
      curvature: [samples], of the test images.
      indices: [samples], their stable indices.
      confidence: confidence level of the intervals.

    Returns:
      first, the answer's name, before the columns of `bridge.failure_table`.
    """
    (right,) = digital.right()["test"]
    tables = [
        failure_table(
            curvature,
            right,
            first_answer(plan, name, made, digital).right["test"],
            BINS,
            indices=indices,
            confidence=confidence,
        ).assign(first=name)
        for name in plan.firsts
    ]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "first", table.pop("first"))
    return table


def draw(table: pd.DataFrame, path: Path, *, title: str) -> Path:
    """A column a time, a line a first answer: failures of all images by decile, in percent.

    Args:
      table: as `deciles_table` returns it, with time_s.
      path: the PNG file; SVG, PDF and CSV are put beside it.
      title: its beginning.
    """
    times = sorted(table["time_s"].unique())
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=max(3.6, 2.6 * len(times)), height=3.8)
        axes = figure.subplots(1, len(times), squeeze=False)[0]
        for axis, time in zip(axes, times, strict=True):
            rows = table[table["time_s"] == time]
            colours: dict[str, str] = {}
            for name, of_answer in rows.groupby("first", sort=False):
                own = str(name).removeprefix(f"{TUNED}, ")
                axis.plot(
                    of_answer["decile"],
                    100 * of_answer["rate_of_all"],
                    "-" if own == name else "--",
                    color=colours.setdefault(own, _COLOURS[len(colours) % len(_COLOURS)]),
                    linewidth=1.2,
                    label=str(name) if axis is axes[0] else None,
                )
            axis.set_ylim(bottom=0)
            axis.set_xticks(range(1, BINS + 1))
            axis.set_xlabel("Decile of curvature")
            axis.set_title(f"{duration(time)} after programming")
        axes[0].set_ylabel("Failures (% of all images)")
        count = rows.loc[rows["first"] == rows["first"].iloc[0], "samples"].sum()
        chips_and_images = (
            f"{counted(table['chips'].iloc[0], 'chip')}, {counted(count, 'test image')}"
        )
        figure.suptitle(f"{title}: mean of {chips_and_images}", fontsize=9)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7)
        return write_figure(figure, path, table)
