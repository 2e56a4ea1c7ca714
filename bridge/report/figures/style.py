"""The look of every figure, and how one is written: PNG, SVG, PDF and the CSV behind them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bridge.report.figure_files import CAPTION
from jaxcurv.storage.files import write_bytes

# Okabe and Ito's colours for the colour-blind, their yellow replaced by a wine that shows on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, WINE = "#0072B2", "#D55E00", "#CC79A7", "#882255"
GREY = "#777777"

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "jaxcurv",
    "svg.fonttype": "none",  # text stays text, to edit and to search
    "pdf.fonttype": 42,  # TrueType, which journals ask for, instead of Type 3
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
}

LITERAL: dict[Any, Any] = {**STYLE, "text.parse_math": False}
"""The same, for names that users choose; not for logarithmic axes, whose ticks are mathematics."""


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches: nothing of pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path, table: pd.DataFrame, caption: str = "") -> Path:
    """Writes a figure as PNG, and beside it SVG, PDF and the table behind it as CSV.

    Args:
        figure: the figure.
        path: the PNG file; the others have its name.
        table: what is drawn.
        caption: what the figure shows, kept in the PNG; `figure_files.caption_of` reads it.

    Raises:
        ValueError: if the path does not end in .png.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path.name} must end in .png; the others are put beside it")
    # Neither date nor program version: the same data give the same bytes.
    described = {CAPTION: caption} if caption else {}
    for form, metadata in (
        ("png", {"Software": None, **described}),
        ("svg", {"Date": None, "Creator": None}),
        ("pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=200, metadata=metadata)
        write_bytes(path.with_suffix(f".{form}"), buffer.getvalue())
    text = table.to_csv(index=False, lineterminator="\n")
    write_bytes(path.with_suffix(".csv"), text.encode())
    return path
