"""One self-contained HTML page of a run: the answer, the tables, the figures and what made them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.analysis import (
    DENOMINATORS,
    FULL_PROFILE,
    Denominator,
    answers,
    caption,
    over_chips,
    select,
    table_one,
)
from experiments.artefacts import write_bytes

# By the start of the file's name; a figure of another name is shown last, under that name.
_CAPTIONS = {
    "figure_one": "Analog-only failure rate by curvature decile; bands are Wilson intervals "
    "of one chip, or the range over several.",
    "figure_one_correct": "The same, of the digitally correct samples only: a digitally wrong "
    "sample cannot fail analog-only.",
    "gallery": "The images of lowest and of highest curvature. Blue: the prediction survives on "
    "the analog chip; red: an analog-only failure; grey: digitally wrong.",
    "score_histogram": "Distribution of the score, each group as a share of itself.",
    "training_curve": "Training of the digital model; the dot is the checkpoint in use.",
}


def write_report(
    path: Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    deciles: pd.DataFrame,
    correlations: pd.DataFrame,
    figures: Sequence[Path] = (),
    fold: str = "test",
    profile: str = FULL_PROFILE,
    drift_seconds: float | None = None,
    ideal_agreement: float | None = None,
) -> Path:
    """Write the report of one run. Same inputs, same bytes; every text is escaped.

    Args:
        path: of the HTML file.
        title: of the page, for instance model and data set.
        settings: what was run; nested mappings become dotted names.
        stages: one mapping a stage: name, seconds, device, versions (package -> version).
        deciles: as `analysis.decile_tables` returns it.
        correlations: as `analysis.correlations` returns it.
        figures: PNG files to embed, known by the start of their names: figure_one, gallery,
            score_histogram, training_curve; others follow under their own names.
        fold: the fold of the answer and of the tables by decile.
        profile: the profile of the answer.
        drift_seconds: of the chips with PCM, in seconds.
        ideal_agreement: as `analysis.ideal_agreement` returns it.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: for a missing figure.
        ValueError: if the tables lack the fold or the profile.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, rate=_rate)
    pictures = [_picture(Path(figure)) for figure in figures]
    in_place = {"figure_one", "figure_one_correct", "gallery"}
    page = environment.get_template("report.html.jinja").render(
        title=title,
        answers=answers(
            deciles, correlations, profile=profile, fold=fold, drift_seconds=drift_seconds
        ),
        fold=fold,
        confidence=correlations["confidence"].iloc[0],
        ideal_agreement=ideal_agreement,
        decile_grids=[
            _decile_grid(deciles, fold, denominator, drift_seconds)
            for denominator in ("all", "correct")
        ],
        correlation_grids=[
            _correlation_grid(correlations, fold, denominator) for denominator in DENOMINATORS
        ],
        accuracies=table_one(deciles).to_dict("records"),
        last_decile=deciles["decile"].max(),
        figure_one=[p for p in pictures if p["kind"].startswith("figure_one")],
        gallery=[p for p in pictures if p["kind"] == "gallery"],
        more_figures=[p for p in pictures if p["kind"] not in in_place],
        settings=list(_flatten(settings)),
        stages=stages,
        versions=_versions(stages),
    )
    write_bytes(Path(path), page.encode())
    return Path(path)


def _decile_grid(
    deciles: pd.DataFrame, fold: str, denominator: Denominator, drift_seconds: float | None
) -> dict[str, Any]:
    rates = select(over_chips(deciles, denominator), fold=fold)
    profiles = list(rates["profile"].unique())
    grid = rates.pivot(index="decile", columns="profile", values="rate")[profiles]
    failures = rates.groupby("profile")["failures"].sum()
    return {
        "caption": caption(rates, fold, denominator, drift_seconds),
        "denominator": DENOMINATORS[denominator],
        "profiles": profiles,
        "rows": [(f"D{decile}", list(row)) for decile, row in grid.iterrows()],
        "failures": [f"{failures[name]:,}" for name in profiles],
        "highest": max(rates["rate"].max(), 1e-9),  # the length of the longest bar
    }


def _correlation_grid(correlations: pd.DataFrame, fold: str, denominator: str) -> dict[str, Any]:
    rows = correlations[
        (correlations["fold"] == fold) & (correlations["denominator"] == denominator)
    ]
    chips = rows.groupby(["profile", "predictor"], sort=False).agg(
        rho=("rho", "mean"), low=("low", "min"), high=("high", "max"), reason=("reason", "first")
    )
    cells: dict[str, list[str]] = {}
    for (profile, _), cell in chips.iterrows():
        text = f"{cell['rho']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"
        cells.setdefault(profile, []).append(text if cell["rho"] == cell["rho"] else cell["reason"])
    return {
        "denominator": DENOMINATORS[denominator],
        "predictors": [name.replace("_", " ") for name in rows["predictor"].unique()],
        "rows": list(cells.items()),
    }


def _picture(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"no figure at {path}; draw it before the report")
    kind = max((kind for kind in _CAPTIONS if path.name.startswith(kind)), key=len, default="")
    return {
        "kind": kind,
        "caption": _CAPTIONS.get(kind, path.stem.replace("_", " ")),
        "data": base64.b64encode(path.read_bytes()).decode(),
    }


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _versions(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Package and version; where stages differ, each version with the stages that ran on it."""
    used: dict[str, dict[str, list[str]]] = {}
    for stage in stages:
        for package, version in stage["versions"].items():
            used.setdefault(package, {}).setdefault(str(version), []).append(stage["name"])
    return [
        (
            package,
            next(iter(by_version))
            if len(by_version) == 1
            else ", ".join(f"{version} ({', '.join(at)})" for version, at in by_version.items()),
        )
        for package, by_version in sorted(used.items())
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _rate(percent: float) -> str:
    return "-" if percent != percent else f"{percent:.2f}"
