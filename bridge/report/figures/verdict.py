"""The report's first figure: how often samples fail, by curvature."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
import pandas as pd

from bridge.report.figures.style import BLUE, LITERAL, VERMILLION, new_figure, write_figure
from bridge.report.figures.widths import DOUBLE
from bridge.report.tables.compensation import Beside
from bridge.report.tables.failure_rates import rates
from bridge.report.tables.outcomes import select

_LOOKS = ((BLUE, "-", "blue"), (VERMILLION, "--", "orange, dashed"))


def verdict_figure(
    deciles: pd.DataFrame,
    path: Path,
    *,
    fold: str,
    profile: str,
    beside: Beside | None = None,
    width: float = DOUBLE,
) -> Path:
    """Failure rate of the digitally correct samples against curvature decile, with its interval.

    Args:
        deciles: as `failure_rates.failure_tables` returns it.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        fold: the fold to draw.
        profile: the profile that the report is about.
        beside: a profile to draw beside it, with drift compensated or not; None for none.
        width: inches.

    Raises:
        ValueError: if the table has no such rows.
    """
    names = [profile, beside.profile] if beside else [profile]
    table = select(rates(deciles, "correct"), fold=fold)
    table = pd.concat([select(table, profile=name) for name in names])
    bins = int(table["decile"].max())
    with matplotlib.rc_context(LITERAL):
        labels = [textwrap.fill(name, int(11 * width / len(names))) for name in names]
        more = max(label.count("\n") for label in labels)
        figure = new_figure(width=width, height=2.3 + 0.14 * more)
        axis = figure.subplots()
        for name, label, (colour, dashes, _) in zip(names, labels, _LOOKS, strict=False):
            line = table[table["profile"] == name]
            axis.plot(line["decile"], line["rate"], dashes, color=colour, label=label, zorder=3)
            axis.fill_between(
                line["decile"], line["low"], line["high"], color=colour, alpha=0.2, lw=0
            )
        axis.set_xticks(range(1, bins + 1), [f"D{decile}" for decile in range(1, bins + 1)])
        axis.set_xlim(0.8, bins + 0.2)
        axis.set_ylim(bottom=0)
        axis.grid(False, axis="x")
        axis.set_xlabel(f"Curvature decile of the {fold} fold (D1 lowest)")
        axis.set_ylabel("Analog-only failures\n(% of digitally correct)")
        figure.legend(loc="outside upper center", ncols=len(names))
        lines = ", ".join(
            f"{name} ({look})" for name, (_, _, look) in zip(names, _LOOKS, strict=False)
        )
        caption = (
            f"How often digitally correct samples fail on the chip, from the tenth of lowest to "
            f"that of highest curvature: {lines}; the bands are intervals."
        )
        if bins != 10:
            caption = caption.replace("tenth", "bin")
        return write_figure(figure, path, table, caption)
