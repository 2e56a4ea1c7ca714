"""The training curve."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd

from bridge.report.figures.style import BLUE, ORANGE, STYLE, new_figure, write_figure
from bridge.report.figures.widths import DOUBLE, SINGLE


def training_curve(history: pd.DataFrame, path: Path, *, width: float = DOUBLE) -> Path:
    """Loss and accuracy of training and validation by epoch; the best epoch is marked.

    Args:
        history: one row an epoch: epoch, train_loss, train_accuracy, validation_loss,
            validation_accuracy; accuracies are fractions.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        width: inches; in one column of a paper the two panels stand one above the other.
    """
    accuracy = history["validation_accuracy"]
    best = history[accuracy == accuracy.max()].iloc[-1]  # of equals orbax keeps the last
    with matplotlib.rc_context(STYLE):
        wide = width > SINGLE
        figure = new_figure(width=width, height=2.4 if wide else 4.2)
        panels = (("loss", 1, "Cross-entropy"), ("accuracy", 100, "Accuracy (%)"))
        for axis, (name, scale, label) in zip(
            figure.subplots(*((1, 2) if wide else (2, 1))), panels, strict=True
        ):
            for split, colour, dashes in (("train", ORANGE, "--"), ("validation", BLUE, "-")):
                axis.plot(
                    history["epoch"],
                    scale * history[f"{split}_{name}"],
                    dashes,
                    color=colour,
                    label=split,
                )
            axis.plot(best["epoch"], scale * best[f"validation_{name}"], "o", color=BLUE)
            axis.set_xlabel("Epoch")
            axis.set_ylabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(
            f"best: {100 * best['validation_accuracy']:.2f} % at epoch {best['epoch']:.0f}"
        )
        figure.axes[0].legend()
        return write_figure(figure, path, history)
