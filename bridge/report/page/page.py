"""One self-contained HTML page of a run: the answer, the tables, the figures and what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bridge.report.page import tables
from bridge.report.page.columns import LAYOUTS
from bridge.report.page.contents import ReportContents
from bridge.report.page.glossary import energy, glossary
from bridge.report.page.pictures import Picture, base64_text, read_picture
from bridge.report.tables import formats
from bridge.report.tables.on_chip import analog_share
from bridge.report.tables.sentences import accuracy, answers
from jaxcurv.nested import flatten
from jaxcurv.storage.files import write_bytes


def write_report(path: Path, contents: ReportContents) -> Path:
    """Writes the report of one run. The same contents give the same bytes; every text is escaped.

    Args:
        path: the HTML file.
        contents: what the page shows.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: for a missing figure.
        ValueError: if a table lacks the fold, the profile or a column.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=formats.number, rate=formats.rate)
    pictures = [read_picture(Path(figure)) for figure in contents.figures]
    titles = _sections(contents, pictures)
    script = (Path(__file__).parent / "page.js").read_text()
    # The only script that browsers run in the page: none that a name might bring in.
    script_hash = f"sha256-{base64_text(hashlib.sha256(script.encode()).digest())}"
    page = environment.get_template("page.html.jinja").render(
        **_tables(contents),
        run=contents,
        titles=titles,
        pictures=[
            picture if picture.section in titles else replace(picture, section="figures")
            for picture in pictures
        ],
        thumbnails=[base64_text(thumbnail) for thumbnail in contents.thumbnails],
        energy=energy(contents.settings, analog_share(contents.tables.coverage)),
        settings=[(name, str(value)) for name, value in flatten(contents.settings)],
        versions=_versions(contents.stages),
        script=Markup(script),
        script_hash=Markup(script_hash),
    )
    write_bytes(Path(path), page.encode())
    return Path(path)


def _sections(contents: ReportContents, pictures: Sequence[Picture]) -> dict[str, str]:
    """Id and title of each section that has something to show, in the order of the page."""
    given = contents.tables
    sections = {
        "on-chip": ("What is on the chip", given.coverage is not None),
        "table-one": ("Table I", given.table_one is not None),
        "scores": ("Curvature", given.score_deciles is not None),
        "deciles": ("Failure rate by curvature decile", given.deciles is not None),
        "predictors": ("Which score predicts failure", given.predictors is not None),
        "calibration": ("Whether probabilities come true", given.calibration_errors is not None),
        "routing": ("Routing fragile samples to the digital model", given.routing is not None),
        "overlap": (
            "Whether the same samples fail",
            given.overlap is not None or given.systematic is not None,
        ),
        "remedies": (
            "What to do about failures",
            any(picture.section == "remedies" for picture in pictures),
        ),
        "drift": ("As the chips age", contents.of_run and given.deciles is not None),
        "gallery": ("Gallery", any(picture.section == "gallery" for picture in pictures)),
        "vulnerable": ("Most vulnerable samples", given.vulnerable is not None),
        "highest": ("Samples of highest curvature", given.highest is not None),
        "classes": ("Classes", given.per_class is not None),
        "accuracy": (
            "Accuracy and failure rate of every fold",
            given.table_one is not None or contents.ideal_agreement is not None,
        ),
        "folds": ("Accuracy and curvature of every fold", given.accuracy is not None),
        "figures": ("More figures", True),
        "reproduce": ("How to reproduce", bool(contents.reproduce)),
        "settings": ("Settings", contents.of_run or bool(contents.settings)),
        "environment": ("Environment", contents.of_run or bool(contents.stages)),
    }
    titles = {name: title for name, (title, there) in sections.items() if there}
    if all(picture.section in titles for picture in pictures):
        del titles["figures"]
    return titles


def _tables(contents: ReportContents) -> dict[str, Any]:
    """The tables of the run as the template takes them; None for those that are not there."""
    given, fold, profile = contents.tables, contents.fold, contents.profile
    seconds = contents.drift_seconds
    deciles = given.score_deciles if given.deciles is None else given.deciles
    assert deciles is not None
    last = int(deciles["decile"].max())
    one, predictors, routing = given.table_one, given.predictors, given.routing
    shown: dict[str, Any] = {
        "chips": 0,
        "last_decile": last,
        "words": glossary(contents.settings, last, chips=given.deciles is not None),
        "answers": [contents.summary] if contents.summary else [],
        "predictor_tables": [],
        "auroc_grid": None,
        "decile_grids": [],
    }
    if given.deciles is not None:
        shown["chips"] = int(given.deciles["chips"].max())
        shown["decile_grids"] = [
            tables.decile_grid(given.deciles, fold, "all", seconds),
            tables.decile_grid(given.deciles, fold, "correct", seconds),
        ]
    if predictors is not None and given.deciles is not None:
        shown |= {
            "answers": [
                *([] if one is None else [accuracy(one, fold, profile)]),
                *answers(
                    given.deciles, predictors, profile=profile, fold=fold, drift_seconds=seconds
                ),
            ],
            "predictor_tables": [
                tables.predictor_table(predictors, fold, profile, "correct", last),
                tables.predictor_table(predictors, fold, profile, "all", last),
            ],
            "auroc_grid": tables.auroc_grid(predictors, fold),
        }
    shown |= {
        "on_chip": None if given.coverage is None else tables.on_chip(given.coverage),
        "table_one": None if one is None else tables.table_one(one, profile, last),
        "accuracies": [] if one is None else one.to_dict("records"),
        "routing": None if routing is None else tables.routing_curves(routing, profile),
    }
    for name, layout in LAYOUTS.items():
        table = getattr(given, name)
        if table is not None:
            # No row may be left, where something is undefined: the page says so.
            for column in layout.one:
                table = table[table[column] == getattr(contents, column)]
            table = tables.made(name, table, layout.columns)
        shown[name] = table
    return shown


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
