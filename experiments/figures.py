"""The figures: each a PNG, an SVG and the CSV behind them, side by side, the same bytes each time.

`path` is always that of the PNG; the others take its stem.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.analysis import (
    DENOMINATORS,
    FULL_PROFILE,
    POOLED,
    Denominator,
    folds,
    rates,
)
from experiments.artefacts import write_bytes

# Okabe and Ito's colours for the colour-blind, their yellow replaced by a wine that shows on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, WINE = "#0072B2", "#D55E00", "#CC79A7", "#882255"
GREY = "#777777"
_LINES = {
    "ideal": (BLACK, "o", ":"),
    "adc": (ORANGE, "s", "--"),
    "wnoise": (SKY, "^", "--"),
    "pcm": (GREEN, "v", "--"),
    "adc+wnoise": (BLUE, "D", "-"),
    "adc+pcm": (PURPLE, "P", "-"),
    "wnoise+pcm": (VERMILLION, "X", "-"),
    "adc+wnoise+pcm": (WINE, "*", "-"),
}
_SURVIVES, _FAILS, _WRONG = "survives", "fails", "digitally wrong"
_OUTCOMES = {_WRONG: GREY, _SURVIVES: BLUE, _FAILS: VERMILLION}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "jaxcurv",
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


def figure_one(
    deciles: pd.DataFrame,
    path: Path,
    *,
    denominator: Denominator = "all",
    panels: Sequence[str] = ("train", "test", POOLED),
) -> Path:
    """Failure rate against curvature decile: a line a profile, a panel a fold.

    The band is the interval: Wilson's for one chip, over chips and samples for several.

    Args:
        deciles: as `analysis.failure_tables` returns it.
        path: of the PNG.
        denominator: all samples or the digitally correct ones.
        panels: the folds to draw; those that the table lacks are left out.

    Raises:
        ValueError: if the table has none of these folds.
    """
    table = rates(deciles, denominator)
    shown = [fold for fold in panels if (table["fold"] == fold).any()]
    if not shown:
        raise ValueError(f"no fold of {', '.join(panels)} in the decile table")
    table = table[table["fold"].isin(shown)]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=max(3.6, 2.5 * len(shown)), height=3.3)
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, fold in zip(axes, shown, strict=True):
            in_fold = table[table["fold"] == fold]
            for profile, line in in_fold.groupby("profile", sort=False):
                colour, marker, dashes = _LINES[str(profile)]
                axis.plot(
                    line["decile"],
                    line["rate"],
                    dashes,
                    color=colour,
                    marker=marker,
                    markersize=6 if marker == "*" else 4,
                    markeredgewidth=0,
                    label=str(profile),
                    clip_on=False,
                    zorder=3,
                )
                axis.fill_between(
                    line["decile"], line["low"], line["high"], color=colour, alpha=0.12, lw=0
                )
            bins = in_fold["decile"].max()
            axis.set_xticks(range(1, bins + 1), [f"D{d}" for d in range(1, bins + 1)], fontsize=7)
            axis.set_xlim(0.7, bins + 0.3)
            axis.set_xlabel("Curvature decile (D1 lowest)")
            axis.grid(False, axis="x")
            samples = deciles[deciles["fold"] == fold].groupby("profile")["samples"]
            axis.set_title(f"{fold} ({samples.sum().iloc[0]:,} samples)")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel(f"Analog-only failure rate\n(% of {DENOMINATORS[denominator]})")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(shown) > 1 else 2)
        return write_figure(figure, path, table)


def gallery_rows(
    joined: pd.DataFrame,
    fold: str = "test",
    count: int = 8,
    *,
    profile: str = FULL_PROFILE,
    chip: int | None = None,
    score: str = "curvature",
) -> pd.DataFrame:
    """The `count` lowest- and the `count` highest-scored samples of a fold, lowest first.

    Args:
        joined: as `analysis.join` returns it.
        fold: one fold, not the pooled ones.
        count: how many of each end.
        profile: whose outcome to show.
        chip: its seed; the lowest that was run, if None.
        score: the column to sort by; equal scores by index.

    Returns:
        Rows of `joined` with the column end, "lowest" or "highest".

    Raises:
        ValueError: if fold, profile and chip have fewer than 2 * count samples.
    """
    rows = _one_chip(joined[joined["fold"] == fold], profile, chip)
    if count < 1 or len(rows) < 2 * count:
        raise ValueError(f"cannot show {count} of each end of the {len(rows)} {fold} samples")
    rows = rows.sort_values([score, "index"])
    ends = [rows.head(count).assign(end="lowest"), rows.tail(count).assign(end="highest")]
    return pd.concat(ends, ignore_index=True)


def gallery(
    rows: pd.DataFrame,
    images: npt.NDArray[np.uint8],
    class_names: Sequence[str],
    path: Path,
    *,
    score: str = "curvature",
    columns: int = 8,
) -> Path:
    """The images of lowest and highest score, each with class, score and both outcomes.

    Args:
        rows: as `gallery_rows` returns it.
        images: uint8 [rows, height, width, channels], 1 or 3 channels, in the order of `rows`.
        class_names: by label.
        path: of the PNG.
        score: the column to print.
        columns: images a line.

    Raises:
        ValueError: if images and rows do not match.
    """
    if images.ndim != 4 or len(images) != len(rows) or images.dtype != np.uint8:
        raise ValueError(
            f"need {len(rows)} uint8 images [rows, height, width, channels]; "
            f"got {images.dtype} {images.shape}"
        )
    ends = [rows.index[rows["end"] == end] for end in ("lowest", "highest")]
    columns = min(columns, max(len(end) for end in ends))
    lines = [-(-len(end) // columns) for end in ends]
    profile = rows["profile"].iloc[0]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(width=0.95 * columns, height=1.48 * sum(lines) + 0.6)
        blocks = figure.subfigures(2, 1, squeeze=False, height_ratios=lines).flat
        for block, name, end, height in zip(
            blocks, ("Lowest", "Highest"), ends, lines, strict=True
        ):
            title = f"{name} {score.replace('_', ' ')}, {rows['fold'].iloc[0]} fold"
            block.suptitle(title, x=0.005, ha="left", fontsize=9, fontweight="bold")
            grid = block.subplots(height, columns, squeeze=False)
            for axis in grid.flat[len(end) :]:
                axis.set_axis_off()
            for axis, position in zip(grid.flat, end, strict=False):
                row = rows.loc[position]
                outcome = _outcome(row["digital_correct"], row["failure"])
                _show(axis, images[rows.index.get_loc(position)], _OUTCOMES[outcome])
                name_of_class = _shorten(class_names[row["label"]])
                axis.set_title(name_of_class, fontsize=7, pad=3, parse_math=False)
                digital = "ok" if row["digital_correct"] else "failed"
                analog = "ok" if row["analog_correct"] else "failed"
                axis.set_xlabel(
                    f"{row[score]:.2g}\ndigital {digital}\nanalog {analog}",
                    fontsize=6,
                    color=_OUTCOMES[outcome],
                    labelpad=2,
                )
        figure.supxlabel(f"analog: {profile}, chip {rows['chip'].iloc[0]}", fontsize=7)
        keep = ["end", "fold", "index", "label", score, "profile", "chip"]
        keep += [f"{side}_{what}" for side in ("digital", "analog") for what in _PREDICTED]
        names = [class_names[label] for label in rows["label"]]
        return write_figure(figure, path, rows[keep].assign(class_name=names))


_PREDICTED = ("prediction", "correct")


def training_curve(history: pd.DataFrame, path: Path) -> Path:
    """Loss and accuracy of training and validation by epoch; the best epoch is marked.

    Args:
        history: one row an epoch: epoch, train_loss, train_accuracy, validation_loss,
            validation_accuracy; accuracies are fractions.
        path: of the PNG.
    """
    accuracy = history["validation_accuracy"]
    best = history[accuracy == accuracy.max()].iloc[-1]  # of equals orbax keeps the last
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=6.4, height=2.7)
        panels = (("loss", 1, "Cross-entropy"), ("accuracy", 100, "Accuracy (%)"))
        for axis, (name, scale, label) in zip(figure.subplots(1, 2), panels, strict=True):
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


def score_histogram(
    joined: pd.DataFrame,
    path: Path,
    *,
    fold: str = "test",
    profile: str = FULL_PROFILE,
    chip: int | None = None,
    score: str = "curvature",
    bins: int = 30,
) -> Path:
    """The distribution of a score on a log axis: samples that survive, fail, are digitally wrong.

    Each group is drawn as a share of itself, so that few failures still show. Zeros have no place
    on a log axis: they count in the shares, and the legend says how many there are.

    Args:
        joined: as `analysis.join` returns it.
        path: of the PNG.
        fold: a fold, or pooled.
        profile: whose outcome splits the samples.
        chip: its seed; the lowest that was run, if None.
        score: a non-negative column.
        bins: of equal width in log(score).

    Raises:
        ValueError: for unknown folds, negative or NaN scores, and if all are zero.
    """
    by_fold = dict(folds(joined))
    if fold not in by_fold:
        raise ValueError(f"no fold {fold!r} here; there is {', '.join(by_fold)}")
    rows = _one_chip(by_fold[fold], profile, chip)
    values = rows[score].to_numpy(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise ValueError(f"{score} must be finite, non-negative and not all zero for a log axis")
    positive = values[values > 0]
    edges = np.geomspace(positive.min(), positive.max(), bins + 1)
    edges[[0, -1]] = positive.min(), positive.max()
    outcome = np.array(
        [_outcome(*pair) for pair in zip(rows["digital_correct"], rows["failure"], strict=True)]
    )
    table = pd.DataFrame({"low": [0.0, *edges[:-1]], "high": [0.0, *edges[1:]]})
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=5.2, height=2.9)
        axis = figure.subplots()
        for name, colour in _OUTCOMES.items():
            group = values[outcome == name]
            zeros = int((group == 0).sum())
            counts = np.histogram(group[group > 0], edges)[0]
            table[name.replace(" ", "_")] = [zeros, *counts]
            if not len(group):
                continue
            label = f"{name} ({len(group):,}" + (f"; {zeros:,} at 0 not drawn)" if zeros else ")")
            share = 100 * counts / len(group)
            axis.stairs(share, edges, fill=True, color=colour, alpha=0.18)
            axis.stairs(share, edges, color=colour, linewidth=1.2, label=label)
        axis.set_xscale("log")
        axis.set_xlabel(score.replace("_", " ").capitalize())
        axis.set_ylabel("Share of the group (%)")
        axis.set_title(f"{fold} fold under {profile}")
        axis.legend()
        return write_figure(figure, path, table)


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches: nothing of pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path, table: pd.DataFrame) -> Path:
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path.name} must end in .png; the SVG and the CSV are put beside it")
    # Neither date nor program version: the same data give the same bytes.
    for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=200, metadata=metadata)
        write_bytes(path.with_suffix(f".{form}"), buffer.getvalue())
    text = table.to_csv(index=False, lineterminator="\n")
    write_bytes(path.with_suffix(".csv"), text.encode())
    return path


def _one_chip(rows: pd.DataFrame, profile: str, chip: int | None) -> pd.DataFrame:
    rows = rows[rows["profile"] == profile]
    rows = rows[rows["chip"] == (rows["chip"].min() if chip is None else chip)]
    if rows.empty:
        raise ValueError(f"no predictions of {profile}" + (f", chip {chip}" if chip else ""))
    return rows


def _outcome(digital_correct: bool, failure: bool) -> str:
    if not digital_correct:
        return _WRONG
    return _FAILS if failure else _SURVIVES


def _show(axis: Axes, image: npt.NDArray[np.uint8], colour: str) -> None:
    one_channel = image.shape[-1] == 1
    axis.imshow(
        image[..., 0] if one_channel else image,
        cmap="gray" if one_channel else None,
        interpolation="nearest",
        vmin=0,
        vmax=255,
    )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.6)


def _shorten(name: str, limit: int = 15) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
