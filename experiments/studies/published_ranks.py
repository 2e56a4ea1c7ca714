"""How scores rank images beside published figures of them: the table, its figure, its sentences.

Intervals are for other images of the one training that the scores are of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.analysis.spearman import Spearman, spearman, spearman_difference, spearman_interval
from bridge.report.figures.style import BLUE, GREY, STYLE, VERMILLION, new_figure, write_figure
from bridge.report.tables.formats import with_interval, words
from bridge.report.tables.outcomes import folds
from experiments.studies.published import Reference

AVERAGED = {name: f"{name}_averaged" for name in ("curvature", "gradient_norm", "loss")}
"""The scores that are averaged over epochs, with the columns of their averages."""

SAMPLE = ("fold", "index", "label")
"""The columns that are no scores."""


def tabulate(
    scores: pd.DataFrame,
    references: Sequence[Reference],
    epochs: int = 0,
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Spearman's rho of every score with every reference, in each fold and in all together.

    Args:
      scores: one row an image: fold, index, label, scores of one checkpoint and, where there are,
        the averages `AVERAGED`.
      references: what they are compared with; each but the first is compared with the first too.
      epochs: how many epochs the averages are of.
      confidence: confidence level of the intervals, for other images of this one training.

    Returns:
      fold, reference, score, samples, epochs (1 for one checkpoint, 0 for another reference), rho
      with _low and _high and, for averages, difference (rho of the average less that of one
      checkpoint, with its sign) with _low and _high; NaN elsewhere.

    Raises:
      ValueError: what `Reference.at` refuses, or a score with NaN.
    """
    names = [name for name in scores if name not in SAMPLE]
    rows = []
    for fold, images in folds(scores):
        published = {
            one.name: one.at(images["index"].to_numpy(), images["label"].to_numpy())
            for one in references
        }
        for number, reference in enumerate(references):
            values = published[reference.name]
            found: dict[str, Spearman] = {
                str(name): spearman(images[name], values) for name in names
            }
            others = {one.name: published[one.name] for one in references[:number]}
            found |= {name: spearman(other, values) for name, other in others.items()}
            for name, rho in found.items():
                average = name in AVERAGED.values()
                row: dict[str, Any] = {
                    "fold": fold,
                    "reference": reference.name,
                    "score": name,
                    "samples": len(images),
                    "epochs": 0 if name in others else epochs if average else 1,
                    "rho": rho.rho,
                }
                row["rho_low"], row["rho_high"] = spearman_interval(rho, confidence)
                differences = (np.nan,) * 3
                if average:
                    (one,) = (found[key] for key, column in AVERAGED.items() if column == name)
                    differences = spearman_difference(rho, one, confidence)
                for suffix, value in zip(("", "_low", "_high"), differences, strict=True):
                    row[f"difference{suffix}"] = value
                rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, references: Sequence[Reference], path: Path, data: str) -> Path:
    """The size of rho with its interval, a panel a reference and a row a score; train fold, or
    what there is first.

    Args:
      table: as `tabulate` returns it.
      references: those that it has.
      path: the PNG file; the SVG and the CSV of the whole table are put beside it.
      data: the data set's title.
    """
    fold = table["fold"].iloc[0]
    rows = table[table["fold"] == fold]
    sizes = rows["rho"].abs().groupby(rows["score"]).mean()
    order = sizes.sort_values(ascending=False, kind="stable").index
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=2.2 + 2.6 * len(references), height=1.25 + 0.22 * len(order))
        panels = figure.subplots(1, len(references), sharex=True, sharey=True, squeeze=False)[0]
        for axis, reference in zip(panels, references, strict=True):
            of_one = rows[rows["reference"] == reference.name].set_index("score")
            _draw_panel(axis, of_one.reindex(order), reference)
        panels[0].set_yticks(range(len(order)), [_name(score, references) for score in order])
        panels[0].set_ylim(len(order) - 0.4, -0.6)
        epochs = int(rows["epochs"].max())
        title = f"{data}, {rows['samples'].iloc[0]:,} images of the {fold} fold"
        figure.suptitle(title + f"; averages over {epochs} epochs" * (epochs > 1), fontsize=9)
        return write_figure(figure, path, table)


def _draw_panel(axis: Axes, rows: pd.DataFrame, reference: Reference) -> None:
    places = np.arange(len(rows))
    ends = rows[["rho_low", "rho_high"]]
    nearest = ends.abs().min(axis=1).where(np.sign(ends).prod(axis=1) > 0, 0)
    farthest = ends.abs().max(axis=1)
    averaged = rows.index.isin(AVERAGED.values())
    published = (rows["epochs"] == 0).to_numpy()
    for which, colour, marker in (
        (~averaged & ~published, BLUE, "o"),
        (averaged, VERMILLION, "D"),
        (published, GREY, "s"),
    ):
        axis.hlines(places[which], nearest[which], farthest[which], color=colour, zorder=2)
        for fill, signed in ((colour, rows["rho"] >= 0), ("white", rows["rho"] < 0)):
            shown = which & signed.to_numpy()
            axis.plot(
                rows["rho"].abs()[shown],
                places[shown],
                marker,
                color=colour,
                markerfacecolor=fill,
                markersize=5,
                zorder=3,
            )
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.set_xlabel("|Spearman's rho| (hollow: rho < 0)")
    axis.set_title(reference.title)


def show(table: pd.DataFrame, references: Sequence[Reference]) -> None:
    """Prints rho of every score with each reference, for the first fold."""
    fold = table["fold"].iloc[0]
    rows = table[table["fold"] == fold]
    printed = Table(
        title=f"Spearman's rho on {rows['samples'].iloc[0]:,} images of the {fold} fold",
        caption="with intervals for other images of this one training; other folds: validate.csv",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    printed.add_column("", no_wrap=True)
    for reference in references:
        printed.add_column(reference.title, justify="right", no_wrap=True)
    for score, group in rows.groupby("score", sort=False):
        by_reference = group.set_index("reference")
        cells = (
            _rho(by_reference.loc[one.name]) if one.name in by_reference.index else ""
            for one in references
        )
        printed.add_row(_name(str(score), references), *cells)
    Console(highlight=False).print(printed)


def verdicts(table: pd.DataFrame, references: Sequence[Reference]) -> Iterator[str]:
    """For each average a sentence: whether it is nearer to a reference than one checkpoint."""
    fold = table["fold"].iloc[0]
    titles = {one.name: one.title for one in references}
    for row in table[(table["fold"] == fold) & table["difference"].notna()].to_dict("records"):
        single = row["rho"] - row["difference"]
        nearer = np.sign(single) * np.array([row["difference_low"], row["difference_high"]])
        word = "no difference shown"
        if nearer.min() > 0 or nearer.max() < 0:
            word = "nearer" if nearer.min() > 0 else "farther"
        score = next(name for name, column in AVERAGED.items() if column == row["score"])
        difference = with_interval(
            row["difference"], row["difference_low"], row["difference_high"], "+.3f"
        )
        yield (
            f"{words(score).capitalize()} averaged over {row['epochs']} epochs, and the "
            f"{titles[row['reference']]}: rho {row['rho']:.3f}, of one checkpoint {single:.3f}; "
            f"difference {difference}, {word}."
        )


def _rho(row: pd.Series) -> str:
    return with_interval(row["rho"], row["rho_low"], row["rho_high"], ".3f")


def _name(score: str, references: Sequence[Reference]) -> str:
    """A score in words, or a reference's title."""
    titles = {one.name: one.title for one in references}
    average = {column: f"{words(name)}, averaged" for name, column in AVERAGED.items()}
    return titles.get(score) or average.get(score) or words(score)
