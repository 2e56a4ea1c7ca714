"""Figures of the failure analysis: predictors side by side, calibration, routing.

Each a PNG, an SVG, a PDF and the CSV behind them, as `style.write_figure` writes them. What is
undefined, for instance because no sample fails, is said in the figure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LITERAL,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WINE,
    new_figure,
    write_figure,
)
from bridge.report.figures.widths import DOUBLE, SINGLE
from bridge.report.tables.formats import words
from bridge.report.tables.outcomes import DENOMINATORS, Denominator, select

_ROUTERS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, WINE, BLACK)
_CURVES = ((BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":"))
_DASHES = {"analog": "-", "known": "-", "digital": "--", "student": "--"}
_FARTHEST = 1.25  # of the digital energy: beyond it no router saves anything


def predictor_figure(
    predictors: pd.DataFrame,
    path: Path,
    *,
    fold: str = "test",
    profile: str = FULL_PROFILE,
    denominator: Denominator = "correct",
    width: float = DOUBLE,
) -> Path:
    """AUROC of each predictor with its interval, the best on top; its cost at the right.

    Args:
        predictors: as `bridge.report.tables.predictors.compare` returns it.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        fold: the fold to show.
        profile: the profile whose failures are predicted.
        denominator: among the digitally correct samples or all.
        width: inches.

    Raises:
        ValueError: if the table has no such rows.
    """
    rows = select(predictors, fold=fold, profile=profile, denominator=denominator)
    rows = rows.sort_values("auroc", ascending=False, kind="stable", na_position="last")
    drawn = rows[rows["auroc"].notna()]
    with matplotlib.rc_context(LITERAL):
        across, size, step = (60, 8, 0.22) if width > SINGLE else (28, 7, 0.27)
        names = [textwrap.fill(words(name), across) for name in drawn["predictor"]]
        first = rows.iloc[0]
        title = f"{first['samples']:,} {DENOMINATORS[denominator]}"
        if pd.notna(first["failures"]):  # they were enough to look
            title += f", {_count(first['failures'], 'failure')} on {_count(first['chips'], 'chip')}"
        title = "\n".join(
            textwrap.fill(line, int(13 * width)) for line in (f"{profile}, {fold} fold", title)
        )
        height = 1.3 + step * max(len(drawn), 2) + 0.14 * (title.count("\n") - 1)
        figure = new_figure(width=width, height=height)
        axis = figure.subplots()
        figure.suptitle(title, fontsize=9)
        if drawn.empty:
            _say(axis, f"AUROC is undefined: {first['reason']}")
            return write_figure(figure, path, rows)
        places = np.arange(len(drawn))
        axis.axvline(0.5, color=GREY, linestyle=":")
        axis.hlines(places, drawn["auroc_low"], drawn["auroc_high"], color=BLUE, linewidth=1.6)
        axis.plot(drawn["auroc"], places, "o", color=BLUE, markersize=5, markeredgewidth=0)
        axis.set_yticks(places, names, fontsize=size)
        axis.set_ylim(len(drawn) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
        lowest = min(drawn["auroc_low"].min(), drawn["auroc"].min(), 0.5)
        highest = max(drawn["auroc_high"].max(), drawn["auroc"].max(), 0.5)
        margin = 0.04 * (highest - lowest)
        axis.set_xlim(lowest - margin, highest + margin)
        axis.set_xlabel("AUROC with its interval (dotted: chance)")
        costs = axis.secondary_yaxis("right")
        costs.set_yticks(places, [_passes(cost) for cost in drawn["forward_passes"]])
        costs.tick_params(length=0)
        costs.spines["right"].set_visible(False)
        costs.set_ylabel("Cost in forward passes")
        return write_figure(figure, path, rows)


def calibration_figure(
    calibration: pd.DataFrame,
    errors: pd.DataFrame,
    path: Path,
    *,
    fold: str = "test",
    profiles: Sequence[str] = (),
    width: float = DOUBLE,
) -> Path:
    """Observed failure rate against predicted probability: a panel a profile in which samples fail.

    The area of a point grows with the samples in its bin; the bar is the interval of the observed
    rate. On the diagonal the probabilities come true. A panel's title gives ECE, the expected
    calibration error, in the order of the legend.

    Args:
        calibration: as `bridge.report.tables.predictors.calibrate` returns it.
        errors: the errors that `calibrate` returns beside it.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        fold: the fold to show; may have no rows, if none of its samples is digitally correct.
        profiles: the profiles to draw, in this order, as far as samples fail under them; without
            any, all.
        width: inches.
    """
    errors, calibration = errors[errors["fold"] == fold], calibration[calibration["fold"] == fold]
    if profiles:
        errors = errors[errors["profile"].isin(profiles)]
        calibration = calibration[calibration["profile"].isin(profiles)]
    failing = list(errors.loc[errors["observed"] > 0, "profile"].unique())
    failing = [one for one in profiles if one in failing] if profiles else failing
    predictors = list(errors["predictor"].unique())
    looks = dict(zip(predictors, _CURVES, strict=False))
    columns = min(4 if width > SINGLE else 2, max(len(failing), 1))
    lines = -(-len(failing) // columns) or 1
    with matplotlib.rc_context(LITERAL):
        side = min(width / columns, 2.4)
        figure = new_figure(width=width, height=(side + 0.15) * lines + 0.7)
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        if not len(failing):
            _say(grid[0, 0], f"no sample of the {fold} fold fails under any profile")
            return write_figure(figure, path, calibration)
        most = calibration["samples"].max()
        for axis in grid.flat[len(failing) :]:
            axis.set_axis_off()
        for number, (axis, profile) in enumerate(zip(grid.flat, failing, strict=False)):
            axis.axline((0, 0), slope=1, color=GREY, linestyle=":", linewidth=1)
            found = []
            for predictor, (colour, marker, dashes) in looks.items():
                which = (errors["profile"] == profile) & (errors["predictor"] == predictor)
                if not which.any():
                    continue  # of exact mean weights there is one probability
                curve = select(calibration, profile=profile, predictor=predictor)
                curve = curve[curve["samples"] > 0]
                axis.vlines(
                    curve["predicted"],
                    curve["observed_low"],
                    curve["observed_high"],
                    color=colour,
                    linewidth=1,
                )
                axis.plot(
                    curve["predicted"], curve["observed"], dashes, color=colour, linewidth=0.8
                )
                axis.scatter(
                    curve["predicted"],
                    curve["observed"],
                    s=5 + 30 * curve["samples"] / most,
                    color=colour,
                    marker=marker,
                    linewidths=0,
                    alpha=0.85,
                    zorder=3,
                )
                found.append(f"{errors.loc[which, 'expected_calibration_error'].iloc[0]:.3f}")
            named = profile.replace(" at ", "\nat ")
            axis.set_title(f"{named}\nECE {', '.join(found)}", fontsize=8)
            axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            axis.set_xticks([0, 0.5, 1])
            axis.set_yticks([0, 0.5, 1])
            axis.tick_params(labelbottom=number + columns >= len(failing))
        figure.supxlabel(f"Predicted probability of failure, {fold} fold", fontsize=8)
        figure.supylabel("Observed failure rate", fontsize=8)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle=dashes, label=words(name))
            for name, (colour, marker, dashes) in looks.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2 if width > SINGLE else 1)
        return write_figure(figure, path, calibration)


def routing_figure(
    routing: pd.DataFrame,
    baselines: pd.DataFrame,
    choices: pd.DataFrame,
    path: Path,
    *,
    profile: str = FULL_PROFILE,
    width: float = DOUBLE,
) -> Path:
    """Accuracy against the fraction routed to the digital model, and against energy.

    A line a router, dashed where its score takes digital passes; a dot where the threshold chosen
    on validation puts it. Random routing and the oracle know nothing and everything beforehand, at
    no cost. The energy axis ends where routing costs clearly more than the digital model alone; the
    routers that lie beyond it are named.

    Args:
        routing: curves, as `bridge.report.tables.routers.route` returns them.
        baselines: the baselines that `route` returns: always analog and always digital.
        choices: the thresholds that `route` returns; may have no rows.
        path: the PNG file to write; SVG, PDF and CSV are put beside it.
        profile: the profile to show.
        width: inches; in one column of a paper the two panels stand one above the other.

    Raises:
        ValueError: if the tables lack the profile.
    """
    routing = select(routing, profile=profile)
    base = select(baselines, profile=profile).set_index("name")
    analog, digital = base.loc["always analog"], base.loc["always digital"]
    chosen = choices[choices["profile"] == profile]
    farthest = _FARTHEST * digital["energy"]
    beyond = []
    with matplotlib.rc_context(LITERAL):
        wide = width > SINGLE
        dense: dict[str, Any] = {} if wide else {"fontsize": 7, "columnspacing": 1.0}
        rows = -(-routing["router"].nunique() // (4 if wide else 2))
        figure = new_figure(width=width, height=(2.8 if wide else 5.0) + 0.16 * rows)
        by_fraction, by_energy = figure.subplots(*((1, 2) if wide else (2, 1)), sharey=True)
        reference = routing[routing["router"] == routing["router"].iloc[0]]
        fraction = reference["fraction"]
        energy = (1 - fraction) * analog["energy"] + fraction * digital["energy"]
        for name, style in (("oracle", ":"), ("random", "-.")):
            accuracy = 100 * reference[f"{name}_accuracy"]
            by_fraction.plot(100 * fraction, accuracy, style, color=GREY, label=name)
            by_energy.plot(energy, accuracy, style, color=GREY)
        for number, (router, curve) in enumerate(routing.groupby("router", sort=False)):
            colour = _ROUTERS[number % len(_ROUTERS)]
            dashes = _DASHES[curve["kind"].iloc[0]]
            by_fraction.plot(
                100 * curve["fraction"],
                100 * curve["accuracy"],
                dashes,
                color=colour,
                label=str(router),
            )
            dots = chosen[chosen["router"] == router]
            by_fraction.plot(100 * dots["fraction"], 100 * dots["accuracy"], "o", color=colour)
            if curve["energy"].min() > farthest:
                beyond.append(f"(not shown: {router}, from {curve['energy'].min():.3g} on)")
                continue
            by_energy.plot(curve["energy"], 100 * curve["accuracy"], dashes, color=colour)
            dots = dots[dots["energy"] <= farthest]
            by_energy.plot(dots["energy"], 100 * dots["accuracy"], "o", color=colour)
        for axis, at in (
            (by_fraction, (0, 100)),
            (by_energy, (analog["energy"], digital["energy"])),
        ):
            for place, row, marker in zip(at, (analog, digital), ("v", "^"), strict=True):
                axis.plot(
                    place,
                    100 * row["accuracy"],
                    marker,
                    color=BLACK,
                    markersize=6,
                    clip_on=False,
                    zorder=4,
                    linestyle="none",
                    label=row.name,
                )
        by_fraction.set_xlim(0, 100)
        by_fraction.set_xlabel("Routed to the digital model (% of the samples)")
        by_fraction.set_ylabel("Accuracy (%)")
        by_energy.set_xlim(0, farthest)
        by_energy.set_xlabel("\n".join(["Energy a sample", *beyond]))
        if not wide:
            by_energy.set_ylabel("Accuracy (%)")
        figure.suptitle(f"{profile}, {routing['fold'].iloc[0]} fold", fontsize=9)
        handles, labels = by_fraction.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if wide else 2, **dense)
        return write_figure(figure, path, routing)


def _say(axis: Axes, text: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def _passes(cost: float) -> str:
    return "-" if np.isnan(cost) else f"{cost:,.3g}"


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}" if number == 1 else f"{number:,} {of}s"
